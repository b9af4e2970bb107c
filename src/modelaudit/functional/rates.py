"""Rates and rankings over populations of models: counts with intervals, AUROC, operating points.

Everything here is plain Python numbers: a population holds tens of models. Nothing is drawn at
random, so the same scores give the same digits everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.functional.special import normal_quantile
from modelaudit.functional.statistics import clopper_pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bisection steps of an interval's end: each halves the error, so this exhausts a double.
_BISECTIONS = 80

#: Absorbs the rounding of shares of images and of what is computed from them, far less than any
#: image: 0.29 · 100 is 28.999999999999996 in floating point.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something happened, with its interval.

    Attributes:
        count: how often it happened.
        trials: how often it could have.
        low: lower end of the Clopper-Pearson interval, a fraction.
        high: upper end.
    """

    count: int
    trials: int
    low: float
    high: float

    @property
    def fraction(self) -> float | None:
        """The share itself; None without trials."""
        return self.count / self.trials if self.trials else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Auroc:
    """How well a score orders two groups.

    Attributes:
        value: share of (positive, negative) pairs that the score orders rightly, ties half.
        low: lower end of the interval.
        high: upper end.
        positives: how many positives there were.
        negatives: how many negatives.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """What a score detects when the false alarms are limited.

    Attributes:
        above: a model is flagged when its score is *greater* than this.
        false_alarms: flagged negatives.
        detections: flagged positives.
    """

    above: float
    false_alarms: Rate
    detections: Rate


def rate(count: int, trials: int, *, confidence: float = 0.95) -> Rate:
    """Return a count with its two-sided Clopper-Pearson interval.

    [CP34]. Without trials the interval is (0, 1).

    Raises:
        ValueError: the counts contradict each other, or `confidence` is outside (0, 1).
    """
    low, high = clopper_pearson(count, trials, confidence=confidence)
    return Rate(count=count, trials=trials, low=low, high=high)


def auroc(
    positives: Sequence[float], negatives: Sequence[float], *, confidence: float = 0.95
) -> Auroc:
    """Return the area under the ROC curve with Newcombe's score interval.

    [NEWCOMBE06] method 5: the ends are the θ with |θ - value| = z · sqrt(V(θ)), where

        V(θ) = θ(1 - θ) · (1 + N(1 - θ)/(2 - θ) + Nθ/(1 + θ)) / (mn),  N = (m + n)/2 - 1,

    m and n being the sizes of the groups. DeLong's variance and every bootstrap are zero for a
    score that separates the groups perfectly, which is common with few models and no certainty at
    all; this interval stays open there. It depends on the area and the sizes alone.

    Args:
        positives: scores of the models that should score high; at least one.
        negatives: scores of the others; at least one. Infinities are allowed.
        confidence: in (0, 1).

    Returns:
        The area and its interval, fractions in [0, 1].

    Raises:
        ValueError: a group is empty, a score is NaN, or `confidence` is outside (0, 1).
    """
    _check(positives, negatives)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    # Won pairs count two and ties one: whole numbers, so that the order of the sum is no matter.
    doubled = sum((high > low) + (high >= low) for high in positives for low in negatives)
    m, n = len(positives), len(negatives)
    value = doubled / (2 * m * n)
    z = normal_quantile(0.5 + 0.5 * confidence)
    low = _score_end(value, m, n, z)
    # The formula is symmetric: the upper end of a value is the mirrored lower end of its mirror.
    high = 1.0 - _score_end(1.0 - value, m, n, z)
    return Auroc(value=value, low=low, high=high, positives=m, negatives=n)


def roc_points(
    positives: Sequence[float], negatives: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Return the corners of the ROC curve as (false-positive rate, detection rate).

    Scores that tie move together, so a tie between the groups is a slanted edge.

    Args:
        positives: at least one score.
        negatives: at least one score.

    Returns:
        From (0, 0) to (1, 1), both coordinates never falling.

    Raises:
        ValueError: a group is empty or a score is NaN.
    """
    _check(positives, negatives)
    points = [(0.0, 0.0)]
    for score in sorted({*positives, *negatives}, reverse=True):
        false_alarms = sum(other >= score for other in negatives) / len(negatives)
        detections = sum(other >= score for other in positives) / len(positives)
        points.append((false_alarms, detections))
    return tuple(points)


def operating_point(
    positives: Sequence[float],
    negatives: Sequence[float],
    *,
    false_positive_rate: float,
    confidence: float = 0.95,
) -> OperatingPoint | None:
    """Return the detection rate at a limited rate of false alarms, or None if it is unresolved.

    With n negatives, k = ⌊rate · n⌋ of them may be flagged; the threshold is the (k + 1)-th largest
    negative score, which is not flagged itself. With fewer than 1/rate negatives k is zero whatever
    the rate is: the numbers cannot tell that rate from any smaller one, and there is no result.

    The threshold is chosen on the very negatives that are counted: this describes the ranking on
    this population, it is no rate of a fixed threshold.

    Args:
        positives: scores; may be empty (no trials then).
        negatives: scores.
        false_positive_rate: largest share of negatives that may be flagged, in (0, 1).
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError: a score is NaN, or a rate is outside (0, 1).
    """
    if any(math.isnan(score) for score in (*positives, *negatives)):
        raise ValueError("an operating point needs scores that are numbers, got nan")
    if not 0.0 < false_positive_rate < 1.0:
        raise ValueError(f"false_positive_rate must be in (0, 1), got {false_positive_rate!r}")
    allowed = math.floor(false_positive_rate * len(negatives) + ROUNDING)
    if allowed < 1:
        return None
    above = sorted(negatives, reverse=True)[allowed]
    false_alarms = sum(score > above for score in negatives)
    detections = sum(score > above for score in positives)
    return OperatingPoint(
        above=above,
        false_alarms=rate(false_alarms, len(negatives), confidence=confidence),
        detections=rate(detections, len(positives), confidence=confidence),
    )


def _check(positives: Sequence[float], negatives: Sequence[float]) -> None:
    if not positives or not negatives:
        raise ValueError(
            "a ranking needs scores of both groups, got "
            f"{len(positives)} positives and {len(negatives)} negatives"
        )
    if any(math.isnan(score) for score in (*positives, *negatives)):
        raise ValueError("a ranking needs scores that are numbers, got nan")


def _score_end(value: float, m: int, n: int, z: float) -> float:
    """Return the lower end of Newcombe's interval, in [0, value]."""
    extra = 0.5 * (m + n) - 1.0

    def is_below(theta: float) -> bool:
        spread = 1.0 + extra * (1.0 - theta) / (2.0 - theta) + extra * theta / (1.0 + theta)
        variance = theta * (1.0 - theta) * spread / (m * n)
        return value - theta > z * math.sqrt(variance)

    # At 0 the distance is the value itself and the variance nothing; just below `value` the
    # distance vanishes faster than the deviation, also where the variance at `value` is zero.
    low, high = 0.0, value
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return 0.5 * (low + high)
