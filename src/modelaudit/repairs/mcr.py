"""Mode connectivity repair ([MCR20]): a path of low loss leads away from the backdoored weights.

Between the suspect and its fine-tuned copy a curve of weights is trained to label clean images well
all along; somewhere on it the backdoor is lost. Both ends stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import ConfigError, RepairError
from modelaudit.repairs._curve import Curve, choose_place, visit, weights_of
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    augmentation_for,
    constant,
    cosine,
    train,
    validation_accuracy,
)
from modelaudit.repairs.base import Change, Repair, RepairContext
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.repairs._augment import Augmentation
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


def released_rate(peak: float) -> Callable[[float], float]:
    """Return the released code's rate: constant for one half, linear to 1 % at 90 %, then 1 %."""

    def rate(fraction: float) -> float:
        if fraction <= 0.5:
            return peak
        return peak * max(0.01, 1.0 - (fraction - 0.5) / 0.4 * 0.99)

    return rate


def connect(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    name: str,
    finetune: Schedule,
    curve: Schedule,
    curve_weight_decay: float,
    augmentation: Augmentation,
    seed: tuple[str, ...],
) -> tuple[Curve, tuple[float, ...]]:
    """Fine-tune the end and train the curve's inner point; the module is left anywhere.

    Args:
        model: the copy, with the suspect's weights.
        data: clean images.
        context: of the repair.
        name: of the progress tasks.
        finetune: schedule of the end.
        curve: schedule of the inner point, with a weight decay of 0: the regulariser is part of the
            loss.
        curve_weight_decay: of w(t).
        augmentation: of the work images.
        seed: parts of the derived seeds.

    Returns:
        The curve and the mean loss of each of its epochs.

    Raises:
        RepairError: the ends are equal, so that the curve is a point.
    """
    start = weights_of(model.module)
    train(
        model,
        data,
        context,
        schedule=finetune,
        objective=Objective(model, dtype=context.search_dtype),
        augmentation=augmentation,
        draws=generator(context.seed, *seed, "end"),
        name=f"{name} end",
    )
    end = weights_of(model.module)
    if all(torch.equal(a, b) for a, b in zip(start, end, strict=True)):
        raise RepairError(
            "expected fine-tuning to move the weights, it left them where they were; raise "
            "learning_rate"
        )
    objective = Curve(
        model,
        start,
        end,
        dtype=context.search_dtype,
        weight_decay=curve_weight_decay,
        draws=generator(context.seed, *seed, "place"),
        pruned=context.pruned,
    )
    log = train(
        model,
        data,
        context,
        schedule=curve,
        objective=objective,
        augmentation=augmentation,
        draws=generator(context.seed, *seed, "curve"),
        name=name,
        trained=objective.inner,
    )
    return objective, log.losses


@dataclass(frozen=True, slots=True, kw_only=True)
class McrPaperCodeConfig:
    """Hyper-parameters of `McrPaperCodeRepair`.

    Attributes:
        t: place taken, from the backdoored end; [ANP21] compares at 0.3.
        finetune_epochs: passes over the work images for the clean end.
        finetune_learning_rate: constant.
        epochs: passes for the curve.
        learning_rate: at the start: constant for one half, then linearly down to 1 %.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of w(t), in the loss.
        flip: whether half of the images are mirrored.
    """

    t: float = 0.3
    finetune_epochs: int = 25
    finetune_learning_rate: float = 0.01
    epochs: int = 100
    learning_rate: float = 0.01
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 1e-4
    flip: bool = True

    def __post_init__(self) -> None:
        require_range(self, "t", low=0, high=1)
        require_range(self, "finetune_epochs", low=1)
        require_range(self, "finetune_learning_rate", low=0, is_low_open=True)
        require_range(self, "epochs", low=1)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)


