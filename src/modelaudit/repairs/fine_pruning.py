"""Fine-pruning: remove the feature channels that clean images leave dormant, then fine-tune.

[FP18]: a backdoor may live in channels that clean images do not use. The classifier is made blind
to them, the most dormant first, and fine-tuning mends what that costs (and reaches the channels
that the backdoor shares with clean images).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._columns import FeatureColumns, feature_columns
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    augmentation_for,
    cosine,
    module_state,
    train,
)
from modelaudit.repairs._walk_back import passes, standing, walk_back
from modelaudit.repairs.base import Change, Repair, RepairContext
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect


class BlindObjective(Objective):
    """Cross-entropy of a classifier that stays blind to pruned channels.

    Args:
        model: the copy that is trained.
        dtype: of convolutions and matrix products; None for float32.
        columns: where the channels enter the classifier.
        channels: those that are pruned.
    """

    def __init__(
        self,
        model: Suspect,
        *,
        dtype: torch.dtype | None,
        columns: FeatureColumns,
        channels: Sequence[int],
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.columns = columns
        self.channels = tuple(channels)

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Zero the pruned inputs and their momentum: they have gradients, and would come back."""
        self.columns.zero(self.model.module, self.channels, optimiser)


def mean_features(model: Suspect, images: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return each channel's mean activation and every image's features.

    Args:
        model: in eval mode.
        images: ``(N, C, H, W)`` in [0, 1]; N forward passes are counted.
        batch_size: images computed together.

    Returns:
        Means over images and places, ``(F,)`` float64; and features ``(N, F, h, w)`` float32.
    """
    with torch.no_grad():
        features = torch.cat([model.features(part) for part in images.split(batch_size)])
    return features.double().mean((0, 2, 3)), features


def dormant_order(activations: Tensor) -> list[int]:
    """Return the channels from the most dormant to the most active, ties by index."""
    return activations.argsort(stable=True).tolist()


def prune_dormant(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    columns: FeatureColumns,
    *,
    step_fraction: float,
    max_drop: float,
    max_fraction: float,
) -> tuple[int, ...]:
    """Prune dormant channels step by step while the validation accuracy allows, in place.

    methods/repairs.md §6. The step that goes over the limit is taken back.

    Args:
        model: the copy, in eval mode.
        data: `work` ranks, `validation` stops.
        context: gives the batch size.
        columns: where the channels enter the classifier.
        step_fraction: share of all channels pruned at a time, at least one.
        max_drop: validation accuracy that pruning may cost before the fine-tuning.
        max_fraction: share of channels that may go.

    Returns:
        The pruned channels in the order in which they went.
    """
    size = context.batch_size
    means, _ = mean_features(model, data.images[data.work], batch_size=size)
    _, held_out = mean_features(model, data.images[data.validation], batch_size=size)
    labels = data.labels[data.validation].to(model.device)

    def accuracy(pruned: Sequence[int]) -> float:
        right = 0
        with torch.no_grad():
            for part, truth in zip(held_out.split(size), labels.split(size), strict=True):
                blind = part.clone()
                blind[:, list(pruned)] = 0
                right += int((model.head(blind).argmax(1) == truth).sum())
        return right / len(labels)

    order = dormant_order(means)
    step = max(1, round(step_fraction * len(order)))
    floor = accuracy(()) - max_drop - ROUNDING
    kept = 0
    while (more := kept + step) <= max_fraction * len(order) and accuracy(order[:more]) >= floor:
        kept = more
    pruned = tuple(order[:kept])
    columns.zero(model.module, pruned)
    return pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class FinePruningPaperCodeConfig:
    """Hyper-parameters of `FinePruningPaperCodeRepair`.

    Attributes:
        fraction: share of the channels that is pruned; the released code prunes 48 of 60.
        epochs: passes over the work images.
        learning_rate: at the start; half a cosine leads down to 0.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        flip: whether half of the images are mirrored.
    """

    fraction: float = 0.8
    epochs: int = 100
    learning_rate: float = 0.01
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    flip: bool = True

    def __post_init__(self) -> None:
        require_range(self, "fraction", low=0, high=1)
        require_range(self, "epochs", low=1)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)


class FinePruningPaperCodeRepair(Repair[FinePruningPaperCodeConfig]):
    """A fixed share of channels, as the authors' code prunes; fine-tuning as BackdoorBench's."""

    id = "fine_pruning"
    version = "1"
    summary = "a fixed share of dormant channels pruned, then long fine-tuning"
    reference = "[FP18] released code"
    config_type = FinePruningPaperCodeConfig
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes of ranking and fine-tuning."""
        return Cost(
            forward=len(data.work) + _probe_passes(suspect),
            forward_backward=self.config.epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        columns = feature_columns(model)
        means, _ = mean_features(model, data.images[data.work], batch_size=context.batch_size)
        order = dormant_order(means)
        pruned = tuple(order[: round(config.fraction * len(order))])
        columns.zero(model.module, pruned)
        log = train(
            model,
            data,
            context,
            schedule=Schedule(
                epochs=config.epochs,
                batch=config.batch,
                rate=cosine(config.learning_rate),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            ),
            objective=BlindObjective(
                model, dtype=context.search_dtype, columns=columns, channels=pruned
            ),
            augmentation=augmentation_for(model, data, context, crop=True, flip=config.flip),
            draws=generator(context.seed, self.id, "paper_code"),
            name=self.full_id,
        )
        return Change(
            pruned=_pruned(model, pruned),
            history=log.losses,
            details=_details(model, columns, pruned),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinePruningConfig(TrainingConfig):
    """Hyper-parameters of `FinePruningRepair`, beside those of the training.

    Attributes:
        step_fraction: share of the feature channels that is pruned at a time.
        max_drop: validation accuracy that pruning may cost before the fine-tuning mends it.
        max_fraction: share of the channels that may go.
        epochs: passes over the work images; 0 leaves out the fine-tuning.
    """

    step_fraction: float = 0.01
    max_drop: float = 0.01
    max_fraction: float = 0.95
    epochs: int = 8

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_range(self, "step_fraction", low=0, high=1, is_low_open=True)
        require_range(self, "max_drop", low=0, high=1)
        require_range(self, "max_fraction", low=0, high=1)
        require_range(self, "epochs", low=0)


class FinePruningRepair(Repair[FinePruningConfig]):
    """Dormant feature channels pruned as far as the accuracy allows, then fine-tuning.

    Ranking needs no labels, and the model's own ones stop the pruning just as well; with them the
    fine-tuning mostly mends the pruning.
    """

    id = "fine_pruning"
    version = "3"
    summary = "prunes feature channels that clean images leave dormant, then fine-tunes"
    reference = "[FP18] §3.3"
    config_type = FinePruningConfig
    variants = MappingProxyType({"paper_code": FinePruningPaperCodeRepair})
    is_training = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes of ranking, fine-tuning, validation and of the augmentation's choice.

        Pruning itself runs the head alone, where that can be cut off.
        """
        epochs = self.config.epochs
        trials = 0
        if suspect.split is not None and suspect.split.method == "injection":
            trials = 2 + int(self.config.max_fraction * suspect.split.feature_shape[0])
        return Cost(
            forward=len(data.work)
            + passes(data)
            + (5 + trials) * len(data.validation)
            + _probe_passes(suspect),
            forward_backward=epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        columns = feature_columns(model)
        augmentation = config.augmentation(model, data, context)
        before = standing(model, data, context, augmentation) if config.epochs else None
        pruned = prune_dormant(
            model,
            data,
            context,
            columns,
            step_fraction=config.step_fraction,
            max_drop=config.max_drop,
            max_fraction=config.max_fraction,
        )
        gone, details = _pruned(model, pruned), _details(model, columns, pruned)
        if before is None:
            return Change(pruned=gone, details=details)
        start = module_state(model.module)
        log = train(
            model,
            data,
            context,
            schedule=config.schedule(config.epochs),
            objective=BlindObjective(
                model, dtype=context.search_dtype, columns=columns, channels=pruned
            ),
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training"),
            name=self.full_id,
        )
        # It leads to the pruned network: what is zero at both ends is zero wherever it ends.
        way = walk_back(model, start, data, context, before=before)
        return Change(
            pruned=gone, history=log.losses, details=details | way.details, notes=way.notes
        )


def _pruned(model: Suspect, channels: Sequence[int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what `Change.pruned` holds: the classifier no longer reads these channels."""
    assert model.split is not None
    return ((model.split.point, tuple(sorted(channels))),) if channels else ()


def _details(model: Suspect, columns: FeatureColumns, pruned: Sequence[int]) -> dict[str, Json]:
    assert model.split is not None
    return {
        "pruned_layer": columns.layer,
        "feature_point": model.split.point,
        "feature_channels": len(columns.columns),
        "pruned_channels": list(pruned),
    }


def _probe_passes(suspect: Suspect) -> int:
    """Return the passes of `feature_columns`: its head may have to run the whole network."""
    if suspect.split is None or suspect.split.method != "injection":
        return 0
    return suspect.split.feature_shape[0] + 1
