"""Validation images seen several times, cropped and mirrored as the network bears it.

A few hundred images tell how much accuracy a repair has cost to two points at best, for what lies
near a boundary falls on either side of it by luck. Over several views of each image it falls on
each side in part (docs/adr/0022-several-views.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.repairs._augment import augment
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.repairs._augment import Augmentation
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect

#: Views of each validation image.
VIEWS = 8


def views(augmentation: Augmentation) -> int:
    """Return how often each image is seen: once where the network bears neither crop nor mirror."""
    return VIEWS if augmentation.padding or augmentation.flip else 1


def view_logits(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Ask a network about views of the validation images, in float32.

    Args:
        model: in eval mode.
        data: `validation` and labels.
        context: gives the batch size, and the seed of the views: the same whenever it is asked.
        augmentation: what the network bears.

    Returns:
        Logits ``(N, K)``, float64, and labels ``(N,)``, int64, both on the CPU; N is the number of
        validation images times `views`.
    """
    rows = data.validation.repeat(views(augmentation))
    draws = generator(context.seed, "repair", "views")
    with torch.no_grad():
        parts = [
            model.logits(augment(data.images[part], augmentation, generator=draws))
            for part in rows.split(context.batch_size)
        ]
    return torch.cat(parts).double().cpu(), data.labels[rows].cpu()


def view_accuracy(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> float:
    """Return the share of the views whose likeliest class is right; see `view_logits`."""
    logits, labels = view_logits(model, data, context, augmentation)
    return float((logits.argmax(1) == labels).double().mean())
