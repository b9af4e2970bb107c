"""Running statistics of BatchNorm layers while a repair trains, and afresh for given weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelaudit.suspect import Suspect


def set_batchnorm_training(module: nn.Module, *, is_training: bool) -> None:
    """Put the BatchNorm layers in train or eval mode, nothing else."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.training = is_training


def reestimate_statistics(model: Suspect, images: Tensor, *, batch: int) -> None:
    """Replace the running statistics by the averages over `images` for the weights as they are.

    methods/repairs.md §8: stale statistics give an interpolated network chance accuracy. One pass
    in batches of nearly equal size, each weighing the same; nothing else changes. A model without
    running statistics stays as it is.

    Args:
        model: a copy that belongs to the repair, in eval mode.
        images: ``(N, C, H, W)`` in [0, 1]; N forward passes are counted.
        batch: statistical batch size.
    """
    layers = [
        child
        for child in model.module.modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    ]
    if not layers:
        return
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    counts = [None if n is None else n.clone() for _, n in kept]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.training = True
        with torch.no_grad():
            for part in images.tensor_split(max(1, math.ceil(len(images) / batch))):
                model.logits(part)
    finally:
        for layer, (momentum, number), count in zip(layers, kept, counts, strict=True):
            layer.training = False
            layer.momentum = momentum
            if number is not None and count is not None:
                number.copy_(count)
