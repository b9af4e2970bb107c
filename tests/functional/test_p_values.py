from __future__ import annotations

import itertools
import math

import pytest

from modelaudit.functional.p_values import consensus_p_value, empirical_p_value, holm


def reference_holm(p_values: list[float]) -> list[float]:
    """Adjust each p-value by the smallest level at which Holm's procedure rejects it."""
    adjusted = []
    for p in p_values:
        rejections = []
        for other in p_values:
            # A hypothesis of rank j is tested at alpha / (n - j): count the strictly smaller ones.
            smaller = sum(q < other for q in p_values)
            if other <= p:
                rejections.append(min(1.0, (len(p_values) - smaller) * other))
        adjusted.append(max(rejections))
    return adjusted


@pytest.mark.parametrize(
    "p_values", [[0.01, 0.04, 0.03], [0.5, 0.5, 0.001, 0.02], [1.0, 0.0], [0.2]]
)
def test_holm_equals_the_literal_procedure_in_any_order(p_values: list[float]) -> None:
    for order in itertools.permutations(p_values):
        assert list(holm(order)) == pytest.approx(reference_holm(list(order)), abs=1e-15)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == ()


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"p-values must be in \[0, 1\]"):
        holm([0.5, p])


def test_empirical_p_value_counts_references_at_least_as_high() -> None:
    references = [0.1, 0.2, 0.3, 0.4]
    assert empirical_p_value(0.5, references) == 1 / 5
    assert empirical_p_value(0.3, references) == 3 / 5
    assert empirical_p_value(0.0, references) == 1.0


def test_nineteen_references_are_needed_for_five_percent() -> None:
    assert empirical_p_value(1.0, [0.0] * 19) == 0.05
    assert empirical_p_value(1.0, []) == 1.0


def test_empirical_p_value_refuses_nan() -> None:
    for score, references in ((math.nan, [0.0]), (0.0, [math.nan])):
        with pytest.raises(ValueError, match="scores that are numbers"):
            empirical_p_value(score, references)


@pytest.mark.parametrize(("count", "p_value"), [(4, 0.050), (5, 0.0043)])
def test_consensus_of_eight_restarts_has_the_tabulated_p_values(count: int, p_value: float) -> None:
    assert consensus_p_value(count, 8, 10) == pytest.approx(p_value, rel=0.01)


@pytest.mark.parametrize("classes", [2, 10, 43])
def test_consensus_agrees_with_the_binomial_tail(classes: int) -> None:
    from scipy import stats

    for restarts in (1, 8):
        for count in range(restarts + 1):
            tail = float(stats.binom.sf(count - 1, restarts, 1 / classes))
            expected = min(1.0, classes * tail)
            assert consensus_p_value(count, restarts, classes) == pytest.approx(expected, rel=1e-10)


def test_consensus_on_the_only_class_is_no_evidence() -> None:
    assert consensus_p_value(8, 8, 1) == 1.0
    assert consensus_p_value(0, 0, 10) == 1.0


@pytest.mark.parametrize(("count", "restarts", "classes"), [(-1, 8, 10), (9, 8, 10), (1, 8, 0)])
def test_consensus_refuses_numbers_that_contradict_each_other(
    count: int, restarts: int, classes: int
) -> None:
    with pytest.raises(ValueError, match="need 0 ≤ count ≤ restarts and a class"):
        consensus_p_value(count, restarts, classes)
