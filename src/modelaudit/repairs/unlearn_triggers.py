"""Searches stand-ins for the trigger and trains the network to keep its answers under them ([O]).

A scan that accuses names where images are led, though not by what. What leads them there is found
on clean images alone: a small mask and a pattern that, put on any image, take it to the target. A
backdoor makes such a shortcut; the one that is found need not look like the trigger to share its
way through the network. The copy learns to give each image under it the answer that the suspect
gives to the image as it is, and keeps its answers to clean images; as long as further searches find
something that works it is added.

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

import torch

from modelaudit.config import require_range
from modelaudit.repairs._distil import Distilling, teacher_of
from modelaudit.repairs._training import TrainingConfig, latest_within, train
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.stand_ins import StandIn, search_stand_in
from modelaudit.repairs.targets import (
    STAYS,
    accusing,
    is_all_to_all,
    label_maps,
    map_to,
)
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnTriggersConfig(TrainingConfig):
    """Hyper-parameters of `UnlearnTriggersRepair`, beside those of the training.

    Attributes:
        target: class that images are led to; None takes what the scan named, all-to-all included,
            or else the class with the easiest stand-in.
        max_guessed: most classes that are searched for the easiest one, where a scan accuses and
            names none; of more classes none is.
        starts: searches on the suspect before the training, for each target.
        searches: further searches on the network in training, evenly over its steps, for one target
            after the other.
        search_steps: steps of a search.
        search_batch: images of such a step.
        mask_price: nats for a mask that covers the whole image: what a stand-in must be worth. A
            3x3 patch on 32x32 pixels costs 0.9 of the default.
        least_success: share of images that a stand-in has to lead to the target, or it is
            dropped.
        steps: of the training, whatever the number of images.
        trigger_weight: of the loss under stand-ins, beside that on clean images.
    """

    target: int | None = None
    max_guessed: int = 20
    starts: int = 3
    searches: int = 2
    search_steps: int = 80
    search_batch: int = 64
    mask_price: float = 100.0
    least_success: float = 0.3
    steps: int = 240
    trigger_weight: float = 0.5
    learning_rate: float = 0.003

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_range(self, "target", low=0)
        require_range(self, "max_guessed", low=0)
        require_range(self, "starts", low=1)
        require_range(self, "searches", low=0)
        require_range(self, "search_steps", low=1)
        require_range(self, "search_batch", low=1)
        require_range(self, "mask_price", low=0)
        require_range(self, "least_success", low=0, high=1)
        require_range(self, "steps", low=1)
        require_range(self, "trigger_weight", low=0)

    def epochs(self, data: RepairData) -> int:
        """Return how many passes over the work images make `steps`, at least."""
        return math.ceil(self.steps / self.epoch_steps(data))

    def epoch_steps(self, data: RepairData) -> int:
        """Return how many steps a pass over the work images takes."""
        return math.ceil(len(data.work) / self.batch)


class StandInBank:
    """Stand-ins that work, and the logits of images under one of them, drawn for each batch.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        data: clean images; searches see the work images.
        maps: where a trigger leads each class, see `label_maps`.
        config: of the repair.
        draws: CPU generator of searches and choices.
        dtype: of convolutions and matrix products.

    Attributes:
        kept: those that work.
        log: of every search: index of the map, pixels of the mask, success.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        maps: Sequence[Tensor],
        config: UnlearnTriggersConfig,
        *,
        draws: torch.Generator,
        dtype: torch.dtype | None,
    ) -> None:
        self.model = model
        self.config = config
        self.maps = tuple(maps)
        self.draws = draws
        self.dtype = dtype
        self.kept: list[StandIn] = []
        self.log: list[tuple[int, float, float]] = []
        self._images = data.images[data.work]
        self._labels = data.labels[data.work].to(self._images.device)

    def search(self, index: int) -> None:
        """Search a stand-in for one map; it is kept if it works.

        Args:
            index: of the map.
        """
        wanted = self.maps[index].to(self._labels.device)[self._labels]
        is_led = (wanted != STAYS) & (wanted != self._labels)
        if not bool(is_led.any()):
            return
        found = search_stand_in(
            self.model,
            self._images[is_led],
            wanted[is_led],
            steps=self.config.search_steps,
            batch=self.config.search_batch,
            price=self.config.mask_price,
            dtype=self.dtype,
            generator=self.draws,
        )
        self.log.append((index, found.pixels, found.success))
        if found.success >= self.config.least_success:
            self.kept.append(found)

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 logits of images under a stand-in of the bank."""
        which = int(torch.randint(len(self.kept), (), generator=self.draws))
        return self.model.logits(self.kept[which].put_on(images))


class Unlearning(Distilling):
    """Distilling under stand-ins, with further searches on the way.

    Args:
        model: the copy that is trained.
        bank: its stand-ins.
        every: steps between searches.
        dtype: of convolutions and matrix products.
    """

    def __init__(
        self,
        model: Suspect,
        teacher: Suspect,
        bank: StandInBank,
        *,
        every: int,
        dtype: torch.dtype | None,
    ) -> None:
        weight = bank.config.trigger_weight
        super().__init__(model, teacher, disturbed=bank, weight=weight, dtype=dtype)
        self.bank = bank
        self.every = every
        self._steps = 0
        self._left = bank.config.searches

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002 - the contract's
        """Search where it is time to."""
        self._steps += 1
        if self._left and self._steps % self.every == 0:
            self._left -= 1
            self.bank.search(self._left % len(self.bank.maps))


class UnlearnTriggersRepair(Repair[UnlearnTriggersConfig]):
    """Adversarial training against small universal triggers toward the named target.

    Nothing is changed where no scan accuses anything and no target is set, or where no stand-in
    works.
    """

    id = "unlearn_triggers"
    version = "1"
    summary = "searches stand-ins for the trigger and unlearns what they do"
    reference = "[NC19] §VI-C"
    config_type = UnlearnTriggersConfig
    is_training = True
    # Stand-ins are found where the backdoor is whole, and the suspect's answers are what is kept.
    starts_afresh = True
    reads_findings = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of searches, training, validation and the augmentation's choice.

        Counted for one target; a scan that names none, or several, makes it search for more.
        """
        config = self.config
        epochs, searches = config.epochs(data), config.starts + config.searches
        # Each search is judged on the work images.
        asked = (epochs + searches) * len(data.work)
        return Cost(
            forward=asked + (epochs + 4) * len(data.validation),
            forward_backward=searches * config.search_steps * config.search_batch
            + 2 * epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        maps, notes = self._maps(model, data, context)
        if not maps:
            return Change(notes=(*notes, "nothing was changed"))
        epochs = config.epochs(data)
        steps = epochs * config.epoch_steps(data)
        augmentation = config.augmentation(model, data, context)
        teacher = teacher_of(model)
        bank = StandInBank(
            model,
            data,
            maps,
            config,
            draws=generator(context.seed, self.id, "stand_ins"),
            dtype=context.search_dtype,
        )
        for index in range(len(maps)):
            for _ in range(config.starts):
                bank.search(index)
        if not bank.kept:
            return Change(
                details={"searches": _rows(bank)},
                notes=(*notes, "no stand-in for a trigger works: nothing was changed"),
            )
        log = train(
            model,
            data,
            context,
            schedule=config.schedule(epochs),
            objective=Unlearning(
                model,
                teacher,
                bank,
                every=max(1, steps // (config.searches + 1)),
                dtype=context.search_dtype,
            ),
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training"),
            name=self.full_id,
            keep=latest_within(
                context.max_accuracy_drop, epochs=epochs, before=context.accuracy_before
            ),
            is_batchnorm_frozen=True,
        )
        return Change(
            history=log.losses,
            details={
                "kept_epoch": log.kept,
                "validation_accuracies": list(log.accuracies),
                "searches": _rows(bank),
                "searches_are": "map, pixels of the mask, success",
                "maps": [led.tolist() for led in maps],
                "crop_padding": augmentation.padding,
                "is_flipped": augmentation.flip,
            },
            notes=(*notes, f"stand-ins unlearned: {len(bank.kept)} of {len(bank.log)} searched"),
        )

    def _maps(
        self, model: Suspect, data: RepairData, context: RepairContext
    ) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
        """Return where images are to be led, and what the report should say of it."""
        config, classes = self.config, model.num_classes
        if config.target is not None:
            return (map_to(config.target, classes),), ()
        named = label_maps(context.findings, classes)
        if named:
            return named, ()
        unnamed = "no scan names a target"
        if is_all_to_all(context.findings):
            return (), ("a scan says all-to-all, and not where each class goes",)
        if not accusing(context.findings) or classes > config.max_guessed:
            return (), (unnamed,)
        every = tuple(map_to(target, classes) for target in range(classes))
        bank = StandInBank(
            model,
            data,
            every,
            config,
            draws=generator(context.seed, self.id, "guess"),
            dtype=context.search_dtype,
        )
        for target in range(classes):
            bank.search(target)
        # A backdoor's class takes few pixels for many images ([NC19] §IV-B).
        ease = {t: won / pixels for t, pixels, won in bank.log if won >= config.least_success}
        if not ease:
            return (), (unnamed, "no class has a stand-in that works")
        guess = max(ease, key=lambda target: ease[target])
        _, pixels, success = next(row for row in bank.log if row[0] == guess)
        found = f"{pixels:.0f} pixels lead {success:.0%} of the images there"
        return (every[guess],), (f"{unnamed}: output {guess} has the easiest stand-in, {found}",)


def _rows(bank: StandInBank) -> list[Json]:
    return [list(row) for row in bank.log]
