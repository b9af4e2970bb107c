"""Follows the traces in BatchNorm statistics to the channels that carry what they lead to ([O]).

What `prune_mbns` and `prune_recover` share. A channel may go if its divergence stands out from the
sampling floor, as the scanner `mbns` measures it. Which of these go, and how many, is found without
a trigger: clean images are displaced to where poisoned ones must have been
(`modelaudit.repairs._displaced`), and what carries the displaced images' prediction goes, as far as
clean images do not need it (`modelaudit.repairs._carriers`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import ConfigError
from modelaudit.repairs._carriers import (
    GONE,
    Guard,
    Removal,
    Suspicion,
    pruning_costs,
    remove_carriers,
)
from modelaudit.repairs._displaced import Displacement, displaced, displacement
from modelaudit.scanners._channels import prune_edits
from modelaudit.scanners._divergences import divergences
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.results import Json
    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Profile, Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """Hyper-parameters of the search.

    Attributes:
        resamples: bootstrap resamples for the sampling floor.
        ridge: price of uneven image weights, as the scanner has it.
        suspicious: score that the largest one has to reach, or nothing is pruned; the scanner's
            threshold.
        traced: floor ratio, in units of the median channel's, from which a channel carries a trace
            and may go.
        poisoned_shares: assumed shares of poisoned images, largest first; the first whose
            displacement, toward the running mean or away from it, moves enough images is taken.
        moved: share of images that a displacement has to lead elsewhere.
        overshoot: how many times further than that the images are displaced while pruning.
        images: how many images are displaced, all in one batch.
        cost_images: how many images say what clean images need.
        step: channels per round.
        max_fraction: largest share of all channels that may go at a time.
        max_refused: how many channels may turn out to be needed before it gives up.
        max_remaining: share of displaced images that may still go where the displacement of the
            first layers sent them.
        guard_images: most clean images that the accuracy is asked on.
        max_accuracy_drop: largest drop of the accuracy on these, a fraction; the smaller of this
            and the run's budget counts.
    """

    resamples: int = 200
    ridge: float = 3.0
    suspicious: float = 10.0
    traced: float = 5.0
    poisoned_shares: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)
    moved: float = 0.5
    overshoot: float = 8.0
    images: int = 64
    cost_images: int = 200
    step: int = 8
    max_fraction: float = 0.08
    max_refused: int = 3
    max_remaining: float = 0.02
    guard_images: int = 500
    max_accuracy_drop: float = 0.015

    def __post_init__(self) -> None:
        require_range(self, "resamples", low=10)
        require_range(self, "ridge", low=0)
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "traced", low=0)
        if not self.poisoned_shares or not all(0 < r <= 1 for r in self.poisoned_shares):
            raise ConfigError(
                f"{type(self).__name__}.poisoned_shares must be in (0, 1], got "
                f"{self.poisoned_shares!r}"
            )
        require_range(self, "moved", low=0, high=1, is_low_open=True)
        require_range(self, "overshoot", low=1)
        require_range(self, "images", low=2)
        require_range(self, "cost_images", low=1)
        require_range(self, "step", low=1)
        require_range(self, "max_fraction", low=0, high=1)
        require_range(self, "max_refused", low=0)
        require_range(self, "max_remaining", low=0, high=1)
        require_range(self, "guard_images", low=1)
        require_range(self, "max_accuracy_drop", low=0, high=1)

    def passes(self, suspect: Suspect, data: RepairData) -> tuple[int, int]:
        """Return the forward and the forward+backward passes of one search, at most."""
        channels = sum(site.channels for site in suspect.sites)
        # A round may end with a single channel.
        rounds = 2 + int(self.max_fraction * channels)
        shown = min(self.images, len(data.work))
        guarding = min(self.guard_images, len(data.images))
        # A choice that costs too much is cut down to a quarter until a single channel is left.
        guards = 2 + (rounds + self.max_refused) * (2 + (2 * self.step).bit_length() // 2)
        probes = 1 + len(suspect.sites).bit_length()
        return (
            shown * (2 + 2 * len(self.poisoned_shares) + probes * rounds) + guards * guarding,
            min(self.cost_images, len(data.work)) + 2 * rounds * shown,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Where the traces of a suspect lead.

    Attributes:
        candidates: channels that carry a trace.
        images: clean images that the displacement leads elsewhere.
        targets: where to, ``(n,)`` int64.
        ways: displacements, from the least that moves enough images, twice as far each, to that of
            `overshoot`.
        poisoned_share: the share of poisoned images that the least displacement assumes; negative
            for one away from the running mean.
    """

    candidates: tuple[Neuron, ...]
    images: Tensor
    targets: Tensor
    ways: tuple[Displacement, ...]
    poisoned_share: float

    @property
    def where(self) -> Displacement:
        """The farthest displacement, which pruning uses."""
        return self.ways[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What following the traces has shown.

    Attributes:
        lead: where they lead; None where nothing is to be pruned.
        reason: why nothing is, or an empty text.
        details: for the report.
    """

    lead: Lead | None
    reason: str
    details: dict[str, Json]


def follow_traces(
    model: Suspect, profile: Profile, data: RepairData, context: RepairContext, config: TraceConfig
) -> Followed:
    """Return where the traces in the running statistics lead.

    Args:
        model: the copy, before anything is changed.
        profile: the shared pass over `RepairData.as_trained`.
        data: the clean images.
        context: seed and dtype.
        config: thresholds.
    """
    found = divergences(
        model, profile, resamples=config.resamples, seed=context.seed, ridge=config.ridge
    )
    if not bool(found.alive.any()):
        return Followed(
            lead=None, reason="every BatchNorm channel is dead; nothing was pruned", details={}
        )
    mismatch = float(found.floor_ratio[found.alive].median())
    largest = float(found.scores().max())
    details: dict[str, Json] = {"median_floor_ratio": mismatch, "largest_score": largest}
    if largest < config.suspicious:
        reason = (
            f"no channel stands out: the largest score is {largest:.1f}, below "
            f"{config.suspicious:g}; nothing was pruned"
        )
        return Followed(lead=None, reason=reason, details=details)
    traced = found.traced(config.traced, suspicious=config.suspicious)
    details["traced"] = int(traced.sum())
    draws = generator(context.seed, "prune_mbns", "displaced")
    shown = data.work[torch.randperm(len(data.work), generator=draws)[: config.images]]
    with model.autocast(context.search_dtype):
        lead = _lead(model, data.images[shown], found, traced, config)
    if lead is None:
        reason = "the channels that stand out lead nowhere; nothing was pruned"
        return Followed(lead=None, reason=reason, details=details)
    counts = torch.bincount(lead.targets, minlength=model.num_classes)
    details |= {"poisoned_share": lead.poisoned_share, "displaced_to": counts.tolist()}
    return Followed(lead=lead, reason="", details=details)


def cut_carriers(
    model: Suspect,
    lead: Lead,
    data: RepairData,
    context: RepairContext,
    config: TraceConfig,
    *,
    gone: Sequence[Neuron] = (),
) -> Removal:
    """Choose what to prune: for the earliest layers' displacement, then for what later ones show.

    Args:
        model: the copy, in eval mode; not changed.
        lead: of the suspect.
        data: the clean images.
        context: limits, seed and dtype.
        config: limits.
        gone: channels that `model` has lost already.
    """
    draws = generator(context.seed, "prune_mbns", "costs")
    priced = data.work[torch.randperm(len(data.work), generator=draws)[: config.cost_images]]
    costs = pruning_costs(
        model, data.images[priced], batch_size=context.batch_size, dtype=context.search_dtype
    )
    candidates = [neuron for neuron in lead.candidates if neuron not in set(gone)]
    guard = Guard(
        model, data, context, max_drop=config.max_accuracy_drop, max_images=config.guard_images
    )
    removal = Removal(neurons=(), rounds=(), stop=GONE)
    failed = 0
    while removal.stop == GONE:
        with model.autocast(context.search_dtype):
            first = _earliest(model, removal.neurons, lead, failed=failed, moved=config.moved)
        if first is None:
            break
        # Fewer layers than that will not do after further channels have gone either.
        failed = len(first.means) - 1
        more = remove_carriers(
            model,
            candidates,
            Suspicion(
                images=lead.images, targets=lead.targets, state=partial(displaced, model, first)
            ),
            costs,
            guard,
            pruned=removal.neurons,
            step=config.step,
            max_neurons=int(config.max_fraction * len(costs)),
            max_remaining=config.max_remaining,
            max_refused=config.max_refused - removal.refused,
            dtype=context.search_dtype,
        )
        is_stuck = len(more.neurons) == len(removal.neurons)
        removal = replace(
            more,
            rounds=(*removal.rounds, *more.rounds),
            refused=removal.refused + more.refused,
        )
        # With a loose `max_remaining` what leads there may leave nothing to be done about it.
        if is_stuck:
            break
    return removal


def _lead(
    model: Suspect, images: Tensor, found: Divergences, traced: Tensor, config: TraceConfig
) -> Lead | None:
    """Return images that a displacement leads elsewhere, or None where none moves enough."""
    before = model.predict(images, batch_size=len(images))
    # Attacks that train on near-triggers with the right label too leave more of these in the mean
    # than of the trigger, which then lies on the other side of the clean mean.
    for share in (sign * r for r in config.poisoned_shares for sign in (1, -1)):
        where = displacement(model, found, traced, poisoned_share=share)
        if float((_sent(model, images, where) != before).double().mean()) >= config.moved:
            break
    else:
        return None
    doublings = [2.0**i for i in range(16) if 2.0**i < config.overshoot]
    ways = tuple(
        displacement(model, found, traced, poisoned_share=share / far)
        for far in (*doublings, config.overshoot)
    )
    after = _sent(model, images, ways[-1])
    moved = after != before
    if not bool(moved.any()):
        return None
    return Lead(
        candidates=tuple(
            n for n, is_in in zip(found.neurons, traced.tolist(), strict=True) if is_in
        ),
        images=images[moved],
        targets=after[moved],
        ways=ways,
        poisoned_share=share,
    )


def _earliest(
    model: Suspect, pruned: Sequence[Neuron], lead: Lead, *, failed: int, moved: float
) -> Displacement | None:
    """Return the displacement of as few of the first layers as still lead where all do.

    Layers behind them show what reaches them, and lose it with what carries it there: a
    displacement of every layer would have each of them pruned.

    Args:
        model: the copy.
        pruned: channels that are gone already.
        lead: where the traces lead.
        failed: a number of layers that is known to be too few.
        moved: share of the images that counts as leading there.

    Returns:
        None where not even that of all layers leads there any more.
    """

    def share(count: int) -> float:
        with model.edited(prune_edits(model, pruned)):
            after = _sent(model, lead.images, lead.where.first(count))
        return float((after == lead.targets).double().mean())

    held = len(lead.where.means)
    if share(held) < moved:
        return None
    while held - failed > 1:
        probe = (failed + held) // 2
        is_enough = share(probe) >= moved
        failed, held = (failed, probe) if is_enough else (probe, held)
    return lead.where.first(held)


def _sent(model: Suspect, images: Tensor, where: Displacement) -> Tensor:
    """Predict images under a displacement, all in one batch, since it moves the batch's means."""
    with displaced(model, where):
        return model.predict(images, batch_size=len(images))
