"""Outlier tests across classes, and binomial bounds.

All of it runs in float64 on a handful of numbers, so a result is the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.errors import DegenerateStatisticError
from modelaudit.functional._checks import (
    require_dimensions,
    require_floating,
    require_same_shape,
)
from modelaudit.functional.special import (
    MAX_PARAMETER,
    binomial_lower_end,
    binomial_upper_end,
    regularised_incomplete_beta,
)

if TYPE_CHECKING:
    from torch import Tensor

#: Scale factor that makes the median absolute deviation estimate a normal standard deviation.
MAD_TO_SIGMA = 1.4826

#: Fewest classes for which an outlier test across classes is defined (methods/detectors.md §0.2).
MIN_CLASSES = 5

#: A spread this small beside the values is rounding: the values are equal.
_RELATIVE_ZERO = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class GrubbsResult:
    """The largest score against all others.

    Attributes:
        index: position of the largest score; the first one of a tie.
        statistic: leave-one-out t of that score, dimensionless.
        p_value: min(1, C · P(T > statistic)) with C - 2 degrees of freedom, in [0, 1].
    """

    index: int
    statistic: float
    p_value: float


def student_t_sf(t: float, dof: float) -> float:
    """Return P(T > t) of Student's t distribution with `dof` degrees of freedom.

    Args:
        t: any number, infinities included.
        dof: degrees of freedom, positive, at most 2e8.

    Returns:
        A probability in [0, 1]; relative error below 1e-10, also far out in the tail.

    Raises:
        ValueError: `t` is NaN, or `dof` is not in (0, 2e8].
    """
    if math.isnan(t):
        raise ValueError("t must be a number, got nan")
    if not 0.0 < dof <= 2.0 * MAX_PARAMETER:
        raise ValueError(
            f"degrees of freedom must be positive and at most {2.0 * MAX_PARAMETER:g}, got {dof!r}"
        )
    # Dividing first keeps t² from overflowing.
    ratio = abs(t) / math.sqrt(dof)
    square = ratio * ratio
    if math.isinf(square):
        tail = 0.0
    else:
        x, complement = 1.0 / (1.0 + square), square / (1.0 + square)
        tail = 0.5 * regularised_incomplete_beta(0.5 * dof, 0.5, x, complement=complement)
    return tail if t >= 0 else 1.0 - tail


def _scores_as_list(scores: Tensor) -> list[float]:
    require_dimensions("scores", scores, 1)
    require_floating("scores", scores)
    values: list[float] = scores.detach().to(torch.float64).cpu().tolist()
    if not all(math.isfinite(value) for value in values):
        raise DegenerateStatisticError(
            f"an outlier test needs finite scores, got {values!r}; drop the undefined classes first"
        )
    return values


def _against_rest(values: list[float], index: int) -> float:
    """Return the leave-one-out t of one of at least `MIN_CLASSES` values.

    NaN beside equal others.
    """
    if len(values) < MIN_CLASSES:
        raise DegenerateStatisticError(
            f"an outlier test across classes needs at least {MIN_CLASSES} scores, got "
            f"{len(values)}; use an absolute rule or reference models"
        )
    rest = values[:index] + values[index + 1 :]
    mean = math.fsum(rest) / len(rest)
    variance = math.fsum((value - mean) ** 2 for value in rest) / (len(rest) - 1)
    spread = math.sqrt(variance)
    if spread <= _RELATIVE_ZERO * max(abs(value) for value in rest):
        return math.nan
    return (values[index] - mean) / (spread * math.sqrt(1.0 + 1.0 / len(rest)))


def _largest_against_rest(values: list[float]) -> tuple[int, float, float]:
    """Return index, leave-one-out t and p-value of the largest of at least `MIN_CLASSES` values."""
    count = len(values)
    index = max(range(count), key=values.__getitem__, default=0)
    statistic = _against_rest(values, index)
    if math.isnan(statistic):
        raise DegenerateStatisticError(
            f"an outlier test needs scores that differ, got {count - 1} equal to "
            f"{values[index - 1]!r} beside the largest, {values[index]!r}"
        )
    return index, statistic, min(1.0, count * student_t_sf(statistic, count - 2))


def grubbs(scores: Tensor) -> GrubbsResult:
    """Test whether the largest of the per-class scores is an outlier.

    [GRUBBS50] in leave-one-out form: t = (v_max - mean(rest)) / (sd(rest) · √(1 + 1/(C - 1))),
    where sd has divisor n - 1; exact for independent normal scores. Transform first: log for norms,
    margins and divergences, `log_odds` for shares.

    Args:
        scores: one score per class, larger is more suspicious. Shape ``(C,)``, floating, any
            device.

    Returns:
        Index, statistic and p-value of the largest score, as plain numbers.

    Raises:
        DegenerateStatisticError: fewer than five scores, a score that is not finite, or all scores
            but the largest are equal.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
    """
    index, statistic, p_value = _largest_against_rest(_scores_as_list(scores))
    return GrubbsResult(index=index, statistic=statistic, p_value=p_value)


def class_p_values(scores: Tensor) -> tuple[float, ...]:
    """Return, for each class, how surprising its score is among the others, were it named before.

    The leave-one-out t of `grubbs` for every class instead of the largest, P(T > t) with C - 2
    degrees of freedom and no correction for C: for a class that something else has named, never for
    one that was picked by its score.

    Args:
        scores: as `grubbs`, transformed likewise.

    Returns:
        One p-value per class in [0, 1]. Each rejects a level of α with probability α if scores are
        independent and normal. 1 beside others that are all equal: nothing says by how much they
        differ by nature.

    Raises:
        DegenerateStatisticError: fewer than five scores, or a score that is not finite.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
    """
    values = _scores_as_list(scores)
    statistics = [_against_rest(values, index) for index in range(max(1, len(values)))]
    return tuple(1.0 if math.isnan(t) else student_t_sf(t, len(values) - 2) for t in statistics)


def generalised_esd(
    scores: Tensor, *, alpha: float, max_outliers: int | None = None
) -> tuple[int, ...]:
    """Return which scores are outliers on the upper side, when there may be several.

    [ESD83], one-sided: the largest score is removed again and again, each time tested by `grubbs`
    against those that are left; the outliers are the first r, for the largest r whose test passes.
    So two outliers that hide each other from `grubbs` are still found.

    Args:
        scores: one score per class, larger is more suspicious. Shape ``(C,)``, floating, any
            device.
        alpha: level of each test, in (0, 1).
        max_outliers: how many removals to try; None is C // 4.

    Returns:
        Indices of the outliers, largest score first; empty when there are none.

    Raises:
        DegenerateStatisticError: as `grubbs`. Once an outlier is established, a rest of equal
            scores ends the search instead.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
        ValueError: `alpha` is outside (0, 1) or `max_outliers` is outside 1..C - 4.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be in (0, 1), got {alpha!r}")
    values = _scores_as_list(scores)
    # The last test needs `MIN_CLASSES` scores. Fewer than that raise the sentence of `grubbs`.
    most = max(1, len(values) - MIN_CLASSES + 1)
    removals = max(1, len(values) // 4) if max_outliers is None else max_outliers
    if not 1 <= removals <= most:
        raise ValueError(
            f"max_outliers must be between 1 and {most} for {len(values)} scores, got {removals!r}"
        )
    positions = list(range(len(values)))
    removed: list[int] = []
    outliers = 0
    for _ in range(removals):
        try:
            index, _, p_value = _largest_against_rest(values)
        except DegenerateStatisticError:
            if outliers:
                break
            raise
        del values[index]
        removed.append(positions.pop(index))
        if p_value <= alpha:
            outliers = len(removed)
    return tuple(removed[:outliers])


def robust_z(scores: Tensor) -> Tensor:
    """Return each score's distance from the median in units of the scaled MAD.

    z = (v - median) / (1.4826 · MAD), the median being the mean of the two middle values where
    their number is even (``torch.median`` takes the lower one). A zero MAD is replaced by 1e-12 ·
    |median|, so that equal scores stay at zero and any other is plainly far out.

    Args:
        scores: Shape ``(D,)``, floating, any device; NaN entries are left out and stay NaN.

    Returns:
        Shape ``(D,)``, float64, device of `scores`; dimensionless, positive above the median.

    Raises:
        DegenerateStatisticError: fewer than three numbers, an infinite score, or both the MAD and
            the median are zero.
        ShapeError: `scores` is not 1-D.
        DtypeError: `scores` is not floating point.
    """
    require_dimensions("scores", scores, 1)
    require_floating("scores", scores)
    values = scores.detach().to(torch.float64)
    valid = values[~values.isnan()]
    if valid.numel() < 3 or not bool(valid.isfinite().all()):
        raise DegenerateStatisticError(
            "a robust z needs at least three scores, all of them finite, got "
            f"{valid.numel()} numbers, {int(valid.isinf().sum())} of them infinite"
        )
    median = _middle(valid)
    mad = _middle((valid - median).abs())
    scale = float(mad) if float(mad) > 0.0 else _RELATIVE_ZERO * abs(float(median))
    if scale == 0.0:
        raise DegenerateStatisticError(
            "a robust z needs scores that differ, got a median and a MAD of zero"
        )
    return (values - median) / (MAD_TO_SIGMA * scale)


def clopper_pearson(
    successes: int, trials: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a success probability.

    [CP34]. It covers the true probability with at least `confidence`, whatever that probability is.

    Args:
        successes: how often it happened, 0 to `trials`.
        trials: how often it could have; 0 gives the whole interval (0, 1).
        confidence: in (0, 1).

    Returns:
        Lower and upper end, fractions in [0, 1].

    Raises:
        ValueError: the counts contradict each other, or `confidence` is outside (0, 1).
    """
    tail = 0.5 * (1.0 - _checked_confidence(confidence))
    return binomial_lower_end(successes, trials, tail), binomial_upper_end(successes, trials, tail)


def lower_bound(successes: int, trials: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided lower Clopper-Pearson bound of a success probability.

    [CP34]. With as many successes as trials it is (1 - confidence)^(1 / trials). Arguments and
    errors as `clopper_pearson`; no trials give 0.
    """
    return binomial_lower_end(successes, trials, 1.0 - _checked_confidence(confidence))


def upper_bound(successes: int, trials: int, *, confidence: float = 0.95) -> float:
    """Return the one-sided upper Clopper-Pearson bound of a success probability.

    [CP34]. Arguments and errors as `clopper_pearson`; no trials give 1.
    """
    return binomial_upper_end(successes, trials, 1.0 - _checked_confidence(confidence))


def log_odds(successes: Tensor, trials: Tensor) -> Tensor:
    """Return logit((k + ½) / (n + 1)), the transform of shares before an outlier test.

    [O] methods/detectors.md §0.2. The half keeps shares of 0 and 1 finite and gives a share
    measured on few images its due smallness.

    Args:
        successes: counts k, 0 to n. Integer or floating, any shape and device.
        trials: counts n, same shape; 0 gives a log-odds of 0.

    Returns:
        Same shape and device, float64; nats.

    Raises:
        ShapeError: the shapes differ.
        ValueError: a count is negative, NaN, or above its number of trials.
    """
    require_same_shape("successes", successes, "trials", trials)
    k, n = successes.detach().to(torch.float64), trials.detach().to(torch.float64)
    if not bool(((k >= 0) & (k <= n) & n.isfinite()).all()):
        raise ValueError("successes must be between 0 and trials")
    return torch.log(k + 0.5) - torch.log(n - k + 0.5)


def _middle(values: Tensor) -> Tensor:
    """Return the median of a non-empty 1-D tensor, the mean of the two middle values if even."""
    ordered = values.sort().values
    upper = len(ordered) // 2
    return 0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[upper])


def _checked_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    return confidence
