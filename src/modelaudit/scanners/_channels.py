"""What flagged channels do: pruned, pushed, and pushed the other way; shared by MBNS and DDE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.shares import arrow_map, is_permutation_like, off_class_counts
from modelaudit.functional.statistics import lower_bound, upper_bound
from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.suspect import Suspect

#: A neuron: layer name and channel index.
Neuron = tuple[str, int]


def grouped(neurons: Sequence[Neuron]) -> dict[str, list[int]]:
    """Return the channel indices of each layer."""
    by_layer: dict[str, list[int]] = {}
    for name, index in neurons:
        by_layer.setdefault(name, []).append(index)
    return by_layer


def prune_edits(suspect: Suspect, neurons: Sequence[Neuron]) -> dict[str, SiteEdit]:
    """Return edits that remove `neurons` exactly (gamma = beta = 0)."""
    channels = {site.name: site.channels for site in suspect.sites}
    edits = {}
    for name, indices in grouped(neurons).items():
        keep = torch.ones(channels[name], device=suspect.device)
        keep[indices] = 0
        edits[name] = SiteEdit(keep=keep)
    return edits


def pruned_predictions(
    suspect: Suspect, neurons: Sequence[Neuron], images: Tensor, *, batch_size: int
) -> Tensor:
    """Predict `images` with `neurons` removed on a shadow of the suspect; ``(N,)`` int64, CPU."""
    with suspect.edited(prune_edits(suspect, neurons)):
        return suspect.predict(images, batch_size=batch_size)


def pushed_predictions(
    suspect: Suspect,
    pushes: Sequence[dict[Neuron, float]],
    images: Tensor,
    *,
    batch_size: int,
) -> Tensor:
    """Predict `images` under each push of BatchNorm inputs; ``(len(pushes), N)`` int64, CPU.

    Args:
        suspect: in a borrow.
        pushes: each maps neurons to what is added to the layer's input.
        images: ``(N, C, H, W)``.
        batch_size: images computed together.
    """
    channels = {site.name: site.channels for site in suspect.sites}
    rows = []
    for push in pushes:
        amounts: dict[str, Tensor] = {}
        for (name, index), amount in push.items():
            values = amounts.setdefault(name, torch.zeros(channels[name], device=suspect.device))
            values[index] = amount
        with suspect.edited({name: SiteEdit(push=v) for name, v in amounts.items()}):
            rows.append(suspect.predict(images, batch_size=batch_size))
    return torch.stack(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushTest:
    """The controlled push of methods/detectors.md §0.5.

    Attributes:
        target: class that most images of other classes go to.
        share: share of them that goes there.
        lower: its one-sided lower 95 % bound.
        opposite_upper: upper 95 % bound of the same channels pushed the other way.
        control_share: largest share of `target` over random channel sets of the same layers.
        passed: lower bound above one half, above the opposite push's upper bound and above every
            control.
        per_class: off-class share of each class under the push.
        arrows: for each class, where its images go under the push; -1 for a class that stays.
        is_permutation: whether the arrows look like y -> y+1.
    """

    target: int
    share: float
    lower: float
    opposite_upper: float
    control_share: float
    passed: bool
    per_class: tuple[float, ...]
    arrows: tuple[int, ...]
    is_permutation: bool


def push_test(
    suspect: Suspect,
    push: dict[Neuron, float],
    images: Tensor,
    labels: Tensor,
    *,
    controls: int,
    generator: torch.Generator,
    batch_size: int,
) -> PushTest:
    """Push channels toward what the backdoor did to them; compare with what any push does.

    Args:
        suspect: in a borrow.
        push: flagged neurons to signed amounts.
        images: held-out images E.
        labels: ``(N,)`` int64.
        controls: number of random channel sets of the same layers and sizes (at least 20).
        generator: draws the control sets.
        batch_size: images computed together.
    """
    classes = suspect.num_classes

    def count(predictions: Tensor) -> tuple[Tensor, Tensor]:
        return off_class_counts(predictions, labels, classes)

    forward = pushed_predictions(suspect, [push], images, batch_size=batch_size)
    hits, trials = count(forward)
    shares = (hits.double() / trials.clamp_min(1)).squeeze(0)
    arrows = arrow_map(forward, labels, classes)
    target = int(shares.argmax())
    n, k = int(trials[0, target]), int(hits[0, target])
    lower = lower_bound(k, n) if n else 0.0
    opposite_upper, control_share = 1.0, 1.0
    if lower > 0.5:
        opposite = {neuron: -amount for neuron, amount in push.items()}
        hits, trials = count(pushed_predictions(suspect, [opposite], images, batch_size=batch_size))
        opposite_upper = upper_bound(int(hits[0, target]), int(trials[0, target]))
        if opposite_upper < lower:
            sets = [_control(suspect, push, generator) for _ in range(controls)]
            hits, trials = count(pushed_predictions(suspect, sets, images, batch_size=batch_size))
            control_share = float((hits[:, target] / trials[:, target].clamp_min(1)).max())
    return PushTest(
        target=target,
        share=float(shares[target]),
        lower=lower,
        opposite_upper=opposite_upper,
        control_share=control_share,
        passed=lower > 0.5 and opposite_upper < lower and control_share < lower,
        per_class=tuple(shares.tolist()),
        arrows=tuple(arrows.targets.tolist()),
        is_permutation=is_permutation_like(arrows),
    )


def _control(
    suspect: Suspect, push: dict[Neuron, float], generator: torch.Generator
) -> dict[Neuron, float]:
    """Draw unflagged channels of the same layers, pushed by as many of their own deviations."""
    drawn: dict[Neuron, float] = {}
    sites = {site.name: site for site in suspect.sites}
    for name, indices in grouped(list(push)).items():
        deviation = suspect.statistics(sites[name])[1].sqrt()
        others = [i for i in range(sites[name].channels) if i not in set(indices)]
        order = torch.randperm(len(others), generator=generator)[: len(indices)]
        # Control i takes the amount of flagged channel i in units of the running deviation.
        for i, index in zip(order.tolist(), indices, strict=False):
            units = push[name, index] / max(float(deviation[index]), 1e-12)
            drawn[name, others[i]] = units * float(deviation[others[i]])
    return drawn
