"""Neural attention distillation ([NAD21]): the fine-tuned copy teaches where to look.

A copy fine-tuned on the clean images is the teacher; the suspect is trained to agree with it on
where its feature maps are active, which a trigger's corner is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.config import require_range
from modelaudit.errors import ConfigError
from modelaudit.functional.attention import attention_distance
from modelaudit.hardware import fast_format
from modelaudit.repairs._distil import twin
from modelaudit.repairs._stages import Stage, find_stages, recorded
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    augmentation_for,
    module_state,
    train,
)
from modelaudit.repairs._walk_back import WayBack, passes, standing, walk_back
from modelaudit.repairs.base import Change, Repair, RepairContext
from modelaudit.results import Cost
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.repairs._augment import Augmentation
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect

#: Weights of the attention terms, first stage first; the released code's.
_WEIGHTS = (500.0, 1000.0, 1000.0)


class AttentionObjective(Objective):
    """CE + sum over stages of weight x attention distance to a frozen teacher ([NAD21] Eq. 3).

    Args:
        model: the student, which is trained.
        dtype: of convolutions and matrix products; attention is computed in float32.
        teacher: the frozen network, in eval mode; its statistics never move.
        student_maps: returns the student's maps of its latest pass, as `recorded` does.
        teacher_maps: the teacher's.
        weights: one per stage.
    """

    def __init__(
        self,
        model: Suspect,
        *,
        dtype: torch.dtype | None,
        teacher: Suspect,
        student_maps: Callable[[], list[Tensor]],
        teacher_maps: Callable[[], list[Tensor]],
        weights: Sequence[float],
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.teacher = teacher
        self.student_maps = student_maps
        self.teacher_maps = teacher_maps
        self.weights = tuple(weights)

    def distances(self) -> list[Tensor]:
        """Return the attention distance of each stage in the latest passes of both networks."""
        pairs = zip(self.student_maps(), self.teacher_maps(), strict=True)
        return [attention_distance(student, teacher) for student, teacher in pairs]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of all terms."""
        with torch.no_grad(), self.teacher.autocast(self.dtype):
            self.teacher.logits(images)
        loss = F.cross_entropy(self.logits(images), labels)
        for weight, distance in zip(self.weights, self.distances(), strict=True):
            loss = loss + weight * distance
        return loss


def stage_weights(weights: Sequence[float], stages: Sequence[Stage]) -> tuple[float, ...]:
    """Return a weight for each stage: those of the last ones where the network has fewer.

    Raises:
        ConfigError: there are no weights.
    """
    if not weights:
        raise ConfigError("attention_weights must have an entry per stage, got none")
    return tuple(weights[-len(stages) :])


def distil(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    name: str,
    weights: tuple[float, ...],
    teach: Schedule,
    learn: Schedule,
    augmentation: Augmentation,
    hole: int,
    is_walked_back: bool,
    seed: tuple[str, ...],
) -> Change:
    """Fine-tune a teacher, then train `model` towards its answers and its attention.

    Args:
        model: the copy; it becomes the student.
        data: clean images with labels.
        context: of the repair.
        name: of the progress tasks.
        weights: of the attention terms, one per stage, first stage first.
        teach: schedule of the teacher.
        learn: schedule of the student.
        augmentation: of the work images.
        hole: side of the black square that is cut out of each of the student's images; 0 for none.
        is_walked_back: whether the student may keep a part of its change only, for the accuracy.
        seed: parts of the derived seeds.
    """
    before = standing(model, data, context, augmentation) if is_walked_back else None
    start = module_state(model.module) if is_walked_back else {}
    stages = find_stages(model, count=len(weights))
    teacher = twin(model)
    for parameter in teacher.module.parameters():
        parameter.requires_grad_(True)
    taught = train(
        teacher,
        data,
        context,
        schedule=teach,
        objective=Objective(teacher, dtype=context.search_dtype),
        augmentation=augmentation,
        draws=generator(context.seed, *seed, "teacher"),
        name=f"{name} teacher",
    )
    teacher.module.to(memory_format=fast_format(teacher.module, teacher.device))
    teacher.module.requires_grad_(False)
    with (
        recorded(model.module, stages) as student_maps,
        recorded(teacher.module, stages) as teacher_maps,
    ):
        objective = AttentionObjective(
            model,
            dtype=context.search_dtype,
            teacher=teacher,
            student_maps=student_maps,
            teacher_maps=teacher_maps,
            weights=stage_weights(weights, stages),
        )
        log = train(
            model,
            data,
            context,
            schedule=learn,
            objective=objective,
            augmentation=replace(augmentation, hole=hole),
            draws=generator(context.seed, *seed, "student"),
            name=name,
        )
    # The recorders are gone: what is looked at now is only whether the answers are right.
    way = WayBack()
    if before is not None:
        way = walk_back(model, start, data, context, before=before)
    return Change(
        history=log.losses,
        details={
            "stages": [stage.name for stage in stages],
            "stage_sizes": [list(stage.shape) for stage in stages],
            "teacher_losses": list(taught.losses),
            **way.details,
        },
        notes=way.notes,
    )


