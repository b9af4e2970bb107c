"""A Gamma distribution with free location, fitted as SciPy does, which MM-BD's code relies on.

With nine or so scores the likelihood has several optima and may be unbounded where the location
meets the smallest score, so the p-value depends on how the optimum is searched. The search here is
therefore the one of ``scipy.stats.gamma.fit``: Nelder and Mead's simplex from the moments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from modelaudit.errors import DegenerateStatisticError
from modelaudit.functional._checks import require_dimensions, require_floating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

#: What one value outside the support costs: a hundred times the logarithm of the largest float.
_PENALTY = 100.0 * math.log(1.7976931348623157e308)

#: Limits of the simplex search: `scipy.optimize.fmin`'s.
_TOLERANCE = 1e-4
_CALLS_PER_PARAMETER = 200
_FIRST_STEP = 0.05
_FIRST_STEP_FROM_ZERO = 0.00025


def gamma_p_value_paper_code(scores: Tensor) -> float:
    """Return the p-value of the largest score as the released code of MM-BD computes it.

    [MMBD24] code: a Gamma distribution G with free location is fitted to all scores but the
    largest, and p = 1 - G(r_max)^K with K the number of classes. At a nominal 5 % it is below in
    16 to 22 % of clean cases at ten classes (methods/detectors.md §11.3). For reproduction only.

    Args:
        scores: r_t of each class. Shape ``(K,)``, floating, any device, at least four.

    Returns:
        A p-value in [0, 1].

    Raises:
        DegenerateStatisticError: fewer than four scores, one that is not finite, or all but the
            largest are equal.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
    """
    require_dimensions("scores", scores, 1)
    require_floating("scores", scores)
    ordered: list[float] = scores.detach().double().cpu().sort().values.tolist()
    if len(ordered) < 4 or not all(map(math.isfinite, ordered)):
        raise DegenerateStatisticError(
            f"a Gamma fit with free location needs at least four finite scores, got {ordered!r}"
        )
    shape, location, scale = fit_gamma(ordered[:-1])
    position = torch.tensor((ordered[-1] - location) / scale, dtype=torch.float64)
    upper = torch.special.gammaincc(torch.tensor(shape, dtype=torch.float64), position)
    return float(-torch.expm1(len(ordered) * torch.log1p(-upper)))


def fit_gamma(values: Sequence[float]) -> tuple[float, float, float]:
    """Fit shape, location and scale by maximum likelihood, from the moments.

    Args:
        values: at least three finite numbers.

    Returns:
        Shape and scale, both positive, and a location that is mostly below every value.

    Raises:
        DegenerateStatisticError: all values are equal.
    """
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / n
    if variance <= 1e-24 * max(1.0, mean * mean):
        raise DegenerateStatisticError(
            f"a Gamma fit needs scores that differ, got {n} equal to {mean!r}"
        )
    skewness = math.fsum((v - mean) ** 3 for v in values) / n / variance**1.5
    # The skewness of a Gamma distribution is 2 / √shape.
    shape = 4.0 / (1e-8 + skewness**2)
    scale = math.sqrt(variance / shape)
    location = mean - scale * shape
    if location >= min(values):
        location, scale = min(values) - 0.1 * (max(values) - min(values)), 1.0

    def cost(point: Sequence[float]) -> float:
        return _negative_log_likelihood(values, *point)

    best = nelder_mead(cost, (shape, location, scale))
    return best[0], best[1], best[2]


def _negative_log_likelihood(
    values: Sequence[float], shape: float, location: float, scale: float
) -> float:
    if shape <= 0.0 or scale <= 0.0:
        return math.inf
    total = len(values) * math.log(scale)
    for value in values:
        position = (value - location) / scale
        if position > 0.0:
            total -= (shape - 1.0) * math.log(position) - position - math.lgamma(shape)
        else:
            total += _PENALTY
    return total


def nelder_mead(
    cost: Callable[[Sequence[float]], float], start: Sequence[float]
) -> tuple[float, ...]:
    """Minimise `cost` by Nelder and Mead's simplex with the textbook coefficients.

    Args:
        cost: of a point; may be infinite, but not at `start`.
        start: the first corner; the others are one step of 5 % along each axis away.

    Returns:
        The best corner once corners and costs agree to 1e-4, or after 200 calls per parameter.
    """
    size = len(start)
    corners = [tuple(start)]
    for axis in range(size):
        corner = list(start)
        step = 1.0 + _FIRST_STEP
        corner[axis] = corner[axis] * step if corner[axis] else _FIRST_STEP_FROM_ZERO
        corners.append(tuple(corner))
    simplex = sorted(((cost(c), c) for c in corners), key=lambda pair: pair[0])
    calls, limit = size + 1, _CALLS_PER_PARAMETER * size

    def towards(factor: float) -> tuple[float, tuple[float, ...]]:
        """Return the point on the line from the worst corner through the others' centre."""
        centre = [math.fsum(c[axis] for _, c in simplex[:-1]) / size for axis in range(size)]
        worst = simplex[-1][1]
        point = tuple(m + factor * (m - w) for m, w in zip(centre, worst, strict=True))
        return cost(point), point

    while calls < limit:
        best = simplex[0]
        spread = max(abs(a - b) for _, c in simplex[1:] for a, b in zip(c, best[1], strict=True))
        if spread <= _TOLERANCE and simplex[-1][0] - best[0] <= _TOLERANCE:
            break
        reflected = towards(1.0)
        calls += 1
        if reflected[0] < best[0]:
            expanded = towards(2.0)
            calls += 1
            simplex[-1] = min(expanded, reflected, key=lambda pair: pair[0])
        elif reflected[0] < simplex[-2][0]:
            simplex[-1] = reflected
        else:
            is_outside = reflected[0] < simplex[-1][0]
            contracted = towards(0.5 if is_outside else -0.5)
            calls += 1
            limit_cost = reflected[0] if is_outside else simplex[-1][0]
            if contracted[0] < limit_cost or (is_outside and contracted[0] == limit_cost):
                simplex[-1] = contracted
            else:
                shrunk = [
                    tuple(b + 0.5 * (x - b) for b, x in zip(best[1], c, strict=True))
                    for _, c in simplex[1:]
                ]
                simplex = [best, *((cost(c), c) for c in shrunk)]
                calls += size
        simplex.sort(key=lambda pair: pair[0])
    return simplex[0][1]
