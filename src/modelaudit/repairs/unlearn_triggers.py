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
by its running statistics, since those of a batch that all bears the trigger would hide it. These
are estimated anew on clean images along the way and at the end: done only at the end, that can move
the network to where nothing was unlearned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.repairs._augment import augment
from modelaudit.repairs._batchnorm import reestimate_statistics
from modelaudit.repairs._distil import Distilling, teacher_of
from modelaudit.repairs._stand_ins import StandIn, search_stand_in
from modelaudit.repairs._targets import STAYS, label_maps, map_to
from modelaudit.repairs._training import (
    Schedule,
    augmentation_for,
    cosine,
    latest_within,
    train,
)
from modelaudit.repairs.base import Change, Repair
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnTriggersConfig:
    """Hyper-parameters of `UnlearnTriggersRepair`.

    Attributes:
        target: class that images are led to; None takes what the scan named, all-to-all included.
        starts: searches on the suspect before the training, for each target.
        searches: further searches on the network in training, evenly over its steps.
        search_steps: steps of a search.
        search_batch: images of such a step.
        mask_price: nats for a mask that covers the whole image: what a stand-in must be worth. A
            3x3 patch on 32x32 pixels costs 0.9 of the default.
        least_success: share of images that a stand-in has to lead to the target, or it is
            dropped.
        steps: of the training, whatever the number of images.
        trigger_weight: of the loss under stand-ins, beside that on clean images.
        learning_rate: at the start; half a cosine leads down to 0.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        crop: whether images are cropped at random after padding; None asks the model, which labels
            cropped images as well as plain ones if it was trained on such.
        flip: whether half of the images are mirrored; None asks the model in the same way, since
            mirrored road signs and digits are other ones.
    """

    target: int | None = None
    starts: int = 3
    searches: int = 2
    search_steps: int = 80
    search_batch: int = 64
    mask_price: float = 100.0
    least_success: float = 0.3
    steps: int = 300
    trigger_weight: float = 0.75
    learning_rate: float = 0.003
    batch: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: bool | None = None
    flip: bool | None = None

    def __post_init__(self) -> None:
        require_range(self, "target", low=0)
        require_range(self, "starts", low=1)
        require_range(self, "searches", low=0)
        require_range(self, "search_steps", low=1)
        require_range(self, "search_batch", low=1)
        require_range(self, "mask_price", low=0)
        require_range(self, "least_success", low=0, high=1)
        require_range(self, "steps", low=1)
        require_range(self, "trigger_weight", low=0)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)

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
        refresh: estimates the running statistics of `model` anew; called before each search.
        every: steps between searches.
        dtype: of convolutions and matrix products.
    """

    def __init__(
        self,
        model: Suspect,
        teacher: Suspect,
        bank: StandInBank,
        *,
        refresh: Callable[[], None],
        every: int,
        dtype: torch.dtype | None,
    ) -> None:
        weight = bank.config.trigger_weight
        super().__init__(model, teacher, disturbed=bank, weight=weight, dtype=dtype)
        self.bank = bank
        self.refresh = refresh
        self.every = every
        self._steps = 0
        self._left = bank.config.searches

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:  # noqa: ARG002 - the contract's
        """Refresh and search where it is time to."""
        self._steps += 1
        if self._left and self._steps % self.every == 0:
            self._left -= 1
            self.refresh()
            self.bank.search(self._left % len(self.bank.maps))


class UnlearnTriggersRepair(Repair[UnlearnTriggersConfig]):
    """Adversarial training against small universal triggers toward the named target.

    Nothing is changed where no scan accuses a target, or where no stand-in works.
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
        """Return the passes of searches, training, validation and the augmentation's choice."""
        config = self.config
        epochs, searches = config.epochs(data), config.starts + config.searches
        # Each search is judged on the work images; refreshes precede the further ones and the end.
        asked = (epochs + searches + config.searches + 1) * len(data.work)
        return Cost(
            forward=asked + (epochs + 4) * len(data.validation),
            forward_backward=searches * config.search_steps * config.search_batch
            + 2 * epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        if config.target is None:
            maps = label_maps(context.findings, model.num_classes)
        else:
            maps = (map_to(config.target, model.num_classes),)
        if not maps:
            return Change(notes=("no scan names a target: nothing was changed",))
        epochs = config.epochs(data)
        steps = epochs * config.epoch_steps(data)
        augmentation = augmentation_for(model, data, context, crop=config.crop, flip=config.flip)
        draws = generator(context.seed, self.id, "statistics")

        def refresh() -> None:
            seen = augment(data.images[data.work], augmentation, generator=draws)
            reestimate_statistics(model, seen, batch=context.batch_size)

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
                notes=("no stand-in for a trigger works: nothing was changed",),
            )
        log = train(
            model,
            data,
            context,
            schedule=Schedule(
                epochs=epochs,
                batch=config.batch,
                rate=cosine(config.learning_rate),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            ),
            objective=Unlearning(
                model,
                teacher,
                bank,
                refresh=refresh,
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
        refresh()
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
            notes=(f"stand-ins unlearned: {len(bank.kept)} of {len(bank.log)} searched",),
        )


def _rows(bank: StandInBank) -> list[Json]:
    return [list(row) for row in bank.log]
