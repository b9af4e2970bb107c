"""Plain fine-tuning on clean images: the baseline of every training repair.

The clean images do not touch the backdoor, so that nothing but forgetting removes it. With a small
learning rate a strong patch or blend backdoor stays ([BAN24] Table 3: 88 and 100 % of attacks still
succeed); with a large one accuracy goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    augmentation_for,
    constant,
    freeze,
    module_state,
    train,
)
from modelaudit.repairs._walk_back import passes, standing, walk_back
from modelaudit.repairs.base import Change, Repair, RepairContext
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePaperCodeConfig:
    """Hyper-parameters of `FinetunePaperCodeRepair`, the baseline of [BAN24].

    Attributes:
        epochs: passes over the work images; the paper says 25, the loop of its code makes 24.
        learning_rate: constant.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        flip: whether half of the images are mirrored; their loader for CIFAR does, that for road
            signs does not.
    """

    epochs: int = 24
    learning_rate: float = 0.005
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    flip: bool = True

    def __post_init__(self) -> None:
        require_range(self, "epochs", low=1)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)


class FinetunePaperCodeRepair(Repair[FinetunePaperCodeConfig]):
    """The fine-tuning that BAN's tables compare with: constant rate, fixed order, last epoch."""

    id = "finetune"
    version = "1"
    summary = "plain fine-tuning as the baseline of BAN's tables"
    reference = "[BAN24] released code"
    config_type = FinetunePaperCodeConfig
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of training."""
        return Cost(forward_backward=self.config.epochs * len(data.work))

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        log = train(
            model,
            data,
            context,
            schedule=Schedule(
                epochs=config.epochs,
                batch=config.batch,
                rate=constant(config.learning_rate),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                is_shuffled=False,
            ),
            objective=Objective(model, dtype=context.search_dtype),
            augmentation=augmentation_for(model, data, context, crop=True, flip=config.flip),
            draws=generator(context.seed, self.id, "paper_code"),
            name=self.full_id,
        )
        return Change(history=log.losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """Hyper-parameters of `FinetuneRepair`, beside those of the training.

    Attributes:
        epochs: passes over the work images.
        frozen: beginnings of the names of parameters that stay as they are.
        is_batchnorm_frozen: whether BatchNorm layers use and keep their running statistics.
    """

    epochs: int = 8
    frozen: tuple[str, ...] = ()
    is_batchnorm_frozen: bool = False

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_range(self, "epochs", low=1)


class FinetuneRepair(Repair[FinetuneConfig]):
    """Cross-entropy on the clean images; needs labels.

    On the model's own labels its loss is small from the start and asks for nothing new: such a run
    would change little and repair less. So it refuses, where `finetune_noise` does not.
    """

    id = "finetune"
    version = "3"
    summary = "plain fine-tuning on clean images"
    reference = "[BAN24] Table 3, baseline"
    config_type = FinetuneConfig
    variants = MappingProxyType({"paper_code": FinetunePaperCodeRepair})
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of training, of validation and of the augmentation's."""
        epochs = self.config.epochs
        return Cost(
            forward=passes(data) + 3 * len(data.validation),
            forward_backward=epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        freeze(model.module, config.frozen)
        augmentation = config.augmentation(model, data, context)
        before = standing(model, data, context, augmentation)
        start = module_state(model.module)
        log = train(
            model,
            data,
            context,
            schedule=config.schedule(config.epochs),
            objective=Objective(model, dtype=context.search_dtype),
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training"),
            name=self.full_id,
            is_batchnorm_frozen=config.is_batchnorm_frozen,
        )
        way = walk_back(model, start, data, context, before=before)
        return Change(
            history=log.losses,
            details={
                **way.details,
                "crop_padding": augmentation.padding,
                "is_flipped": augmentation.flip,
            },
            notes=way.notes,
        )
