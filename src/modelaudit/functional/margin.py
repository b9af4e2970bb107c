"""Margins between logits, and the anomaly test of the maximum-margin paper (MM-BD)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.errors import DegenerateStatisticError, ShapeError
from modelaudit.functional._checks import require_dimensions, require_floating, require_integer

if TYPE_CHECKING:
    from torch import Tensor

#: Newton steps for the Gamma shape; from the closed-form start it takes about four.
_NEWTON_STEPS = 50
#: Spread of the logarithms below which scores are equal but for rounding.
_MIN_LOG_SPREAD = 1e-12


def _check_logits(logits: Tensor) -> None:
    require_floating("logits", logits)
    require_dimensions("logits", logits, 2)
    if logits.shape[1] < 2:
        raise ShapeError(f"a margin needs at least two classes, got {logits.shape[1]}")


def class_margins(logits: Tensor) -> Tensor:
    """Return z_t - max over k ≠ t of z_k, for every class t.

    [MMBD24], the quantity whose maximum over inputs is the statistic of a class.

    Args:
        logits: Shape ``(N, K)``, floating, any device, K at least 2.

    Returns:
        Shape, dtype and device of `logits`; differentiable. Positive for the predicted class alone,
        zero where it is tied. NaN logits give NaN.

    Raises:
        ShapeError: `logits` is not 2-D or has one class.
        DtypeError: `logits` is not floating point.
    """
    _check_logits(logits)
    best = logits.topk(2, dim=1)
    is_best = torch.arange(logits.shape[1], device=logits.device) == best.indices[:, :1]
    return logits - torch.where(is_best, best.values[:, 1:], best.values[:, :1])


def margin_to(logits: Tensor, targets: Tensor) -> Tensor:
    """Return z_t - max over k ≠ t of z_k, for one class t per row.

    [MMBD24]. The column of `class_margins` that `targets` names.

    Args:
        logits: Shape ``(N, K)``, floating, any device, K at least 2.
        targets: class per row. Shape ``(N,)``, integer, same device.

    Returns:
        Shape ``(N,)``, dtype and device of `logits`; differentiable.

    Raises:
        ShapeError: the shapes do not fit, or there is one class.
        DtypeError: `logits` is not floating point or `targets` not integer.
    """
    _check_logits(logits)
    require_integer("targets", targets)
    if targets.shape != logits.shape[:1]:
        raise ShapeError(
            f"targets must have one entry per row, got {tuple(targets.shape)!r} for logits "
            f"{tuple(logits.shape)!r}"
        )
    return class_margins(logits).gather(1, targets.to(torch.int64).unsqueeze(1)).squeeze(1)


def gamma_p_value(scores: Tensor) -> float:
    """Return the paper's p-value of the largest margin statistic; for comparison only.

    [MMBD24]: a Gamma distribution G is fitted (maximum likelihood, location 0) to all scores
    but the largest, and p = 1 - G(r_max)^K with K the number of classes. Its false-positive rate at
    a nominal 5 % is about 20 % for ten classes (methods/detectors.md §11.3): use `grubbs` on the
    logarithms for a decision.

    Args:
        scores: r_t of each class. Shape ``(K,)``, floating, any device, at least three, all
            positive.

    Returns:
        A p-value in [0, 1].

    Raises:
        DegenerateStatisticError: fewer than three scores, one that is not positive and finite, or
            all but the largest are equal.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
    """
    require_dimensions("scores", scores, 1)
    require_floating("scores", scores)
    ordered = scores.detach().to(device="cpu", dtype=torch.float64).sort().values
    if ordered.numel() < 3 or not bool(((ordered > 0) & ordered.isfinite()).all()):
        raise DegenerateStatisticError(
            f"a Gamma fit needs at least three positive finite scores, got {ordered.tolist()!r}"
        )
    rest, largest = ordered[:-1], ordered[-1]
    mean = rest.mean()
    # ln of the arithmetic over the geometric mean; the likelihood equation is ln a - digamma(a) =
    # spread.
    spread = float(mean.log() - rest.log().mean())
    if spread < _MIN_LOG_SPREAD:
        raise DegenerateStatisticError(
            f"a Gamma fit needs scores that differ, got {rest.numel()} equal to {float(mean)!r}"
        )
    shape = _gamma_shape(spread)
    upper = torch.special.gammaincc(shape, shape * largest / mean)
    return float(-torch.expm1(ordered.numel() * torch.log1p(-upper)))


def _gamma_shape(spread: float) -> Tensor:
    """Solve ln a - digamma(a) = `spread` for the shape a by Newton's method on ln a."""
    # Minka's closed form is within 1.5 % of the root.
    start = (3.0 - spread + ((spread - 3.0) ** 2 + 24.0 * spread) ** 0.5) / (12.0 * spread)
    shape = torch.tensor(start, dtype=torch.float64)
    for _ in range(_NEWTON_STEPS):
        value = shape.log() - torch.special.digamma(shape) - spread
        slope = 1.0 - shape * torch.special.polygamma(1, shape)
        change = value / slope
        shape = shape * torch.exp(-change)
        if abs(float(change)) < 1e-14:
            break
    return shape