def released_rate(peak: float, epochs: int) -> Callable[[float], float]:
    """Return the released code's steps for 20 epochs: peak for two, a tenth, at the end 1/1000."""

    def rate(fraction: float) -> float:
        epoch = fraction * epochs
        return peak if epoch < 2 else peak / 10 if epoch < 19 else peak / 1000

    return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class NadPaperCodeConfig:
    """Hyper-parameters of `NadPaperCodeRepair`.

    Attributes:
        teacher_epochs: of the teacher's fine-tuning.
        epochs: of the student's.
        learning_rate: of both at the start: two epochs, a tenth until the 19th, then a thousandth.
        attention_weights: of the attention terms, first stage first.
        batch: images per step.
        momentum: Nesterov's, of SGD.
        weight_decay: of SGD.
        flip: whether half of the images are mirrored.
        hole: side of the square cut out of the student's images.
    """

    teacher_epochs: int = 10
    epochs: int = 20
    learning_rate: float = 0.1
    attention_weights: tuple[float, ...] = _WEIGHTS
    batch: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    flip: bool = True
    hole: int = 2

    def __post_init__(self) -> None:
        require_range(self, "teacher_epochs", low=1)
        require_range(self, "epochs", low=1)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1, is_low_open=True)
        require_range(self, "weight_decay", low=0)
        require_range(self, "hole", low=0)


class NadPaperCodeRepair(Repair[NadPaperCodeConfig]):
    """NAD as released, the last epoch instead of the one that is best on triggered test images."""

    id = "nad"
    version = "1"
    summary = "neural attention distillation with the released code's schedule"
    reference = "[NAD21] released code"
    config_type = NadPaperCodeConfig
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of teacher and student."""
        config, images = self.config, len(data.work)
        return Cost(
            forward=config.epochs * images + 2,
            forward_backward=(config.teacher_epochs + config.epochs) * images,
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        learn = Schedule(
            epochs=config.epochs,
            batch=config.batch,
            rate=released_rate(config.learning_rate, config.epochs),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            is_nesterov=True,
        )
        teach = replace(
            learn,
            epochs=config.teacher_epochs,
            rate=released_rate(config.learning_rate, config.teacher_epochs),
        )
        return distil(
            model,
            data,
            context,
            name=self.full_id,
            weights=config.attention_weights,
            teach=teach,
            learn=learn,
            augmentation=augmentation_for(model, data, context, crop=True, flip=config.flip),
            hole=config.hole,
            is_walked_back=False,
            seed=(self.id, "paper_code"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NadConfig(TrainingConfig):
    """Hyper-parameters of `NadRepair`, beside those of the training.

    Attributes:
        teacher_epochs: passes of the teacher's fine-tuning over the work images.
        epochs: of the student's.
        learning_rate: of teacher and student at the start; half a cosine leads down to 0. The
            released code's 0.1 ruins a well-trained network that sees few images.
        attention_weights: of the attention terms, first stage first; as many stages from the end of
            the network are used.
        momentum: Nesterov's, of SGD.
    """

    teacher_epochs: int = 8
    epochs: int = 8
    attention_weights: tuple[float, ...] = _WEIGHTS
    batch: int = 64
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        require_range(self, "teacher_epochs", low=1)
        require_range(self, "epochs", low=1)
        # Nesterov's momentum cannot be 0.
        require_range(self, "momentum", low=0, high=1, is_low_open=True)
        TrainingConfig.__post_init__(self)


class NadRepair(Repair[NadConfig]):
    """Cross-entropy and attention of a fine-tuned teacher; needs labels, as the teacher does.

    On the model's own labels the teacher would hardly differ from the suspect, and its attention
    would teach the backdoor along with the rest.
    """

    id = "nad"
    version = "3"
    summary = "distils the attention of a fine-tuned copy into the model"
    reference = "[NAD21] Eq. 1-3"
    config_type = NadConfig
    variants = MappingProxyType({"paper_code": NadPaperCodeRepair})
    is_training = True
    requires_gradients = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of teacher, student, validation and of the augmentation's choice."""
        config, images = self.config, len(data.work)
        return Cost(
            forward=config.epochs * images + passes(data) + 3 * len(data.validation) + 2,
            forward_backward=(config.teacher_epochs + config.epochs) * images,
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        learn = replace(config.schedule(config.epochs), is_nesterov=True)
        return distil(
            model,
            data,
            context,
            name=self.full_id,
            weights=config.attention_weights,
            teach=replace(learn, epochs=config.teacher_epochs),
            learn=learn,
            augmentation=config.augmentation(model, data, context),
            hole=0,
            is_walked_back=True,
            seed=(self.id,),
        )
