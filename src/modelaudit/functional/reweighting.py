"""Weights under which a sample has given means: what another mixture of like images explains.

Statistics of a network's training data differ from those of a clean sample for reasons that are no
backdoor: other class shares, other lighting, other duplicates. Whatever the images of the sample,
mixed otherwise, give as well, is explained; what no mixture of clean images gives is left over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelaudit.functional._checks import require_dimensions, require_float64

#: steps of the inner search; the ridge keeps it well conditioned, and it stops long before
_MAX_STEPS = 500
#: statistics that are copied at once
_COLUMNS = 1024
#: images whose products with those after them are computed at once
_ROWS = 256


def matching_weights(
    deviations: Tensor, *, ridge: float = 3.0, cutoff: float = 3.0, rounds: int = 8
) -> Tensor:
    """Return image weights under which most means of `deviations` are near zero.

    [O] With z_r(w) the weighted mean of statistic r in standard errors of its unweighted mean,

        min over w ≥ 0, mean(w) = 1 of   mean_r ρ(z_r(w)) + ridge · variance(w)

    ρ is Geman and McClure's, z² / (1 + (z / (cutoff·s))²) with s the median |z| as a deviation (at
    least 1): a statistic that no mixture explains does not bend the weights. Solved by reweighted
    least squares over the simplex.

    Args:
        deviations: of each image and statistic from what the statistic should be on average. Shape
            ``(N, R)``, float64, any device; a column with a number that is not finite, or without
            spread, says nothing and is left out.
        ridge: price of uneven weights, at least 0: a variance of one costs as much as a mean square
            of `ridge` standard errors.
        cutoff: robust deviations from which a statistic counts as unexplained.
        rounds: of reweighting, at least 1.

    Returns:
        Shape ``(N,)``, float64, device of `deviations`; not negative, mean 1; all ones where no
        column is left.

    Raises:
        ShapeError: `deviations` is not 2-D.
        DtypeError: it is not float64.
        ValueError: no image, or an option out of range.
    """
    require_dimensions("deviations", deviations, 2)
    require_float64("deviations", deviations)
    images = len(deviations)
    if images < 1 or ridge < 0 or cutoff <= 0 or rounds < 1:
        raise ValueError(
            "expected at least one image, ridge >= 0, cutoff > 0 and rounds >= 1, got "
            f"{images!r}, {ridge!r}, {cutoff!r} and {rounds!r}"
        )
    weights = torch.ones(images, dtype=torch.float64, device=deviations.device)
    # not finite where a number of the column is not
    spread = deviations.std(0) if images > 1 else torch.zeros_like(deviations[0])
    told = (spread.isfinite() & (spread > 0)).nonzero().flatten()
    if not len(told):
        return weights
    errors = spread[told] / images**0.5
    for _ in range(rounds):
        z = (weights @ deviations)[told] / (images * errors)
        scale = max(1.0, 1.4826 * float(z.abs().median()))
        # ρ'(z) / 2z, the weight of a square that touches ρ at z
        bend = (1 + (z / (cutoff * scale)).square()).square().reciprocal()
        # half the gradient is curvature @ w - ridge / N; the variance's own mean is fixed at 1
        curvature = _gram(deviations, told, bend / (errors.square() * len(told) * images**2))
        curvature.diagonal().add_(ridge / images)
        before, weights = weights, _least_squares(curvature, ridge, weights)
        if float((weights - before).abs().max()) < 1e-4:
            break
    return weights


def _gram(deviations: Tensor, told: Tensor, prices: Tensor) -> Tensor:
    """Return Σ_r prices_r d_r d_rᵀ over the columns `told` of `deviations`, ``(N, N)`` float64.

    A few columns at a time: the deviations may fill a gigabyte, and are not copied. The sum is
    symmetric, so that hardly more than half of it is computed.
    """
    images = len(deviations)
    gram = deviations.new_zeros(images, images)
    parts = [slice(start, start + _ROWS) for start in range(0, images, _ROWS)]
    for rows, price in zip(told.split(_COLUMNS), prices.split(_COLUMNS), strict=True):
        columns = deviations[:, rows]
        priced = columns * price
        for part in parts:
            gram[part, part.start :].addmm_(priced[part], columns[part.start :].T)
    for part in parts:
        gram[part.stop :, part] = gram[part, part.stop :].T
    return gram


def _least_squares(curvature: Tensor, ridge: float, start: Tensor) -> Tensor:
    """Minimise wᵀ·curvature·w - 2 ridge · mean(w) on the simplex by accelerated projection."""
    images = len(curvature)
    # Frobenius' norm bounds the largest eigenvalue at no cost
    step = 1 / float(torch.linalg.matrix_norm(curvature))
    point, ahead, momentum = start, start, 1.0
    for _ in range(_MAX_STEPS):
        further = _onto_simplex(ahead - step * (curvature @ ahead - ridge / images))
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        moved = further - point
        ahead = further + (momentum - 1) / following * moved
        point, momentum = further, following
        if float(moved.abs().max()) < 1e-5:
            break
    return point


def _onto_simplex(values: Tensor) -> Tensor:
    """Return the nearest vector that is not negative and has mean 1."""
    size = len(values)
    ordered = values.sort(descending=True).values
    counts = torch.arange(1, size + 1, dtype=values.dtype, device=values.device)
    levels = (ordered.cumsum(0) - size) / counts
    # the entries above their own level form a prefix, never empty
    kept = int((ordered > levels).sum())
    return (values - levels[kept - 1]).clamp_min(0.0)


def effective_count(weights: Tensor) -> float:
    """Return how many equally weighted images `weights` are worth, (Σw)² / Σw² (Kish).

    Args:
        weights: Shape ``(N,)``, floating, not negative, not all zero.
    """
    return float(weights.sum().square() / weights.square().sum())
