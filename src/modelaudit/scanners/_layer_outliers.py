"""What the released codes of MBNS and DDE prune, read as a finding; shared by both variants.

Both are repairs: they prune the channels beyond mean ± u·sd of their layer and say nothing about
the model. The reading with the fewest assumptions of ours is used: the score is how many channels
they would prune, and the model is flagged when that is any. No number of ours enters, so clean
models, which have such channels as well (methods/detectors.md §2.3), are flagged too; only the
score's order says something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.results import Finding, Json
from modelaudit.scanners._channels import grouped
from modelaudit.scanners.base import CleanImages, Observation, ScanContext
from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.scanners._channels import Neuron
    from modelaudit.suspect import Suspect

SCORE_NAME = "channels that the released code would prune"

#: Largest inputs, in pixels, that the paper's first u was given for.
_SMALL_INPUT = 40

#: Channels that the evidence lists.
_LISTED = 50


def paper_u(input_size: int) -> float:
    """Return the papers' u: 3 for CIFAR-10 (up to 40 pixels), 4 for Tiny-ImageNet (beyond)."""
    return 3.0 if input_size <= _SMALL_INPUT else 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The statistic of one layer's channels, and which of them are over the limit.

    Attributes:
        name: the layer.
        values: the statistic, ``(D,)`` float64.
        z: how many deviations (divisor D - 1) each lies from the mean, toward the suspicious end,
            ``(D,)`` float64. NaN for the whole layer where a value is not finite: the released
            comparison is then false for all of it.
    """

    name: str
    values: Tensor
    z: Tensor


def standardised_layer(name: str, values: Tensor, *, is_low_suspicious: bool = False) -> Layer:
    """Return a layer with its z-scores: ``values > mean + u·sd``, or below, is ``z > u``."""
    z = (values - values.mean()) / values.std()
    return Layer(name=name, values=values, z=-z if is_low_suspicious else z)


def largest_possible_z(channels: int) -> float:
    """Return the z-score of one outlier among equal channels, which no channel can exceed.

    (D - 1) / √D with the unbiased deviation (methods/repairs.md §2): below 11 channels u = 3 flags
    none, below 18 u = 4.
    """
    return (channels - 1) / math.sqrt(channels) if channels else 0.0


def official_prune_edits(suspect: Suspect, neurons: Sequence[Neuron]) -> dict[str, SiteEdit]:
    """Return edits that set gamma of `neurons` to 0 and leave beta, as both codes do."""
    channels = {site.name: site.channels for site in suspect.sites}
    edits = {}
    for name, indices in grouped(neurons).items():
        noise = torch.zeros(channels[name], device=suspect.device)
        noise[indices] = -1.0
        edits[name] = SiteEdit(weight_noise=noise)
    return edits


def observe(
    suspect: Suspect,
    clean: CleanImages,
    context: ScanContext,
    layers: Sequence[Layer],
    *,
    u: float,
    evidence: dict[str, Json],
    notes: tuple[str, ...] = (),
) -> Observation:
    """Count the channels over `u`, prune them as the code does and return what is seen.

    Costs a forward pass over the images that judge if any channel is over.

    Args:
        suspect: in a borrow.
        clean: the accuracy with the channels pruned is measured on its judging images.
        context: batch size.
        layers: every layer's statistic.
        u: z-score beyond which a channel is pruned.
        evidence: what the caller has seen.
        notes: of the caller.
    """
    over: list[tuple[Neuron, float, float]] = [
        ((layer.name, i), float(layer.values[i]), float(layer.z[i]))
        for layer in layers
        for i in (layer.z > u).nonzero().flatten().tolist()
    ]
    over.sort(key=lambda row: -row[2])
    defined = [float(layer.z.max()) for layer in layers if bool(layer.z.isfinite().all())]
    blind = [layer.name for layer in layers if not bool(layer.z.isfinite().all())]
    evidence |= {
        "u": u,
        "all_channels": sum(len(layer.values) for layer in layers),
        "largest_z": max(defined) if defined else None,
        "channels": [[*neuron, value, z] for neuron, value, z in over[:_LISTED]],
        "layers_switched_off": [*blind],
        "pruned_accuracy_drop": _accuracy_drop(suspect, clean, context, [row[0] for row in over]),
    }
    notes = (*notes, "the released code is a repair; any channel that it would prune is a finding")
    if not any(largest_possible_z(len(layer.values)) > u for layer in layers):
        return Observation(
            finding=Finding.NO_POWER,
            evidence=evidence,
            notes=(*notes, f"no layer is wide enough for a z-score above {u:g}"),
        )
    return Observation(
        finding=Finding.SUSPICIOUS if over else Finding.NONE,
        score=float(len(over)),
        score_name=SCORE_NAME,
        threshold=1.0,
        evidence=evidence,
        notes=notes,
    )


def _accuracy_drop(
    suspect: Suspect, clean: CleanImages, context: ScanContext, neurons: Sequence[Neuron]
) -> float:
    if not neurons or not len(clean.judge):
        return 0.0
    labels = clean.labels[clean.judge]
    with suspect.edited(official_prune_edits(suspect, neurons)):
        pruned = suspect.predict(clean.images[clean.judge], batch_size=context.batch_size)
    before = (clean.predictions[clean.judge] == labels).double().mean()
    return float(before - (pruned == labels).double().mean())
