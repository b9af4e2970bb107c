"""Validation images seen several times, cropped and mirrored as the network bears it.

A few hundred images tell how much accuracy a repair has cost to two points at best, for what lies
near a boundary falls on either side of it by luck. Over several views of each image it falls on
each side in part (docs/adr/0022-several-views.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.repairs._augment import Augmentation, augment
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect

#: Most views of each validation image.
VIEWS = 8
#: Accuracy that a network may lose on views. One that was not trained on such learns to bear them
#: in training, and what it gains so would hide what it loses.
_DEFICIT = 0.02


def views(augmentation: Augmentation) -> int:
    """Return how often each image is seen: plain and mirrored if never cropped, else `VIEWS`."""
    if augmentation.padding:
        return VIEWS
    return 2 if augmentation.flip else 1


def choose_views(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> Augmentation:
    """Return how the validation images are to be seen: as in training, or plain.

    Args:
        model: before the training, in eval mode.
        data: see `view_logits`, as for `context`.
        context: see there.
        augmentation: of the training.

    Returns:
        `augmentation` without its hole if the model answers such views nearly as well as plain
        images, else nothing.
    """
    plain, seen = Augmentation(), Augmentation(padding=augmentation.padding, flip=augmentation.flip)
    if seen == plain:
        return plain
    lost = view_accuracy(model, data, context, plain) - view_accuracy(model, data, context, seen)
    return seen if lost <= _DEFICIT else plain


def view_logits(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Ask a network about views of the validation images, in float32.

    Args:
        model: in eval mode.
        data: `validation` and labels.
        context: gives the batch size, and the seed of the views: the same whenever it is asked.
        augmentation: of `choose_views`.

    Returns:
        Logits ``(N, K)``, float64, and labels ``(N,)``, int64, both on the CPU; N is the number of
        validation images times `views`.
    """
    images, labels = data.images[data.validation], data.labels[data.validation]
    draws = generator(context.seed, "repair", "views")
    with torch.no_grad():
        parts = [
            model.logits(part)
            for seen in _views_of(images, augmentation, draws)
            for part in seen.split(context.batch_size)
        ]
    return torch.cat(parts).double().cpu(), labels.repeat(views(augmentation)).cpu()


def view_accuracy(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> float:
    """Return the share of the views whose likeliest class is right; see `view_logits`."""
    logits, labels = view_logits(model, data, context, augmentation)
    return float((logits.argmax(1) == labels).double().mean())


def _views_of(
    images: Tensor, augmentation: Augmentation, draws: torch.Generator
) -> Iterator[Tensor]:
    """Yield all images view by view: no batch size changes what is drawn."""
    if augmentation.padding:
        for _ in range(VIEWS):
            yield augment(images, augmentation, generator=draws)
        return
    yield images
    if augmentation.flip:
        yield images.flip(-1)
