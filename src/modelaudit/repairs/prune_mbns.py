"""MBNS pruning: channels whose BatchNorm statistics clean images do not explain ([DDE22] §4.4).

The paper prunes every channel whose divergence K exceeds mean + u · sd of its layer. On a narrow
network that hits needed channels, and misses the backdoor's once they are a tenth of a layer
(``paper_code`` keeps it). Here a channel may go if its K stands out from the sampling floor, as the
scanner of the same name measures it. Which of these go, and how many, is found without a trigger:

- Clean images are displaced, in the means of these channels, to where the poisoned ones must have
  been (`modelaudit.repairs._displaced`). In a backdoored model that leads them to the target.
- A step pays while displaced images still go where the displacement sent them: channels that carry
  this and that clean images do not need go first, a few at a time (`modelaudit.repairs._carriers`).
- It ends when displaced images no longer go there, or where the accuracy forbids more.

A model without a channel that stands out as far as the scanner asks for, or whose displaced images
go nowhere, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import ConfigError
from modelaudit.repairs._carriers import (
    GONE,
    Removal,
    Suspicion,
    pruning_costs,
    remove_carriers,
)
from modelaudit.repairs._displaced import Displacement, displaced, displacement
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.prune_mbns_paper_code import PruneMbnsPaperCodeRepair
from modelaudit.repairs.pruning import prune_mask
from modelaudit.results import Cost
from modelaudit.scanners._channels import prune_edits
from modelaudit.scanners.mbns import divergences
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.results import Json
    from modelaudit.scanners.mbns import Divergences
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMbnsConfig:
    """Hyper-parameters of `PruneMbnsRepair`.

    Attributes:
        resamples: bootstrap resamples for the sampling floor.
        suspicious: score (K in units of its floor and of the median channel's) that the largest one
            has to reach, or nothing is pruned; the scanner's threshold.
        traced: score from which a channel carries a trace and may go.
        poisoned_shares: assumed shares of poisoned images, largest first; the first whose
            displacement moves enough images is taken.
        moved: share of images that a displacement has to lead elsewhere.
        overshoot: how many times further than that the images are displaced while pruning.
        images: how many images are displaced, all in one batch.
        cost_images: how many images say what clean images need.
        step: channels per round.
        max_fraction: largest share of all channels that may go.
        max_refused: how many channels may turn out to be needed before it gives up.
        max_remaining: share of displaced images that may still go where the displacement of the
            first layers sent them.
        max_accuracy_drop: largest drop of the accuracy on all clean images, a fraction; the smaller
            of this and the run's budget counts.
    """

    resamples: int = 200
    suspicious: float = 25.0
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
    max_accuracy_drop: float = 0.015

    def __post_init__(self) -> None:
        require_range(self, "resamples", low=10)
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "traced", low=0, high=self.suspicious)
        if not self.poisoned_shares or not all(0 < r <= 1 for r in self.poisoned_shares):
            raise ConfigError(
                f"PruneMbnsConfig.poisoned_shares must be in (0, 1], got {self.poisoned_shares!r}"
            )
        require_range(self, "moved", low=0, high=1, is_low_open=True)
        require_range(self, "overshoot", low=1)
        require_range(self, "images", low=2)
        require_range(self, "cost_images", low=1)
        require_range(self, "step", low=1)
        require_range(self, "max_fraction", low=0, high=1)
        require_range(self, "max_refused", low=0)
        require_range(self, "max_remaining", low=0, high=1)
        require_range(self, "max_accuracy_drop", low=0, high=1)


class PruneMbnsRepair(Repair[PruneMbnsConfig]):
    """Channels with mismatched statistics that carry what the mismatch leads to."""

    id = "prune_mbns"
    version = "1"
    summary = "channels whose BatchNorm statistics clean images do not explain"
    reference = "[DDE22] §4.4"
    config_type = PruneMbnsConfig
    variants = MappingProxyType({"paper_code": PruneMbnsPaperCodeRepair})
    requires_batchnorm = True
    requires_gradients = True
    min_images = 20

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes beyond the shared profile, at most."""
        config = self.config
        channels = sum(site.channels for site in suspect.sites)
        # A round may end with a single channel.
        rounds = 2 + int(config.max_fraction * channels)
        shown = min(config.images, len(data.work))
        priced = min(config.cost_images, len(data.work))
        # A round that costs too much is cut down to a quarter until a single channel is left.
        guards = 3 + (rounds + config.max_refused) * config.step.bit_length()
        probes = 1 + len(suspect.sites).bit_length()
        return Cost(
            forward=shown * (2 + len(config.poisoned_shares) + probes * rounds)
            + priced
            + guards * (len(data.images) + len(data.validation))
            + 1,
            forward_backward=priced + rounds * shown,
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        profile = self.profile(model, data, context)
        found = divergences(model, profile, resamples=config.resamples, seed=context.seed)
        alive = found.divergence.isfinite() & (found.floor_ratio > 0)
        if not bool(alive.any()):
            return Change(notes=("every BatchNorm channel is dead; nothing was pruned",))
        mismatch = max(1.0, float(found.floor_ratio[alive].median()))
        scores = found.floor_ratio / mismatch
        largest = float(scores.max())
        details: dict[str, Json] = {"median_floor_ratio": mismatch, "largest_score": largest}
        if largest < config.suspicious:
            reason = (
                f"no channel stands out: the largest score is {largest:.1f}, below "
                f"{config.suspicious:g}; nothing was pruned"
            )
            return Change(details=details, notes=(reason,))
        traced = scores >= config.traced
        details["traced"] = int(traced.sum())
        draws = generator(context.seed, self.id, "displaced")
        shown = data.work[torch.randperm(len(data.work), generator=draws)[: config.images]]
        led = self._lead(model, data.images[shown], found, traced)
        if led is None:
            reason = "the channels that stand out lead nowhere; nothing was pruned"
            return Change(details=details, notes=(reason,))
        draws = generator(context.seed, self.id, "costs")
        priced = data.work[torch.randperm(len(data.work), generator=draws)[: config.cost_images]]
        costs = pruning_costs(model, data.images[priced], batch_size=context.batch_size)
        candidates = [n for n, is_in in zip(found.neurons, traced.tolist(), strict=True) if is_in]
        removal = self._remove(model, candidates, led, costs, data, context)
        mask = prune_mask(model, removal.neurons)
        mask.apply(model.module)
        counts = torch.bincount(led.targets, minlength=model.num_classes)
        details |= removal.details()
        details |= {"poisoned_share": led.poisoned_share, "displaced_to": counts.tolist()}
        return Change(
            mask=mask if removal.neurons else None,
            details=details,
            notes=(f"pruning ended because {removal.stop}",),
        )

    def _lead(
        self, model: Suspect, images: Tensor, found: Divergences, traced: Tensor
    ) -> _Lead | None:
        """Return images that a displacement leads elsewhere, or None where none moves enough."""
        before = model.predict(images, batch_size=len(images))
        for share in self.config.poisoned_shares:
            where = displacement(model, found, traced, poisoned_share=share)
            if float((_sent(model, images, where) != before).double().mean()) >= self.config.moved:
                break
        else:
            return None
        far = share / self.config.overshoot
        where = displacement(model, found, traced, poisoned_share=far)
        after = _sent(model, images, where)
        moved = after != before
        if not bool(moved.any()):
            return None
        return _Lead(images=images[moved], targets=after[moved], where=where, poisoned_share=share)

    def _remove(
        self,
        model: Suspect,
        candidates: list[Neuron],
        led: _Lead,
        costs: Tensor,
        data: RepairData,
        context: RepairContext,
    ) -> Removal:
        """Prune for the earliest layers' displacement, then for what later ones still show."""
        config = self.config
        removal = Removal(neurons=(), rounds=(), stop=GONE)
        while removal.stop == GONE:
            first = self._earliest(model, removal.neurons, led)
            if first is None:
                break
            suspicion = Suspicion(
                images=led.images, targets=led.targets, state=partial(displaced, model, first)
            )
            more = remove_carriers(
                model,
                candidates,
                suspicion,
                costs,
                data,
                context,
                pruned=removal.neurons,
                step=config.step,
                max_neurons=int(config.max_fraction * len(costs)),
                max_drop=config.max_accuracy_drop,
                max_remaining=config.max_remaining,
                max_refused=config.max_refused - removal.refused,
            )
            removal = replace(
                more,
                rounds=(*removal.rounds, *more.rounds),
                refused=removal.refused + more.refused,
            )
        return removal

    def _earliest(
        self, model: Suspect, pruned: Sequence[Neuron], led: _Lead
    ) -> Displacement | None:
        """Return the displacement of as few of the first layers as still lead where all do.

        Layers behind them show what reaches them, and lose it with what carries it there: a
        displacement of every layer would have each of them pruned.

        Returns:
            None where not even that of all layers leads there any more.
        """

        def share(count: int) -> float:
            with model.edited(prune_edits(model, pruned)):
                after = _sent(model, led.images, led.where.first(count))
            return float((after == led.targets).double().mean())

        layers = len(led.where.means)
        if share(layers) < self.config.moved:
            return None
        failed, held = 0, layers
        while held - failed > 1:
            probe = (failed + held) // 2
            is_enough = share(probe) >= self.config.moved
            failed, held = (failed, probe) if is_enough else (probe, held)
        return led.where.first(held)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lead:
    """Where the trace leads.

    Attributes:
        images: clean images that the displacement leads elsewhere.
        targets: where to, ``(n,)`` int64.
        where: the displacement.
        poisoned_share: the share of poisoned images that the least displacement assumes.
    """

    images: Tensor
    targets: Tensor
    where: Displacement
    poisoned_share: float


def _sent(model: Suspect, images: Tensor, where: Displacement) -> Tensor:
    """Predict images under a displacement, all in one batch, since it moves the batch's means."""
    with displaced(model, where):
        return model.predict(images, batch_size=len(images))
