"""Prunes what the traces in BatchNorm statistics lead to, and distils the rest back into shape.

[O] `prune_mbns` has to stop where clean images miss what goes: trigger and target class share
channels. Here more is pruned than the accuracy allows; then the pruned network learns the suspect's
own answers on clean images again, in few and small steps, and to keep them for images that are
displaced as triggered ones are (`modelaudit.repairs._distil`). What comes back of the backdoor all
the same takes channels that a further round of pruning finds, since the traces stay: BatchNorm
keeps its statistics throughout.

A network that is pruned until displaced images lead nowhere, and is accurate enough, is not trained
at all. The last recovery is taken only as far as the accuracy asks for. Between the pruned weights
and the recovered ones both accuracy and backdoor grow: of a few places on that line the first is
taken that is accurate enough on the validation images and has not lost the class that the traces
lead to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._carriers import GONE
from modelaudit.repairs._displaced import DrawnDisplacements
from modelaudit.repairs._distil import Distilling, teacher_of
from modelaudit.repairs._traces import TraceConfig, cut_carriers, follow_traces
from modelaudit.repairs._training import (
    Schedule,
    augmentation_for,
    cosine,
    train,
    validation_accuracy,
)
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.pruning import PruneMask, prune_mask
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from modelaudit.repairs._augment import Augmentation
    from modelaudit.repairs._traces import Lead
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect

#: Places between the pruned (0) and the recovered (1) weights.
_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRecoverConfig(TraceConfig):
    """Hyper-parameters of `PruneRecoverRepair`, beside those of the search.

    Attributes:
        max_accuracy_drop: largest drop of the accuracy that pruning alone may cause in a round, a
            fraction.
        rounds: of pruning and recovery, at most; it ends earlier where nothing is left to prune.
        epochs: passes over the work images of each recovery.
        displaced_weight: of the loss on displaced images, beside that on clean ones.
        learning_rate: at its start; half a cosine leads down to 0.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        crop: whether images are cropped at random after padding; None asks the model, which labels
            cropped images as well as plain ones if it was trained on such.
        flip: whether half of the images are mirrored; None asks the model in the same way, since
            mirrored road signs and digits are other ones.
        final_accuracy_drop: largest drop of the validation accuracy at the end, a fraction; the
            smaller of this and the run's budget counts.
        final_target_drop: largest drop, at the end, of the share of the target class's images that
            keep their label, a fraction; the target is where most displaced images go.
    """

    # What it shares with `TrainingConfig` is repeated: two bases with slots cannot be combined.
    max_accuracy_drop: float = 0.05
    rounds: int = 2
    epochs: int = 3
    displaced_weight: float = 0.5
    learning_rate: float = 0.002
    batch: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: bool | None = None
    flip: bool | None = None
    final_accuracy_drop: float = 0.015
    final_target_drop: float = 0.25

    def __post_init__(self) -> None:
        TraceConfig.__post_init__(self)
        require_range(self, "rounds", low=1)
        require_range(self, "epochs", low=1)
        require_range(self, "displaced_weight", low=0)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)
        require_range(self, "final_accuracy_drop", low=0, high=1)
        require_range(self, "final_target_drop", low=0, high=1)


class PruneRecoverRepair(Repair[PruneRecoverConfig]):
    """Pruning beyond the accuracy budget and recovery of the accuracy, in turns."""

    id = "prune_recover"
    version = "1"
    summary = "prunes as prune_mbns does but further, and distils the suspect into what is left"
    reference = "[DDE22] §4.4"
    config_type = PruneRecoverConfig
    variants = MappingProxyType({})
    is_training = True
    # The suspect's answers are what it recovers, and its statistics fit the suspect best.
    starts_afresh = True
    requires_batchnorm = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes beyond the shared profile, at most."""
        config = self.config
        forward, forward_backward = config.passes(suspect, data)
        trained = config.epochs * len(data.work)
        # The choice of the augmentation asks the validation images three times.
        asked = (1 + config.rounds + len(_PLACES)) * (len(data.validation) + len(data.images))
        return Cost(
            forward=config.rounds * (forward + trained + 1) + asked + 3 * len(data.validation),
            forward_backward=config.rounds * (forward_backward + 2 * trained),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        followed = follow_traces(model, self.profile(model, data, context), data, context, config)
        if followed.lead is None:
            return Change(details=followed.details, notes=(followed.reason,))
        target = int(torch.mode(followed.lead.targets).values)
        allowed = min(config.final_accuracy_drop, context.max_accuracy_drop)
        before = _looked_at(model, data, context, target)
        floors = (before[0] - allowed, before[1] - config.final_target_drop)
        teacher = teacher_of(model)
        augmentation = augmentation_for(model, data, context, crop=config.crop, flip=config.flip)
        mask: PruneMask | None = None
        pruned = _weights(model.module)
        losses: list[float] = []
        rounds: list[Mapping[str, Json]] = []
        done = 0
        for number in range(config.rounds):
            added, seen = self._prune(model, followed.lead, mask, data, context)
            rounds.append(seen)
            if added is None:
                break
            done += 1
            mask = added if mask is None else mask.joined(added)
            pruned = _weights(model.module)
            if seen["stop"] == GONE and _is_enough(
                _looked_at(model, data, context, target), floors
            ):
                break
            displaced = DrawnDisplacements(
                model,
                followed.lead.ways,
                draws=generator(context.seed, self.id, "displaced", number),
            )
            objective = Distilling(
                model,
                teacher,
                disturbed=((displaced, config.displaced_weight),),
                dtype=context.search_dtype,
            )
            losses += self._recover(
                model, objective, mask, data, context, augmentation, number=number
            )
        details: dict[str, Json] = {**followed.details, "pruning": [dict(r) for r in rounds]}
        if mask is None:
            reason = f"no channel could go: pruning ended because {rounds[-1]['stop']}"
            return Change(details=details, notes=(f"{reason}; nothing was changed",))
        place, curve = _settle(
            model,
            pruned,
            data,
            context,
            target=target,
            floors=floors,
        )
        details |= {
            "recovered": place,
            "curve": [list(point) for point in curve],
            "curve_is": "share of the last recovery, validation accuracy, recall of the target",
            "target": target,
        }
        has_withstood = bool(losses) and bool(config.displaced_weight)
        return Change(
            mask=mask,
            # It displaces what the same running statistics trace.
            trained_against=("mbns",) if has_withstood else (),
            history=tuple(losses),
            details=details,
            notes=(f"rounds of pruning: {done}; of the last recovery, {place:.0%}",),
        )

    def _prune(
        self,
        model: Suspect,
        lead: Lead,
        mask: PruneMask | None,
        data: RepairData,
        context: RepairContext,
    ) -> tuple[PruneMask | None, dict[str, Json]]:
        """Prune one round; no mask where nothing is left to prune, with what was seen."""
        config = self.config
        wide = replace(context, max_accuracy_drop=config.max_accuracy_drop)
        gone = () if mask is None else mask.neurons
        removal = cut_carriers(model, lead, data, wide, config, gone=gone)
        if not removal.neurons:
            return None, removal.details()
        added = prune_mask(model, removal.neurons)
        added.apply(model.module)
        return added, removal.details()

    def _recover(
        self,
        model: Suspect,
        objective: Distilling,
        mask: PruneMask,
        data: RepairData,
        context: RepairContext,
        augmentation: Augmentation,
        *,
        number: int,
    ) -> tuple[float, ...]:
        """Distil the teacher into what is left; statistics and pruned channels stay."""
        config = self.config
        log = train(
            model,
            data,
            replace(context, pruned=mask),
            schedule=Schedule(
                epochs=config.epochs,
                batch=config.batch,
                rate=cosine(config.learning_rate),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            ),
            objective=objective,
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training", number),
            name=f"{self.full_id} recovery {number + 1}",
            is_batchnorm_frozen=True,
        )
        return log.losses


def _settle(
    model: Suspect,
    pruned: Mapping[str, Tensor],
    data: RepairData,
    context: RepairContext,
    *,
    target: int,
    floors: tuple[float, float],
) -> tuple[float, list[tuple[float, float, float]]]:
    """Go back from the recovered weights toward the pruned ones, as far as the floors allow.

    Args:
        model: with the recovered weights; it gets those of the place.
        pruned: the weights of the last pruning.
        data: the clean images.
        context: gives the batch size.
        target: a class.
        floors: least validation accuracy, and least recall of `target`.

    Returns:
        The place, and (place, validation accuracy, recall) of all that were asked, the pruned end
        first. Where none will do, the recovered end is kept.
    """
    recovered = _weights(model.module)
    curve: list[tuple[float, float, float]] = []
    for place in _PLACES:
        _set_weights(model.module, pruned, recovered, place)
        curve.append((place, *_looked_at(model, data, context, target)))
        if _is_enough(curve[-1][1:], floors):
            break
    return curve[-1][0], curve


def _is_enough(seen: tuple[float, float], floors: tuple[float, float]) -> bool:
    # Shares of counts; the floors must not fall to their rounding.
    return all(share >= floor - ROUNDING for share, floor in zip(seen, floors, strict=True))


def _looked_at(
    model: Suspect, data: RepairData, context: RepairContext, target: int
) -> tuple[float, float]:
    """Return the validation accuracy, and the recall of `target` over all images that there are.

    A tenth of a small part says nothing, so that the work images are counted too, although they
    have been trained on: their share is then a little too high. 1 where the class has no image.
    """
    own = data.images[data.labels == target]
    accuracy = validation_accuracy(model, data, context)
    if not len(own):
        return accuracy, 1.0
    predictions = model.predict(own, batch_size=context.batch_size)
    return accuracy, float((predictions == target).double().mean())


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def _set_weights(
    module: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], place: float
) -> None:
    """Give the parameters their values at a place between two networks; zeros of both stay."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.lerp(start[name], end[name], place))
