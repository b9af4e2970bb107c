"""How many of a ranked list of neurons may go: decided on validation accuracy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs.pruning import PruneMode
from modelaudit.scanners._channels import grouped, prune_edits
from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Suspect

#: Absorbs the rounding of accuracies and their difference, far less than any image.
ROUNDING = 1e-9
#: Images together on a CPU: of images of 32x32 the maps of more leave its caches, which costs a
#: ResNet-18 of width 16 a quarter of the time; of larger ones the batches of both sizes do.
_CPU_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How many neurons go, and what was seen on the way.

    Attributes:
        count: how many, from the front of the list.
        curve: (count, validation accuracy without that many), ascending, from 0 on.
    """

    count: int
    curve: tuple[tuple[int, float], ...]


def edits_without(
    model: Suspect, neurons: Sequence[Neuron], mode: PruneMode
) -> dict[str, SiteEdit]:
    """Return edits with which `model` acts as if `neurons` were pruned, without a changed tensor.

    Args:
        model: the copy.
        neurons: what would be pruned.
        mode: how.
    """
    if mode is PruneMode.ZERO:
        return prune_edits(model, neurons)
    channels = {site.name: site.channels for site in model.sites}
    edits = {}
    for name, indices in grouped(neurons).items():
        noise = torch.zeros(channels[name], device=model.device)
        noise[indices] = -1.0
        edits[name] = SiteEdit(weight_noise=noise)
    return edits


def accuracy_without(
    model: Suspect,
    neurons: Sequence[Neuron],
    data: RepairData,
    context: RepairContext,
    *,
    mode: PruneMode = PruneMode.ZERO,
    part: Tensor | None = None,
) -> float:
    """Return the share of images with prediction = label when `neurons` are pruned.

    Args:
        model: the copy, in eval mode.
        neurons: what would be pruned.
        data: the clean images.
        context: gives the batch size.
        mode: how they would be pruned.
        part: indices of the images to look at; the validation part if omitted.
    """
    rows = data.validation if part is None else part
    return float(right_without(model, neurons, data, context, mode=mode, part=rows).double().mean())


def right_without(
    model: Suspect,
    neurons: Sequence[Neuron],
    data: RepairData,
    context: RepairContext,
    *,
    part: Tensor,
    mode: PruneMode = PruneMode.ZERO,
) -> Tensor:
    """Return of which images prediction = label when `neurons` are pruned, ``(len(part),)`` bool.

    Args:
        model: the copy, in eval mode.
        neurons: what would be pruned.
        data: the clean images.
        context: gives the batch size.
        part: indices of the images to look at.
        mode: how they would be pruned.
    """
    size = context.batch_size
    if model.device.type == "cpu":
        size = min(size, _CPU_BATCH)
    with model.edited(edits_without(model, neurons, mode)):
        predictions = model.predict(data.images[part], batch_size=size)
    return predictions == data.labels[part]


def affordable(
    model: Suspect,
    ordered: Sequence[Neuron],
    data: RepairData,
    context: RepairContext,
    *,
    max_drop: float,
    mode: PruneMode = PruneMode.ZERO,
) -> Amount:
    """Return how many of `ordered`, taken from the front, the validation accuracy allows to prune.

    The whole list first, then halving between what held and what did not: accuracy falls with the
    number of neurons up to noise, so that a logarithmic number of passes over the validation images
    finds the amount.

    Args:
        model: the copy, in eval mode.
        ordered: most suspicious first.
        data: the clean images; labels stand for the model's own predictions where there are none.
        context: limits; the smaller of its budget and `max_drop` counts.
        max_drop: largest drop of validation accuracy, a fraction.
        mode: how neurons are pruned.
    """
    curve = {0: accuracy_without(model, (), data, context, mode=mode)}
    floor = curve[0] - min(max_drop, context.max_accuracy_drop) - ROUNDING

    def holds(count: int) -> bool:
        curve[count] = accuracy_without(model, ordered[:count], data, context, mode=mode)
        return curve[count] >= floor

    held, failed = 0, len(ordered) + 1
    probe = len(ordered)
    while failed - held > 1:
        if holds(probe):
            held = probe
        else:
            failed = probe
        probe = (held + failed) // 2
    return Amount(count=held, curve=tuple(sorted(curve.items())))
