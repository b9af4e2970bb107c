"""Rules by which one hypothesis wins over the others (methods/detectors.md §12.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelaudit.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.architectures.base import Candidate
    from modelaudit.fit.trial import Hypothesis, Match

#: A hypothesis is out when it is this many standard errors below the best.
_STANDARD_ERRORS = 2.0

#: The lowest divergence wins clearly over those that are at least this many times as large.
_CLEAR_RATIO = 2.0

#: Ways to run the model that differ on no more than this share of the images are the same for us.
_SAME_FRACTION = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """What is known of one hypothesis on the search images.

    Attributes:
        hypothesis: how the model was run.
        order: place in the order of preference; breaks exact ties.
        outputs: predicted outputs on the images that were run. Shape ``(N,)``, int64.
        hits: per image, 1 or 0 for a right or wrong label, or the confidence if there are no
            labels. Shape ``(N,)``, float64.
        is_labelled: what `hits` is.
        match: how well the first BatchNorm layer fits the images; None without one, or if not
            measured.
    """

    hypothesis: Hypothesis
    order: int
    outputs: np.ndarray
    hits: np.ndarray
    is_labelled: bool
    match: Match | None = None

    @property
    def divergence(self) -> float | None:
        """Median divergence of the first BatchNorm layer, nats; None without one."""
        return None if self.match is None else self.match.divergence

    @property
    def score(self) -> float:
        """Accuracy, or mean confidence if there are no labels."""
        return float(self.hits.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `score`.

        Of an accuracy with one hit and one miss added: at 300 of 300 the plain formula gives zero,
        and every hypothesis that misses one image would be impossible.
        """
        n = len(self.hits)
        if self.is_labelled:
            p = (float(self.hits.sum()) + 1) / (n + 2)
            return math.sqrt(p * (1 - p) / n)
        return float(self.hits.std()) / math.sqrt(n)


def plausible(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials whose score is within two standard errors of the best one."""
    best = max(trials, key=lambda t: (t.score, -t.order))
    least = best.score - _STANDARD_ERRORS * best.standard_error
    return [t for t in trials if t.score >= least]


def contenders(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that the lowest first-layer divergence does not beat clearly.

    All of them if one has no BatchNorm layer.
    """
    values = [t.divergence for t in trials if t.divergence is not None]
    if len(values) < len(trials):
        return list(trials)
    least = min(values)
    # Strictly below twice the lowest, so that half the runner-up's is a clear win; the lowest
    # itself even if zero.
    return [
        t
        for t, value in zip(trials, values, strict=True)
        if value == least or value < _CLEAR_RATIO * least
    ]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the lowest divergence, then the best score, then the first place.

    Divergences count to two significant digits: architectures that share their first layers have
    the same one.
    """
    is_comparable = all(t.divergence is not None for t in trials)

    def key(trial: Trial) -> tuple[float, float, int]:
        value = trial.divergence if is_comparable else None
        return (0.0 if value is None else float(f"{value:.1e}"), -trial.score, trial.order)

    return min(trials, key=key)


def disagreement(first: Trial, second: Trial) -> float:
    """Return the share of images on which two trials differ."""
    return float(np.mean(first.outputs != second.outputs))


def settle(
    winner: Trial, others: Sequence[Trial], candidates: Sequence[Candidate]
) -> tuple[str, ...]:
    """Return notes on hypotheses that do as well as the winner and predict nearly the same.

    Args:
        winner: the trial to take.
        others: the trials that neither accuracy nor divergence beats; on the same images.
        candidates: the architectures that the hypotheses index.

    Raises:
        FitError: one of them predicts otherwise on more than 2 % of the images.
    """
    same: dict[str, None] = {}
    for other in others:
        mine, theirs, option = _difference(winner.hypothesis, other.hypothesis, candidates)
        share = disagreement(winner, other)
        if share > _SAME_FRACTION:
            what = "accuracy" if winner.is_labelled else "confidence"
            raise FitError(
                f"{mine} and {theirs} fit the clean images equally well ({what} "
                f"{winner.score:.3f} and {other.score:.3f} on {len(winner.hits)} images) but "
                f"predict differently on {share:.1%}; choose with {option}"
            )
        same[f"{theirs} does as well as {mine} and predicts the same on all but {share:.1%}"] = None
    return tuple(same)


def describe(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    """Return a candidate's name, with its arguments if the name alone is ambiguous."""
    if sum(other.name == candidate.name for other in candidates) == 1:
        return candidate.name
    arguments = ", ".join(f"{key}={value}" for key, value in candidate.arguments.items())
    return f"{candidate.name}({arguments})"


def _difference(
    mine: Hypothesis, theirs: Hypothesis, candidates: Sequence[Candidate]
) -> tuple[str, str, str]:
    if mine.candidate != theirs.candidate:
        names = [describe(candidates[h.candidate], candidates) for h in (mine, theirs)]
        return names[0], names[1], "--arch"
    if mine.input_size != theirs.input_size:
        return f"input size {mine.input_size}", f"input size {theirs.input_size}", "--input-size"
    return (
        f"preprocessing {mine.preprocessing.id!r}",
        f"preprocessing {theirs.preprocessing.id!r}",
        "--preprocess",
    )
