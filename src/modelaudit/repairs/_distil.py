"""Self-distillation: a pruned copy learns the answers of the suspect on clean images again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.repairs._displaced import displaced
from modelaudit.repairs._training import Objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs._displaced import Displacement
    from modelaudit.suspect import Suspect


class Distilling(Objective):
    """CE to a frozen teacher's answers, on clean images and on clean images that are displaced.

    Up to the teacher's entropy the first term is KL(teacher || model). Few images are soon known by
    heart; probabilities say more about each of them than its label does, and no label is needed.
    What the teacher makes of displaced images, which act as triggered ones do, is never asked: they
    are to keep the answer of the image as it is. Without the second term the model would learn the
    backdoor along with the target class, by channels that are left.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        teacher: a frozen network in eval mode, such as the suspect itself.
        ways: displacements, one of which is drawn for each batch, and of that the first layers, as
            many as drawn too.
        weight: of the second term.
        draws: CPU generator of both choices.
        dtype: of convolutions and matrix products; None for float32.
    """

    def __init__(
        self,
        model: Suspect,
        teacher: Suspect,
        *,
        ways: Sequence[Displacement],
        weight: float,
        draws: torch.Generator,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.teacher = teacher
        self.ways = tuple(ways)
        self.weight = weight
        self.draws = draws

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - the teacher answers
        """Return both terms in nats; the teacher's forward pass of each image is counted."""
        with torch.no_grad(), self.teacher.autocast(self.dtype):
            wanted = self.teacher.logits(images).softmax(1)
        loss = _cross_entropy(self.logits(images), wanted)
        if not self.weight:
            return loss
        way = self.ways[self._below(len(self.ways))]
        part = way.first(1 + self._below(len(way.means)))
        with displaced(self.model, part):
            moved = self.logits(images)
        return loss + self.weight * _cross_entropy(moved, wanted)

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.draws))


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return -(wanted * logits.log_softmax(1)).sum(1).mean()
