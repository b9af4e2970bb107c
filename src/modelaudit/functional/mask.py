"""Objective of the search for a feature mask that separates benign from backdoor features (BAN)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as nn_functional

from modelaudit.errors import ShapeError
from modelaudit.functional._checks import require_dimensions, require_floating, require_same_shape

if TYPE_CHECKING:
    from torch import Tensor


def _norm(mask: Tensor) -> Tensor:
    require_floating("mask", mask)
    wide = torch.float64 if mask.dtype == torch.float64 else torch.float32
    # The smallest normal number as a floor: an all-zero mask then has a finite logarithm and a zero
    # gradient.
    return mask.to(wide).abs().sum().clamp_min(torch.finfo(wide).tiny)


def mask_regulariser(mask: Tensor) -> Tensor:
    """Return log ‖m‖₁, the size of a mask as the search penalises it.

    [BAN24] Eq. (5) prints λ₁‖m‖₁, which at their λ₁ outweighs the other terms a thousandfold; their
    code divides by the norm's own value, whose gradient is that of the logarithm
    (`mask_regulariser_paper_code`).

    Args:
        mask: in [0, 1]. Any shape, floating, any device.

    Returns:
        Scalar, float32 or float64 where `mask` is, device of `mask`; differentiable. An all-zero
        mask gives the logarithm of the smallest normal number and a zero gradient.

    Raises:
        DtypeError: `mask` is not floating point.
    """
    return _norm(mask).log()


def mask_regulariser_paper_code(mask: Tensor) -> Tensor:
    """Return ‖m‖₁ over its own value held constant: 1, with the gradient of log ‖m‖₁.

    [BAN24] code. Arguments, dtype and errors as `mask_regulariser`; an all-zero mask gives 1 and a
    zero gradient.
    """
    norm = _norm(mask)
    return norm / norm.detach()


def mask_objective(
    logits_positive: Tensor,
    logits_negative: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    weight: float,
) -> Tensor:
    """Return CE(m ⊙ h) - CE((1 - m) ⊙ h) + weight · log ‖m‖₁, which the search minimises.

    [BAN24] Eq. (5) with the regulariser of `mask_regulariser`. CE is the mean cross-entropy.

    Args:
        logits_positive: logits of the masked features. Shape ``(N, K)``, floating, any device.
        logits_negative: logits of the features under 1 - m, same shape.
        labels: class indices. Shape ``(N,)``, int64.
        mask: the mask m. Any shape, floating.
        weight: λ₁, dimensionless; the paper's is 0.75.

    Returns:
        Scalar, float32 or wider, device of the logits; nats; differentiable.

    Raises:
        ShapeError: the shapes do not fit, or there are no images.
        DtypeError: logits or mask are not floating point.
    """
    require_floating("logits_positive", logits_positive)
    require_dimensions("logits_positive", logits_positive, 2)
    require_same_shape("logits_negative", logits_negative, "logits_positive", logits_positive)
    images = logits_positive.shape[0]
    if images == 0 or labels.shape != (images,):
        raise ShapeError(
            f"labels must have one entry per image and at least one, got {tuple(labels.shape)!r} "
            f"for {images} images"
        )
    benign, rest = (
        nn_functional.cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(), labels
        )
        for logits in (logits_positive, logits_negative)
    )
    return benign - rest + weight * mask_regulariser(mask)
