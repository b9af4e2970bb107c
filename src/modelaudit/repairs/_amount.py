"""How many of a ranked list of neurons may go: decided on validation accuracy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs.pruning import PruneMode
from modelaudit.scanners._channels import grouped, prune_edits
from modelaudit.suspect import RememberedImages, SiteEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Suspect

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


class Answers:
    """Which images keep their label when neurons are pruned, asked again and again.

    Args:
        model: the copy, in eval mode; its weights must not change between questions.
        data: the clean images.
        context: gives the batch size.
        part: indices of the images to look at; the validation part if omitted.
        mode: how neurons would be pruned.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        context: RepairContext,
        *,
        part: Tensor | None = None,
        mode: PruneMode = PruneMode.ZERO,
    ) -> None:
        self.model = model
        self.mode = mode
        rows = data.validation if part is None else part
        size = context.batch_size
        if model.device.type == "cpu":
            size = min(size, _CPU_BATCH)
        self._labels = data.labels[rows]
        self._images = RememberedImages(model, data.images[rows], batch_size=size)

    def right(self, neurons: Sequence[Neuron]) -> Tensor:
        """Return of which images prediction = label without `neurons`, ``(len(part),)`` bool."""
        edits = edits_without(self.model, neurons, self.mode)
        return self._images.predict(edits) == self._labels

    def accuracy(self, neurons: Sequence[Neuron]) -> float:
        """Return the share of the images with prediction = label without `neurons`."""
        return float(self.right(neurons).double().mean())


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
    answers = Answers(model, data, context, mode=mode)
    curve = {0: answers.accuracy(())}
    floor = curve[0] - min(max_drop, context.max_accuracy_drop) - ROUNDING

    def holds(count: int) -> bool:
        curve[count] = answers.accuracy(ordered[:count])
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
