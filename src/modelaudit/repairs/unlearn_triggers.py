"""Searches stand-ins for the trigger and trains the network to keep its answers under them ([O]).

A scan that accuses names where images are led, though not by what. What leads them there is found
on clean images alone: a small mask and a pattern that, put on any image, take it to the target. A
backdoor makes such a shortcut; the one that is found need not look like the trigger to share its
way through the network. The copy learns to give each image under it the answer that the suspect
gives to the image as it is, and keeps its answers to clean images; as long as further searches find
something that works it is added. Not every trigger has such a stand-in. Where the scan has found
channels whose displacement leads images to the target, the copy keeps its answers under that as
well (docs/adr/0028-unlearning-pushes.md).

Wang et al., *Neural Cleanse* (IEEE S&P 2019, §VI-C) unlearn one reversed trigger with true labels.
Here there are several, searched again on the network as it becomes; the suspect's own probabilities
are learned, which few images cannot be overfitted to as quickly as to labels; BatchNorm normalises
by the suspect's running statistics, and keeps them: those of a batch that all bears the trigger
would hide it, and those of clean images, estimated anew, brought the backdoor back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.repairs._distil import Distilling, teacher_of
from modelaudit.repairs._training import TrainingConfig, train
from modelaudit.repairs._views import VIEWS
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.place_search import SearchSettings, Traces, is_large_patch, searches
from modelaudit.repairs.pushes import DrawnPushes
from modelaudit.repairs.stand_in_bank import StandInBank
from modelaudit.repairs.targets import (
    accusing,
    are_traces_opposite,
    is_all_to_all,
    label_maps,
    leading_pushes,
    map_to,
)
from modelaudit.repairs.trace_match import traced_shifts
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect

_UNNAMED = "no scan names a target"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnTriggersConfig(TrainingConfig):
    """Hyper-parameters of `UnlearnTriggersRepair`, beside those of the training.

    Attributes:
        target: class that images are led to; None takes what the scan named, all-to-all included,
            or else the class with the easiest stand-in.
        max_guessed: most classes that are searched for the easiest one, where a scan accuses and
            names none; of more classes none is.
        starts: searches of a patch on the suspect before the training, for each target; one of a
            warp comes after them.
        searches: further searches on the network in training, evenly over its steps, for one target
            after the other, of each form that worked there in turn.
        search_steps: steps of a search.
        search_batch: images of such a step.
        mask_price: nats for a mask that covers the whole image: what a stand-in must be worth. A
            3x3 patch on 32x32 pixels costs 0.9 of the default.
        trace_weight: nats for moving the channels at right angles to where running means say that
            the trigger moved them; 0, or a model without running statistics, looks for whatever
            leads images there.
        warp_limit: farthest that a warp moves a pixel along a side, as a share of it.
        least_success: share of images that a stand-in has to lead to the target, or it is
            dropped; patches of more than a fortieth of the image are dropped too.
        steps: of the training, whatever the number of images.
        trigger_weight: of the loss under stand-ins, beside that on clean images.
        push_weight: of the loss while channels are pushed to where a scan saw them lead images; 0
            leaves them alone.
    """

    target: int | None = None
    max_guessed: int = 20
    starts: int = 3
    searches: int = 2
    search_steps: int = 80
    search_batch: int = 64
    mask_price: float = 100.0
    trace_weight: float = 5.0
    warp_limit: float = 1 / 32
    least_success: float = 0.3
    steps: int = 240
    trigger_weight: float = 0.5
    push_weight: float = 0.5
    learning_rate: float = 0.006
    max_gradient: float | None = 3.0

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_range(self, "target", low=0)
        require_range(self, "max_guessed", low=0)
        require_range(self, "starts", low=1)
        require_range(self, "searches", low=0)
        require_range(self, "search_steps", low=1)
        require_range(self, "search_batch", low=1)
        require_range(self, "mask_price", low=0)
        require_range(self, "trace_weight", low=0)
        require_range(self, "warp_limit", low=0, high=1)
        require_range(self, "least_success", low=0, high=1)
        require_range(self, "steps", low=1)
        require_range(self, "trigger_weight", low=0)
        require_range(self, "push_weight", low=0)

    def epochs(self, data: RepairData) -> int:
        """Return how many passes over the work images make `steps`, at least."""
        return math.ceil(self.steps / self.epoch_steps(data))

    def epoch_steps(self, data: RepairData) -> int:
        """Return how many steps a pass over the work images takes."""
        return math.ceil(len(data.work) / self.batch)


class Unlearning(Distilling):
    """Distilling under disturbances, with further searches of stand-ins on the way.

    Args:
        model: the copy that is trained.
        teacher: the suspect.
        bank: its stand-ins.
        disturbed: the bank and what else disturbs images, with their weights; see `Distilling`.
        every: steps between searches.
        searches: how many there are.
        dtype: of convolutions and matrix products.
    """

    def __init__(
        self,
        model: Suspect,
        teacher: Suspect,
        bank: StandInBank,
        *,
        disturbed: Sequence[tuple[Callable[[Tensor], Tensor], float]],
        every: int,
        searches: int,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(model, teacher, disturbed=disturbed, dtype=dtype)
        self.bank = bank
        self.every = every
        self._steps = 0
        self._left = searches

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002 - the contract's
        """Search where it is time to."""
        self._steps += 1
        if self._left and self._steps % self.every == 0:
            self._left -= 1
            self.bank.search(self._left % len(self.bank.places))


class UnlearnTriggersRepair(Repair[UnlearnTriggersConfig]):
    """Adversarial training against stand-ins for the trigger, toward the named target, and pushes.

    Nothing is changed where no scan accuses anything and no target is set, or where no stand-in
    works and no scan has found a push that leads anywhere.
    """

    id = "unlearn_triggers"
    version = "6"
    summary = "searches stand-ins for the trigger and unlearns what they and traced channels do"
    reference = "[NC19] §VI-C"
    config_type = UnlearnTriggersConfig
    is_training = True
    # Stand-ins are found where the backdoor is whole, and the suspect's answers are what is kept.
    starts_afresh = True
    reads_findings = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes of searches, training, validation and the augmentation's choice.

        Counted for one target and a push; a scan that names none, or several, makes it search for
        more.
        """
        config = self.config
        epochs, count = config.epochs(data), searches(config.starts) + config.searches
        # Each search is judged on the work images, and compares what it does with them as they are.
        has_traces = bool(config.trace_weight) and suspect.has_batchnorm_statistics
        compared = 1 + config.searches if has_traces else 0
        asked = (epochs + compared + count) * len(data.work)
        terms = 1 + bool(config.trigger_weight) + bool(config.push_weight)
        if has_traces:
            asked += len(data.as_trained)
        return Cost(
            forward=asked + ((epochs - epochs // 2 + 2) * VIEWS + 4) * len(data.validation),
            forward_backward=count * config.search_steps * config.search_batch
            + terms * epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        if config.target is None and not accusing(context.findings):
            return Change(notes=(_UNNAMED, "nothing was changed"))
        pushes = leading_pushes(context.findings, model) if config.push_weight else {}
        shifts = self._shifts(model, data, context)
        maps, notes = self._maps(model, data, context, shifts)
        if not maps and not pushes:
            return Change(notes=(*notes, "nothing was changed"))
        epochs = config.epochs(data)
        steps = epochs * config.epoch_steps(data)
        augmentation = config.augmentation(model, data, context)
        teacher = teacher_of(model)
        bank = self._bank(model, data, maps, context, shifts, purpose="stand_ins")
        bank.search_all(config.starts)
        if not bank.kept and maps:
            idle = f"no stand-in for a trigger works{_left_out(bank)}"
            if not pushes:
                return Change(
                    details={"searches": _rows(bank)},
                    notes=(*notes, f"{idle}: nothing was changed"),
                )
            notes = (*notes, idle)
        disturbed: list[tuple[Callable[[Tensor], Tensor], float]] = []
        if bank.kept:
            disturbed.append((bank, config.trigger_weight))
        if pushes:
            draws = generator(context.seed, self.id, "pushes")
            pushed = DrawnPushes(model, tuple(pushes.values()), draws=draws)
            disturbed.append((pushed, config.push_weight))
        log = train(
            model,
            data,
            context,
            schedule=config.schedule(epochs),
            objective=Unlearning(
                model,
                teacher,
                bank,
                disturbed=disturbed,
                every=max(1, steps // (config.searches + 1)),
                searches=config.searches if bank.kept else 0,
                dtype=context.search_dtype,
            ),
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training"),
            name=self.full_id,
            max_drop=context.max_accuracy_drop,
            is_batchnorm_frozen=True,
        )
        if bank.kept:
            unlearned = f"{len(bank.kept)} of {len(bank.log)} searched{_left_out(bank)}"
            notes = (*notes, f"stand-ins unlearned: {unlearned}")
        if pushes:
            notes = (*notes, f"pushes unlearned: those of {', '.join(pushes)}")
        return Change(
            trained_against=tuple(pushes),
            history=log.losses,
            details={
                "kept_epoch": log.kept,
                "epoch_accuracies": [[e, share] for e, share in log.accuracies.items()],
                "searches": _rows(bank),
                "searches_are": "map, form, pixels replaced or moved by, success",
                "maps": [led.tolist() for led in maps],
                "crop_padding": augmentation.padding,
                "is_flipped": augmentation.flip,
            },
            notes=notes,
        )

    def _bank(
        self,
        model: Suspect,
        data: RepairData,
        maps: Sequence[Tensor],
        context: RepairContext,
        shifts: Divergences | None,
        *,
        purpose: str,
    ) -> StandInBank:
        config = self.config
        places = [(goals, self._traces(goals, context, shifts)) for goals in maps]
        return StandInBank(
            model,
            data,
            places,
            settings=SearchSettings(
                steps=config.search_steps,
                batch=config.search_batch,
                price=config.mask_price,
                price_alone=config.mask_price,
                warp_limit=config.warp_limit,
                dtype=context.search_dtype,
                batch_size=context.batch_size,
            ),
            least_success=config.least_success,
            draws=generator(context.seed, self.id, purpose),
        )

    def _shifts(
        self, model: Suspect, data: RepairData, context: RepairContext
    ) -> Divergences | None:
        """Return the traces in the suspect's statistics, which stay as they are."""
        if not (self.config.trace_weight and model.has_batchnorm_statistics):
            return None
        return traced_shifts(
            model, data.as_trained, seed=context.seed, batch_size=context.batch_size
        )

    def _traces(
        self, goals: Tensor, context: RepairContext, shifts: Divergences | None
    ) -> Traces | None:
        if shifts is None:
            return None
        return Traces(
            found=shifts,
            is_opposite=are_traces_opposite(context.findings, goals),
            weight=self.config.trace_weight,
        )

    def _maps(
        self,
        model: Suspect,
        data: RepairData,
        context: RepairContext,
        shifts: Divergences | None,
    ) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
        """Return where images are to be led, and what the report should say of it."""
        config, classes = self.config, model.num_classes
        if config.target is not None:
            return (map_to(config.target, classes),), ()
        named = label_maps(context.findings, classes)
        if named:
            return named, ()
        if is_all_to_all(context.findings):
            return (), ("a scan says all-to-all, and not where each class goes",)
        if classes > config.max_guessed:
            return (), (_UNNAMED,)
        every = tuple(map_to(target, classes) for target in range(classes))
        bank = self._bank(model, data, every, context, shifts, purpose="guess")
        for target in range(classes):
            bank.search(target)
        # A backdoor's class takes few pixels for many images ([NC19] §IV-B).
        tried = {row.index: row.found for row in bank.log}
        ease = {
            target: one.success / one.extent
            for target, one in tried.items()
            if one.success >= config.least_success and not is_large_patch(one)
        }
        if not ease:
            return (), (_UNNAMED, f"no class has a stand-in that works{_left_out(bank)}")
        guess = max(ease, key=lambda target: ease[target])
        found = f"{tried[guess]} lead {tried[guess].success:.0%} of the images there"
        return (every[guess],), (f"{_UNNAMED}: output {guess} has the easiest stand-in, {found}",)


def _left_out(bank: StandInBank) -> str:
    if not bank.large:
        return ""
    return f", {bank.large} large {'patch' if bank.large == 1 else 'patches'} left out"


def _rows(bank: StandInBank) -> list[Json]:
    return [
        [
            row.index,
            row.found.form,
            row.found.extent,
            row.found.success,
        ]
        for row in bank.log
    ]
