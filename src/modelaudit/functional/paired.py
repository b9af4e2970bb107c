"""Two shares measured on the same images: their difference, and the luck of the best of several.

All of it is float64 arithmetic on a few counts. The two shares are those of the images that a first
and a second model label rightly; only images on which one is right and the other is not say
anything about the difference.
"""

from __future__ import annotations

import math

from modelaudit.functional.special import normal_cdf, normal_quantile

#: Grid of the integral in `expected_largest`: 24 standard deviations wide, where the density of the
#: largest of any number that fits a computer is below 1e-16. The trapezoidal rule converges faster
#: than any power of the step on so smooth a function.
_REACH, _STEPS_PER_UNIT = 12, 20


def paired_standard_error(first_only: int, second_only: int, trials: int) -> float:
    """Return the standard error of the difference of two paired shares.

    √(b + c - (b - c)²/n) / n [NEWCOMBE98], method 1; with c = 0 that of a single share b/n.

    Args:
        first_only: how often the first alone is right, b.
        second_only: how often the second alone is, c.
        trials: how many there were, n, at least 1.

    Returns:
        A fraction, 0 where b = c = 0 and where all n are b, or all are c.

    Raises:
        ValueError: the counts contradict each other.
    """
    _check(first_only, second_only, trials)
    difference = first_only - second_only
    return math.sqrt(first_only + second_only - difference * difference / trials) / trials


def paired_interval(
    *, both: int, first_only: int, second_only: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the two-sided interval of the difference of two paired shares, first minus second.

    [NEWCOMBE98] method 10: the score intervals (l₁, u₁) and (l₂, u₂) of the two shares p₁ and p₂
    are combined, with φ the correlation of the pairs:

        low  = p₁ - p₂ - √((p₁ - l₁)² - 2φ(p₁ - l₁)(u₂ - p₂) + (u₂ - p₂)²),
        high = p₁ - p₂ + √((u₁ - p₁)² - 2φ(u₁ - p₁)(p₂ - l₂) + (p₂ - l₂)²).

    A positive numerator of φ is lessened by n/2, at most to 0; φ is 0 where a margin is empty. So
    the interval has a width also where the two never differ, which the standard error has not.

    Args:
        both: how often both are right.
        first_only: how often the first alone is.
        second_only: how often the second alone is.
        neither: how often neither is.
        confidence: in (0, 1).

    Returns:
        Lower and upper end, fractions in [-1, 1].

    Raises:
        ValueError: a count is negative, there are no trials, or `confidence` is outside (0, 1).
    """
    trials = both + first_only + second_only + neither
    if min(both, neither) < 0:
        raise ValueError(f"counts must not be negative, got {both!r} and {neither!r}")
    _check(first_only, second_only, trials)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    right_first, right_second = both + first_only, both + second_only
    first, second = right_first / trials, right_second / trials
    low_first, high_first = _score_interval(right_first, trials, confidence)
    low_second, high_second = _score_interval(right_second, trials, confidence)
    phi = _correlation(both, first_only, second_only, neither)
    below = _combined(first - low_first, high_second - second, phi)
    above = _combined(high_first - first, second - low_second, phi)
    difference = (first_only - second_only) / trials
    return max(-1.0, difference - below), min(1.0, difference + above)


def trials_to_settle(
    estimate: float, interval: tuple[float, float], *, limit: float, trials: int
) -> int | None:
    """Return about how many trials would take an interval off a limit that lies inside it.

    [O] n · (reach / distance)²: the interval shrinks like 1/√n; `reach` is from the estimate to the
    end on the limit's side, `distance` from the estimate to the limit, at least half the limit: a
    difference much smaller than the limit is not worth telling. The estimate moves too when there
    are more trials, so this is an order of magnitude.

    Args:
        estimate: what was measured.
        interval: its 95 % interval.
        limit: what it is compared with, not negative.
        trials: on how many it was measured, n.

    Returns:
        More than n, rounded up to two digits. None where the limit lies outside the interval, or so
        close to the estimate that no number can be named.
    """
    low, high = interval
    if not low <= limit < high:
        return None
    reach = high - estimate if estimate <= limit else estimate - low
    distance = max(abs(estimate - limit), 0.5 * limit)
    if reach <= distance or distance == 0.0:
        return None
    needed = trials * (reach / distance) ** 2
    unit = int(10 ** max(0, math.floor(math.log10(needed)) - 1))
    return math.ceil(needed / unit) * unit


def expected_largest(count: int) -> float:
    """Return the mean of the largest of `count` independent standard normal variables.

    ∫ x · k φ(x) Φ(x)^(k-1) dx; tabulated in [HARTER61]. The largest of `count` estimates of equal
    things lies so many standard errors above them, and less far above where their errors go
    together.

    Args:
        count: how many, k, at least 1.

    Returns:
        0 for one, 1/√π = 0.564 for two, 3/(2√π) = 0.846 for three; absolute error below 1e-12.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"the largest needs at least one, got {count!r}")
    end = _REACH * _STEPS_PER_UNIT
    grid = (step / _STEPS_PER_UNIT for step in range(-end, end + 1))
    terms = (x * math.exp(-0.5 * x * x) * normal_cdf(x) ** (count - 1) for x in grid)
    return count * math.fsum(terms) / (_STEPS_PER_UNIT * math.sqrt(math.tau))


def _combined(one: float, other: float, phi: float) -> float:
    """Return √(a² - 2φab + b²); rounding may take equal ends of a perfect pair below zero."""
    return math.sqrt(max(0.0, one * one - 2.0 * phi * one * other + other * other))


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Return Newcombe's φ of a fourfold table, continuity-corrected where it is positive."""
    trials = both + first_only + second_only + neither
    margins = (
        (both + first_only)
        * (second_only + neither)
        * (both + second_only)
        * (first_only + neither)
    )
    if margins == 0:
        return 0.0
    excess: float = both * neither - first_only * second_only
    if excess > 0:
        excess = max(0.0, excess - 0.5 * trials)
    return excess / math.sqrt(margins)


def _score_interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the score interval of a share, without continuity correction [WILSON27]."""
    z = normal_quantile(0.5 + 0.5 * confidence)
    middle = successes + 0.5 * z * z
    spread = z * math.sqrt(successes * (trials - successes) / trials + 0.25 * z * z)
    return (middle - spread) / (trials + z * z), (middle + spread) / (trials + z * z)


def _check(first_only: int, second_only: int, trials: int) -> None:
    if min(first_only, second_only) < 0 or not 1 <= trials >= first_only + second_only:
        raise ValueError(
            f"need counts of at least 0, a trial, and no more of them than trials, got "
            f"{first_only!r}, {second_only!r} and {trials!r}"
        )
