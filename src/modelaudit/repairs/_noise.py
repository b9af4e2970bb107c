"""Adversarial neuron noise for training: one vector, its gradient alone, no statistics touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.functional.noise import random_start, sign_step
from modelaudit.scanners._noise_search import neuron_count, site_edits

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import BatchNormMode, Suspect


def adversarial_noise(
    model: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    is_clipped: bool,
    mode: BatchNormMode,
    dtype: torch.dtype | None,
    generator: torch.Generator,
    target: int | None = None,
) -> Tensor:
    """Return noise that raises the cross-entropy of one batch ([BAN24] Eq. 4).

    Random start in the box, then `steps` sign steps of epsilon / steps. Only the gradient of the
    noise is computed, none of a weight; noise and gradient stay float32 under autocast.

    Args:
        model: with BatchNorm in the state that `mode` describes.
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)`` int64, on the model's device.
        epsilon: half-width of the box.
        steps: S; 0 returns the random start. S·N forward+backward passes are counted.
        is_clipped: whether noise stays in the box; the authors' code lets it reach twice its width.
        mode: BatchNorm statistics of the noisy passes.
        dtype: of convolutions and matrix products; None for float32.
        generator: CPU generator of the start.
        target: class that the noise aims at; None raises the loss by whatever way is shortest.

    Returns:
        ``(2, D_total)`` float32 on the model's device, detached.
    """
    start = random_start((2, neuron_count(model)), epsilon, generator)
    noise = start.to(model.device)
    for _ in range(steps):
        noise = noise.requires_grad_()
        with model.edited(site_edits(model, *noise), mode=mode), model.autocast(dtype):
            logits = model.logits(images)
        if target is None:
            gain = F.cross_entropy(logits, labels)
        else:
            gain = -F.cross_entropy(logits, torch.full_like(labels, target))
        (gradient,) = torch.autograd.grad(gain, [noise])
        limit = epsilon if is_clipped else None
        noise = sign_step(noise.detach(), gradient, epsilon / steps, epsilon=limit)
    return noise.detach()
