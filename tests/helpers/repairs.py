"""Clean images and contexts as repairs are given them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.repairs import RepairContext, RepairData, divide
from tests.helpers import models
from tests.helpers.planted import profile_of

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect


def repair_set(
    suspect: Suspect,
    n: int = 120,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    has_labels: bool = True,
    mixture: Tensor | None = None,
) -> RepairData:
    """Return clean images with the suspect's own predictions as labels, unless told."""
    pixels = models.images(n, channels=suspect.input_channels) if images is None else images
    with suspect.borrowed():
        predictions = suspect.predict(pixels)
    truth = predictions if labels is None else labels
    work, validation = divide(truth, seed=0)
    return RepairData(
        images=pixels,
        labels=truth,
        has_labels=has_labels,
        work=work,
        validation=validation,
        as_trained=pixels,
        mixture=mixture,
    )


def repair_context(
    suspect: Suspect | None = None,
    data: RepairData | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    max_accuracy_drop: float = 0.02,
) -> RepairContext:
    """Return a context; with a suspect and images it holds the shared profile."""
    shared = None
    if suspect is not None and data is not None:
        shared = profile_of(suspect, data.as_trained)
    return RepairContext(
        profile=shared, seed=seed, batch_size=batch_size, max_accuracy_drop=max_accuracy_drop
    )


def logits_of(suspect: Suspect, images: Tensor) -> Tensor:
    """Return logits in a borrow."""
    with suspect.borrowed(), torch.no_grad():
        return suspect.logits(images)
