"""P-values: corrected for their number, of counts, and beside reference models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelaudit.functional.special import regularised_incomplete_beta

if TYPE_CHECKING:
    from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values adjusted for their number, valid under any dependence.

    [HOLM79]: with p sorted ascending, the i-th of n becomes max over j ≤ i of min(1, (n - j + 1)
    p_j).

    Args:
        p_values: in [0, 1], any number of them.

    Returns:
        The adjusted p-values in the order given; empty for none.

    Raises:
        ValueError: an entry is NaN or outside [0, 1].
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"p-values must be in [0, 1], got {list(p_values)!r}")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)


def empirical_p_value(score: float, references: Sequence[float]) -> float:
    """Return the share of clean reference models whose score is at least `score`.

    [O] methods/detectors.md §0.3: p = (1 + #{reference ≥ score}) / (1 + n), which is never zero,
    and 1 without references.

    Args:
        score: the suspect's score, larger is more suspicious.
        references: scores of clean models of the same kind.

    Returns:
        A p-value in (0, 1].

    Raises:
        ValueError: the score or a reference is NaN.
    """
    if math.isnan(score) or any(math.isnan(reference) for reference in references):
        raise ValueError("an empirical p-value needs scores that are numbers, got nan")
    return (1 + sum(reference >= score for reference in references)) / (1 + len(references))


def consensus_p_value(count: int, restarts: int, classes: int) -> float:
    """Return how likely `count` of `restarts` name the same class by chance.

    [O] methods/detectors.md §1.3a: C · P(Bin(R, 1/C) ≥ count), capped at 1: each restart names one
    of C classes uniformly. Real clean models favour their weak classes, so this alone proves
    nothing.

    Args:
        count: how many restarts named the modal class, 0 to `restarts`.
        restarts: how many there were, R.
        classes: how many classes there are, C, at least 1.

    Returns:
        A p-value in (0, 1].

    Raises:
        ValueError: the numbers contradict each other.
    """
    if classes < 1 or not 0 <= count <= restarts:
        raise ValueError(
            f"need 0 ≤ count ≤ restarts and a class, got count {count!r}, restarts {restarts!r}, "
            f"classes {classes!r}"
        )
    if count == 0 or classes == 1:
        return 1.0
    share = 1.0 / classes
    # P(Bin(R, q) ≥ k) is the incomplete beta function I_q(k, R - k + 1).
    tail = regularised_incomplete_beta(
        count, restarts - count + 1, share, complement=(classes - 1) / classes
    )
    return min(1.0, classes * tail)
