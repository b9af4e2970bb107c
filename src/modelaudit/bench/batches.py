"""Training batches: crop and flip, and the attack's trigger before or after them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from modelaudit.attacks.base import Attack, Batch, PoisonedBatch

if TYPE_CHECKING:
    from torch import Generator, Tensor

CROP_PADDING = 4


def augment(images: Tensor, *, flip: bool, generator: Generator) -> Tensor:
    """Crop each image at random after zero-padding by 4 pixels and, if asked, mirror half of them.

    Args:
        images: ``(N, C, H, W)``, any dtype and device.
        flip: whether to mirror.
        generator: source of the draws, on the CPU.

    Returns:
        A new tensor of the same shape, dtype and device, channels last in memory.
    """
    n, _, height, width = images.shape
    span = 2 * CROP_PADDING + 1
    top = torch.randint(span, (n, 1), generator=generator)
    left = torch.randint(span, (n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    padded = pad(images, (CROP_PADDING,) * 4)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(n).view(n, 1, 1).to(images.device)
    rows, columns = rows.to(images.device), columns.to(images.device)
    # Indices around a slice put the sliced channels last: the memory format that is wanted.
    cropped = padded[which, :, rows.view(n, height, 1), columns.view(n, 1, width)]
    return cropped.permute(0, 3, 1, 2)


def draw_poison(batch: Batch, attack: Attack[object] | None, *, generator: Generator) -> Batch:
    """Return the batch with what a plan that is not static draws in it; else the batch itself.

    Args:
        batch: clean images, with what a static plan drew.
        attack: the attack, or None.
        generator: source of the attack's draws, on the CPU.
    """
    if attack is None or attack.plan.granularity == "static":
        return batch
    # The draws come from a CPU generator, so that they are the same on every device.
    is_poison, is_cover = attack.plan.draw_batch(batch.labels.cpu(), generator=generator)
    device = batch.labels.device
    return replace(batch, is_poison=is_poison.to(device), is_cover=is_cover.to(device))


def prepare_batch(
    batch: Batch,
    attack: Attack[object] | None,
    *,
    flip: bool,
    generator: Generator,
    attack_generator: Generator,
) -> PoisonedBatch:
    """Augment and poison a batch, in the order of the attack's stage.

    Args:
        batch: clean images, with what the plan drew (`draw_poison`).
        attack: the attack, or None.
        flip: whether to mirror.
        generator: source of crops and flips.
        attack_generator: source of the attack's draws.
    """
    if attack is None:
        images = augment(batch.images, flip=flip, generator=generator)
        return PoisonedBatch(images=images, labels=batch.labels)
    if attack.plan.stage == "post":
        stored = attack.stored_images(batch)
        batch = replace(batch, images=augment(stored, flip=flip, generator=generator))
    donors = batch.images.roll(1, 0)
    poisoned = attack.on_batch(batch, donors=donors, generator=attack_generator)
    if attack.plan.stage == "pre":
        images = augment(poisoned.images, flip=flip, generator=generator)
        poisoned = replace(poisoned, images=images)
    return poisoned
