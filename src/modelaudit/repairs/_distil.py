"""Self-distillation: a copy keeps the suspect's answers, on clean images and on disturbed ones."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs._training import Objective
from modelaudit.suspect import Suspect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def twin(model: Suspect) -> Suspect:
    """Return the suspect of a copy of `model`'s module, whose passes `model` counts."""
    other = Suspect(
        copy.deepcopy(model.module),
        preprocessing=model.preprocessing,
        input_size=model.input_size,
        input_channels=model.input_channels,
        num_classes=model.num_classes,
        device=model.device,
    )
    other.passes = model.passes
    return other


def teacher_of(model: Suspect) -> Suspect:
    """Return a frozen copy of `model` as it is now, whose passes `model` counts."""
    teacher = twin(model)
    teacher.module.requires_grad_(requires_grad=False)
    return teacher


def answers(teacher: Suspect, images: Tensor, *, dtype: torch.dtype | None) -> Tensor:
    """Return a frozen network's probabilities ``(N, K)``, float32; a forward pass of each image."""
    with torch.no_grad(), teacher.autocast(dtype):
        return teacher.logits(images).softmax(1)


class Distilling(Objective):
    """CE to a frozen teacher's answers, on clean images and on the same images disturbed.

    Up to the teacher's entropy the first term is KL(teacher || model). Few images are soon known by
    heart; probabilities say more about each of them than its label does, and no label is needed.
    What the teacher makes of disturbed images, which act as triggered ones do, is never asked: they
    are to keep the answer of the image as it is. Without the other terms the model would learn the
    backdoor along with the target class.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        teacher: a frozen network in eval mode, such as the suspect itself.
        disturbed: what maps images to the logits that `model` has for them under a disturbance,
            with their graph, and the weight of its term; each is called once a step, 0 leaves it
            out.
        dtype: of convolutions and matrix products; None for float32.
    """

    def __init__(
        self,
        model: Suspect,
        teacher: Suspect,
        *,
        disturbed: Sequence[tuple[Callable[[Tensor], Tensor], float]],
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.teacher = teacher
        self.disturbed = [(logits, weight) for logits, weight in disturbed if weight]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - the teacher answers
        """Return all terms in nats; the teacher's forward pass of each image is counted."""
        wanted = answers(self.teacher, images, dtype=self.dtype)
        loss = _cross_entropy(self.logits(images), wanted)
        for logits, weight in self.disturbed:
            with self.model.autocast(self.dtype):
                disturbed = logits(images)
            loss = loss + weight * _cross_entropy(disturbed, wanted)
        return loss


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return -(wanted * logits.log_softmax(1)).sum(1).mean()
