"""What flagged channels do: pruned, pushed, and pushed the other way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.shares import (
    ArrowMap,
    arrow_map,
    control_leads_as_far,
    is_permutation_like,
    off_class_counts,
)
from modelaudit.functional.statistics import lower_bound, upper_bound
from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.suspect import Suspect

#: Least share of the classes that a push moves which have to go to one target.
MIN_AGREEMENT = 0.8
#: Share of the held-out images that surely go along the arrows, classes, and images of a class,
#: from which on a map like a permutation is none by chance (docs/adr/0018-permutations.md).
MOST_SHIFTED = 0.5
SHIFTED_CLASSES = 4
SHIFTED_IMAGES = 10
#: Share of the controls that may shift the same classes less far.
FORGIVEN = 0.25

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
        opposite_upper: upper 95 % bound of the same channels pushed the other way; 1 if not run.
        control_share: largest share of `target` over random channel sets; 1 if not run.
        leads_to_one: lower bound above one half and above the opposite push's upper bound, and
            nearly every class that moves goes there: the channels lead to `target`.
        is_refuted: it leads to `target`, but a control takes four fifths of the lower bound or more
            there.
        beats_controls: it leads to `target` unrefuted; never without a channel to draw controls
            from.
        leads_to_all: the arrows look like y -> y+1, the opposite push's do not, and no control's
            do, but a quarter of them where the shift is sure and theirs is the same one, surely
            weaker: the channels shift every class.
        shifted: share of the images that go where most of their class go that leave it.
        shifted_lower: its one-sided lower 95 % bound.
        is_sure_shift: surely more than half go along arrows like a permutation's, and classes and
            images are too many for chance to make one.
        control_shifted: largest share of the images that a control sends along the same arrows; 1
            if not run.
        per_class: off-class share of each class under the push.
        arrows: for each class, where its images go under the push; -1 for a class that stays.
    """

    target: int
    share: float
    lower: float
    opposite_upper: float
    control_share: float
    leads_to_one: bool
    is_refuted: bool
    beats_controls: bool
    leads_to_all: bool
    shifted: float
    shifted_lower: float
    is_sure_shift: bool
    control_shifted: float
    per_class: tuple[float, ...]
    arrows: tuple[int, ...]


def push_test(
    suspect: Suspect,
    push: dict[Neuron, float],
    images: Tensor,
    labels: Tensor,
    *,
    control_pool: dict[str, list[int]],
    controls: int,
    generator: torch.Generator,
    batch_size: int,
) -> PushTest:
    """Push channels toward what the backdoor did to them; compare with what any push does.

    The controls, which cost most, run only when the push itself leads somewhere.

    Args:
        suspect: in a borrow.
        push: flagged neurons to signed amounts.
        images: held-out images E.
        labels: ``(N,)`` int64.
        control_pool: for each flagged layer, the channels that controls are drawn from: those
            without a trace of a trigger, or pushing them would be no control.
        controls: number of random channel sets of the same layers and sizes (at least 20).
        generator: draws the control sets.
        batch_size: images computed together.
    """
    classes = suspect.num_classes

    def run(*pushes: dict[Neuron, float]) -> Tensor:
        return pushed_predictions(suspect, pushes, images, batch_size=batch_size)

    forward = run(push)
    arrows = arrow_map(forward, labels, classes)
    hits, trials = off_class_counts(forward[0], labels, classes)
    shares = hits.double() / trials.clamp_min(1)
    target = int(shares.argmax())
    lower = lower_bound(int(hits[target]), int(trials[target]))
    along = _along(arrows)
    shifted_lower = lower_bound(along, len(labels))
    opposite_upper, control_share, control_shifted = 1.0, 1.0, 1.0
    moving = [a for c, a in enumerate(arrows.targets.tolist()) if a >= 0 and c != target]
    agrees = sum(a == target for a in moving) >= MIN_AGREEMENT * len(moving)
    leads_to_one, leads_to_all = lower > 0.5 and agrees, is_permutation_like(arrows)
    is_sure_shift = (
        leads_to_all
        and shifted_lower > MOST_SHIFTED
        and classes >= SHIFTED_CLASSES
        and len(labels) >= SHIFTED_IMAGES * classes
    )
    if leads_to_one or leads_to_all:
        opposite = run({neuron: -amount for neuron, amount in push.items()})
        hits, trials = off_class_counts(opposite[0], labels, classes)
        opposite_upper = upper_bound(int(hits[target]), int(trials[target]))
        leads_to_one &= opposite_upper < lower
        leads_to_all &= not is_permutation_like(arrow_map(opposite, labels, classes))
    if leads_to_one or leads_to_all:
        others = run(*(_control(suspect, push, control_pool, generator) for _ in range(controls)))
        hits, trials = off_class_counts(others, labels, classes)
        control_share = float((hits[:, target] / trials[:, target].clamp_min(1)).max())
        same = (others == arrows.targets[labels]).sum(1)
        control_shifted = float(same.max()) / len(labels)
        shifting = 0
        for other, along_these in zip(others, same.tolist(), strict=True):
            theirs = arrow_map(other, labels, classes)
            if is_permutation_like(theirs):
                # A trigger moves more channels a little than carry a trace, and a control that
                # meets them shifts the same classes: a weaker witness, not one against.
                is_same = along_these >= MIN_AGREEMENT * _along(theirs)
                is_weaker = upper_bound(along_these, len(labels)) < shifted_lower
                leads_to_all &= is_sure_shift and is_same and is_weaker
                shifting += 1
        leads_to_all &= shifting <= FORGIVEN * controls
    is_refuted = leads_to_one and control_leads_as_far(control_share, lower)
    return PushTest(
        target=target,
        share=float(shares[target]),
        lower=lower,
        opposite_upper=opposite_upper,
        control_share=control_share,
        leads_to_one=leads_to_one,
        is_refuted=is_refuted,
        beats_controls=leads_to_one and not is_refuted and all(control_pool.values()),
        leads_to_all=leads_to_all and all(control_pool.values()) and not leads_to_one,
        shifted=along / max(1, len(labels)),
        shifted_lower=shifted_lower,
        is_sure_shift=is_sure_shift,
        control_shifted=control_shifted,
        per_class=tuple(shares.tolist()),
        arrows=tuple(arrows.targets.tolist()),
    )


def _along(arrows: ArrowMap) -> int:
    """Return how many images go where most of their class go that leave it."""
    return int((arrows.errors * arrows.shares).round().sum())


def _control(
    suspect: Suspect,
    push: dict[Neuron, float],
    pool: dict[str, list[int]],
    generator: torch.Generator,
) -> dict[Neuron, float]:
    """Draw channels of the same layers, pushed either way by as many of their own deviations."""
    drawn: dict[Neuron, float] = {}
    sites = {site.name: site for site in suspect.sites}
    for name, indices in grouped(list(push)).items():
        deviation = suspect.statistics(sites[name])[1].sqrt()
        others = pool[name]
        # Control i takes the i-th largest amount in units of the running deviation: where the pool
        # is the smaller, the smallest amounts are left out.
        units = {i: abs(push[name, i]) / max(float(deviation[i]), 1e-12) for i in indices}
        amounts = sorted(units.values(), reverse=True)
        order = torch.randperm(len(others), generator=generator)[: len(indices)].tolist()
        signs = torch.randint(2, (len(indices),), generator=generator) * 2 - 1
        for i, amount, sign in zip(order, amounts, signs.tolist(), strict=False):
            drawn[name, others[i]] = sign * amount * float(deviation[others[i]])
    return drawn