class McrPaperCodeRepair(Repair[McrPaperCodeConfig]):
    """The released code's curve, taken at a fixed place."""

    id = "mcr"
    version = "1"
    summary = "mode connectivity at a fixed place of the curve"
    reference = "[MCR20] released code"
    config_type = McrPaperCodeConfig
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of end, curve and the place taken."""
        config, images = self.config, len(data.work)
        return Cost(
            forward=images + len(data.validation),
            forward_backward=(config.finetune_epochs + config.epochs) * images,
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        curve, losses = connect(
            model,
            data,
            context,
            name=self.full_id,
            finetune=Schedule(
                epochs=config.finetune_epochs,
                batch=config.batch,
                rate=constant(config.finetune_learning_rate),
                momentum=config.momentum,
            ),
            curve=Schedule(
                epochs=config.epochs,
                batch=config.batch,
                rate=released_rate(config.learning_rate),
                momentum=config.momentum,
                weight_decay=0.0,
            ),
            curve_weight_decay=config.weight_decay,
            augmentation=augmentation_for(model, data, context, crop=True, flip=config.flip),
            seed=(self.id, "paper_code"),
        )
        place = visit(curve, data, context, config.t, batch=config.batch)
        return Change(history=losses, details={"t": place.t})


@dataclass(frozen=True, slots=True, kw_only=True)
class McrConfig(TrainingConfig):
    """Hyper-parameters of `McrRepair`, beside those of the training.

    Attributes:
        places: places on the curve to choose from, 0 at the suspect and 1 at the fine-tuned end.
        finetune_epochs: passes over the work images for the fine-tuned end.
        finetune_learning_rate: at its start; half a cosine leads down to 0.
        epochs: passes for the curve.
        learning_rate: of the curve, at the start; half a cosine leads down to 0.
        batch: images per step, and the statistical batch of re-estimation.
        weight_decay: of w(t), in the loss.
    """

    places: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    finetune_epochs: int = 8
    finetune_learning_rate: float = 0.01
    epochs: int = 16
    batch: int = 64
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if not self.places or not all(0 < t < 1 for t in self.places):
            raise ConfigError(
                f"McrConfig.places must hold numbers between 0 and 1, got {self.places!r}"
            )
        require_range(self, "finetune_epochs", low=1)
        require_range(self, "finetune_learning_rate", low=0, is_low_open=True)
        require_range(self, "epochs", low=1)


class McrRepair(Repair[McrConfig]):
    """A curve from the suspect to its fine-tuned copy, taken where validation is best.

    Needs labels: on the model's own ones the fine-tuned end hardly moves, and a curve between two
    equal points repairs nothing.
    """

    id = "mcr"
    version = "1"
    summary = "walks a curve of low loss from the model to its fine-tuned copy"
    reference = "[MCR20] §3"
    config_type = McrConfig
    variants = MappingProxyType({"paper_code": McrPaperCodeRepair})
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of end, curve, all places and of the augmentation's choice."""
        config, images = self.config, len(data.work)
        visits = len(config.places) + 1
        return Cost(
            forward=visits * images + (visits + 4) * len(data.validation),
            forward_backward=(config.finetune_epochs + config.epochs) * images,
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        before = validation_accuracy(model, data, context)
        curve, losses = connect(
            model,
            data,
            context,
            name=self.full_id,
            finetune=Schedule(
                epochs=config.finetune_epochs,
                batch=config.batch,
                rate=cosine(config.finetune_learning_rate),
                momentum=config.momentum,
                max_gradient=config.max_gradient,
            ),
            curve=replace(config.schedule(config.epochs), weight_decay=0.0),
            curve_weight_decay=config.weight_decay,
            augmentation=config.augmentation(model, data, context),
            seed=(self.id,),
        )
        places = [visit(curve, data, context, t, batch=config.batch) for t in config.places]
        best = choose_place(places, floor=before - context.max_accuracy_drop)
        visit(curve, data, context, best.t, batch=config.batch)
        return Change(
            history=losses,
            details={
                "t": best.t,
                "places": [place.t for place in places],
                "validation_accuracies": [place.accuracy for place in places],
                "validation_losses": [place.loss for place in places],
            },
        )
