"""The feature mask of BAN ([BAN24] Eq. 5), searched on the head alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.functional.mask import mask_objective

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def search_mask(
    head: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    *,
    weight: float,
    steps: int,
    learning_rate: float,
    batch: int,
    generator: torch.Generator,
) -> Tensor:
    """Find the feature mask that keeps the benign features and leaves the rest to ``1 - m``.

    g(x) is constant during the search, so it is computed once and the search costs the head only
    (methods/detectors.md §1.5a). Adam, batches drawn with replacement, the mask clamped to [0, 1]
    after every step.

    Args:
        head: features ``(B, *F)`` to logits ``(B, K)``, differentiable.
        features: g(x) of the search set, ``(N, *F)`` float32.
        labels: ``(N,)`` int64 on the same device.
        weight: lambda_1 of log ||m||_1.
        steps: number of steps (paper: 20 epochs of 20 batches).
        learning_rate: Adam's.
        batch: batch size.
        generator: CPU generator for start and batches.

    Returns:
        The mask, ``F``, in [0, 1], on the features' device.
    """
    start = torch.rand(features.shape[1:], generator=generator)
    mask = start.to(features.device).requires_grad_()
    optimiser = torch.optim.Adam([mask], lr=learning_rate)
    for _ in range(steps):
        rows = torch.randint(len(features), (batch,), generator=generator).to(features.device)
        h, y = features[rows], labels[rows]
        loss = mask_objective(head(mask * h), head((1 - mask) * h), y, mask, weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return mask.detach()
