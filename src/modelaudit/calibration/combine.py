"""The combined score: how surprising a suspect's statistics are beside clean models.

[O] Each statistic is standardised by median and MAD of the clean models and turned into a surprise,
-log10 of its Student-t predictive tail; the surprises are added, as in Fisher's combination. The
sum is calibrated on the clean models themselves, each scored with itself left out, so that it needs
no independence of the scanners. What a scanner did not say enters neither the suspect's sum nor the
clean models' ones: both are taken over the same scanners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from modelaudit.calibration.population import MIN_CLEAN
from modelaudit.functional.p_values import empirical_p_value
from modelaudit.functional.statistics import MAD_TO_SIGMA, student_t_sf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.calibration.population import ModelStatistics

#: Spread below which clean models count as equal: on every scale here (log, log-odds, normal
#: quantile) a twentieth is a difference of about 5 % in the score.
SMALLEST_SPREAD = 0.05
#: Spread of the clean models' cube roots below which their number is too small to tell one.
SMALLEST_ROOT_SPREAD = 0.02
#: Tails below this are all the same to a decision.
SMALLEST_TAIL = 1e-300
#: Halvings of an interval: more than a double has digits.
_BISECTIONS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """The combined scores of clean models, over one choice of scanners.

    Attributes:
        scanner_ids: which statistics are combined.
        columns: the clean models' statistics, one row per model.
        scores: each clean model's combined score with itself left out.
        center: mean of the scores' cube roots, which are nearly normal (Wilson-Hilferty).
        spread: their standard deviation.
    """

    scanner_ids: tuple[str, ...]
    columns: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    center: float
    spread: float

    def score(self, statistics: Mapping[str, float | None]) -> float:
        """Return the combined score of a model that has every one of the statistics."""
        return _combined([_known(statistics[i]) for i in self.scanner_ids], self.columns)

    def empirical(self, score: float) -> float:
        """Return (1 + number of clean models that score as high) / (1 + n)."""
        return empirical_p_value(score, self.scores)

    def predictive(self, score: float) -> float:
        """Return the Student-t tail of a score for one more clean model."""
        count = len(self.scores)
        root = max(score, 0.0) ** (1 / 3)
        t = (root - self.center) / (self.spread * math.sqrt(1 + 1 / count))
        return student_t_sf(t, count - 1)

    def threshold(self, level: float) -> float:
        """Return the score whose predictive p-value is `level`."""
        low, high = 0.0, 1.0
        while self.predictive(high) > level and high < 1e12:
            high *= 2
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.predictive(middle) > level else (low, middle)
        return high


def surprise(value: float, clean: Sequence[float]) -> float:
    """Return -log10 of the predictive tail of a statistic beside those of clean models.

    z = (value - median) / (scale · √(1 + 1/n)), scale = 1.4826 · MAD but at least
    `SMALLEST_SPREAD`; the tail is that of Student's t with n - 1 degrees of freedom.

    Args:
        value: the transformed statistic.
        clean: at least two of clean models.

    Returns:
        A number in [0, 300] that rises with `value`; 0.3 in the middle of the clean models.
    """
    center = median(clean)
    scale = max(MAD_TO_SIGMA * median(abs(c - center) for c in clean), SMALLEST_SPREAD)
    z = (value - center) / (scale * math.sqrt(1 + 1 / len(clean)))
    return -math.log10(max(student_t_sf(z, len(clean) - 1), SMALLEST_TAIL)) + 0.0


def null_of(models: Sequence[ModelStatistics], scanner_ids: Sequence[str]) -> Null | None:
    """Return the clean models' combined scores over a choice of scanners.

    Args:
        models: clean models; those that lack one of the statistics are left out.
        scanner_ids: which statistics to combine.

    Returns:
        None without scanners, or with fewer than `MIN_CLEAN` complete models.
    """
    ids = tuple(sorted(scanner_ids))
    rows = [tuple(m.statistics.get(i) for i in ids) for m in models]
    complete = tuple(tuple(map(_known, row)) for row in rows if None not in row)
    if not ids or len(complete) < MIN_CLEAN:
        return None
    scores = tuple(
        _combined(row, complete[:index] + complete[index + 1 :])
        for index, row in enumerate(complete)
    )
    roots = [score ** (1 / 3) for score in scores]
    center = math.fsum(roots) / len(roots)
    variance = math.fsum((root - center) ** 2 for root in roots) / (len(roots) - 1)
    return Null(
        scanner_ids=ids,
        columns=complete,
        scores=scores,
        center=center,
        spread=max(math.sqrt(variance), SMALLEST_ROOT_SPREAD),
    )


def _combined(row: Sequence[float], clean: Sequence[Sequence[float]]) -> float:
    return math.fsum(
        surprise(value, [other[index] for other in clean]) for index, value in enumerate(row)
    )


def _known(value: float | None) -> float:
    assert value is not None
    return value
