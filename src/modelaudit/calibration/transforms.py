"""Bringing a scanner's score onto a scale on which clean models are roughly normal.

[O] methods/detectors.md §0.2: logarithms for divergences, log-odds for shares. Every transform
rises strictly with the score, so that no ranking changes.
"""

from __future__ import annotations

import math
from enum import StrEnum
from statistics import NormalDist
from typing import TYPE_CHECKING

from modelaudit.functional.statistics import student_t_sf

if TYPE_CHECKING:
    from modelaudit.results import ScannerResult

#: Images behind a share: 40 % of a clean set of 500. The half image of §0.2 is relative to it.
SHARE_IMAGES = 200
#: A divergence of nothing at all; far below any that was ever measured.
SMALLEST_RATIO = 1e-6
#: Beyond these tails a normal quantile is no number that anyone could check.
SMALLEST_TAIL = 1e-300
LARGEST_TAIL = 1.0 - 1e-12


class Transform(StrEnum):
    """How a score is transformed."""

    #: the score itself
    IDENTITY = "identity"
    #: natural logarithm of a positive score
    LOG = "log"
    #: log-odds of a share with half an image added
    LOG_ODDS = "log_odds"
    #: normal quantile of the chance that the largest of K leave-one-out t reaches the score
    MAX_T = "max_t"


#: What the built-in scanners' scores are. A scanner that is not listed keeps its score as it is.
BY_SCANNER = {
    "ban": Transform.LOG_ODDS,
    "mbns": Transform.LOG,
    "mm_bd": Transform.MAX_T,
}


def transform_of(scanner_id: str) -> Transform:
    """Return the transform of a scanner's score."""
    return BY_SCANNER.get(scanner_id, Transform.IDENTITY)


def transformed(result: ScannerResult, transform: Transform) -> float | None:
    """Return a result's score on the transform's scale.

    Args:
        result: any result; its `per_class` tells how many classes a `Transform.MAX_T` compared.
        transform: which scale.

    Returns:
        A finite number that rises with the score; None where the scanner has no score, had no
        power, or does not say over how many classes it took the maximum.
    """
    score = result.score
    if score is None or not math.isfinite(score) or result.finding == "no_power":
        return None
    if transform is Transform.LOG:
        return math.log(max(score, SMALLEST_RATIO))
    if transform is Transform.LOG_ODDS:
        count = min(max(score, 0.0), 1.0) * SHARE_IMAGES
        return math.log(count + 0.5) - math.log(SHARE_IMAGES - count + 0.5)
    if transform is Transform.MAX_T:
        return _max_t(score, len(result.per_class))
    return score


def _max_t(statistic: float, classes: int) -> float | None:
    """Return the normal quantile of the largest of `classes` leave-one-out t statistics."""
    if classes < 3:
        return None
    single = student_t_sf(statistic, classes - 2)
    # 1 - (1 - p)^K without losing small p
    any_of_them = -math.expm1(classes * math.log1p(-min(single, LARGEST_TAIL)))
    tail = min(max(any_of_them, SMALLEST_TAIL), LARGEST_TAIL)
    return -NormalDist().inv_cdf(tail)
