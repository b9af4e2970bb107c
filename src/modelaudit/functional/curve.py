"""The quadratic Bezier curve between two sets of weights (mode connectivity)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.errors import ShapeError
from modelaudit.functional._checks import require_same_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def bezier_coefficients(t: float) -> tuple[float, float, float]:
    """Return the weights of the start, the inner point and the end: (1-t)², 2t(1-t), t².

    [MC18] §3.2, used for repair by [MCR20] §3.

    Args:
        t: place on the curve; 0 is the start, 1 the end.

    Raises:
        ValueError: `t` is outside [0, 1] or NaN.
    """
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t must be in [0, 1], got {t!r}")
    return (1.0 - t) ** 2, 2.0 * t * (1.0 - t), t**2


def bezier_point(
    start: Sequence[Tensor], inner: Sequence[Tensor], end: Sequence[Tensor], t: float
) -> list[Tensor]:
    """Return the weights at a place on the curve.

    [MC18] §3.2: w(t) = (1-t)² w0 + 2t(1-t) w1 + t² w2, tensor by tensor.

    Args:
        start: w0, one tensor per parameter, floating, any device.
        inner: w1, same shapes.
        end: w2, same shapes.
        t: place in [0, 1]; 0 gives the start and 1 the end, bit for bit.

    Returns:
        New tensors of the same shapes; differentiable.

    Raises:
        ShapeError: the sets differ in number or shapes.
        ValueError: `t` is outside [0, 1] or NaN.
    """
    a, b, c = bezier_coefficients(t)
    if not len(start) == len(inner) == len(end):
        raise ShapeError(
            f"expected as many tensors in each set, got {len(start)}, {len(inner)} and {len(end)}"
        )
    points = []
    for one, middle, other in zip(start, inner, end, strict=True):
        require_same_shape("inner", middle, "start", one)
        require_same_shape("end", other, "start", one)
        # A coefficient of zero must not carry a NaN or the sign of a zero over.
        if t in {0.0, 1.0}:
            points.append((one if t == 0.0 else other).clone())
        else:
            points.append(a * one + b * middle + c * other)
    return points
