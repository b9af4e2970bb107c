from __future__ import annotations

import math
import statistics
from random import Random

import pytest

from modelaudit.calibration.combine import SMALLEST_SPREAD, Null, null_of, surprise
from modelaudit.calibration.population import ModelStatistics

VALUES = [1.0, 1.2, 1.3, 1.5, 2.0, 2.1]


def clean(columns: dict[str, list[float | None]]) -> list[ModelStatistics]:
    rows = zip(*columns.values(), strict=True)
    return [
        ModelStatistics(
            id=str(i),
            architecture="a",
            dataset="",
            classes=10,
            input_size=32,
            images=500,
            attack=None,
            statistics=dict(zip(columns, row, strict=True)),
        )
        for i, row in enumerate(rows)
    ]


def null(columns: dict[str, list[float | None]], *ids: str) -> Null:
    found = null_of(clean(columns), ids or tuple(columns))
    assert found is not None
    return found


def test_a_surprise_is_the_predictive_tail_by_hand() -> None:
    from scipy import stats

    # median 1.4, deviations .4 .2 .1 .1 .6 .7, their median .3
    z = (3.0 - 1.4) / (1.4826 * 0.3 * math.sqrt(1 + 1 / 6))
    assert surprise(3.0, VALUES) == pytest.approx(-math.log10(stats.t.sf(z, 5)), rel=1e-9)
    assert surprise(1.4, VALUES) == pytest.approx(math.log10(2))


def test_equal_clean_models_do_not_make_a_hair_a_surprise() -> None:
    from scipy import stats

    z = 0.02 / (SMALLEST_SPREAD * math.sqrt(1.2))
    expected = -math.log10(stats.t.sf(z, 4))
    assert surprise(1.02, [1.0] * 5) == pytest.approx(expected)


def test_one_odd_clean_model_hardly_moves_a_surprise() -> None:
    mild, odd = surprise(3.0, [*VALUES, 2.2]), surprise(3.0, [*VALUES, 50.0])
    assert odd == pytest.approx(mild, rel=1e-9)


def test_surprises_are_bounded_and_never_negative() -> None:
    many = [math.sin(i) for i in range(200)]
    assert surprise(1e300, many) == 300
    assert 0 <= surprise(-1e300, many) < 1e-9


def test_surprises_rise_with_the_statistic() -> None:
    found = [surprise(x, VALUES) for x in (-5.0, 0.0, 1.0, 1.4, 1.5, 3.0, 9.0, 100.0)]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_each_clean_model_is_scored_without_itself() -> None:
    found = null({"a": list(VALUES)})
    expected = [surprise(v, VALUES[:i] + VALUES[i + 1 :]) for i, v in enumerate(VALUES)]
    assert list(found.scores) == pytest.approx(expected)


def test_the_combined_score_is_the_sum_of_surprises() -> None:
    other = [0.1, 0.5, 0.2, 0.9, 0.3, 0.4]
    found = null({"a": list(VALUES), "b": list(other)})
    expected = surprise(2.5, VALUES) + surprise(0.7, other)
    assert found.score({"a": 2.5, "b": 0.7, "unused": None}) == pytest.approx(expected)


def test_the_combined_score_rises_with_every_statistic() -> None:
    found = null({"a": list(VALUES), "b": [0.1, 0.5, 0.2, 0.9, 0.3, 0.4]})
    for name in ("a", "b"):
        before = -1.0
        for value in (-3.0, 0.0, 1.0, 2.0, 10.0):
            score = found.score({"a": 1.0, "b": 0.2} | {name: value})
            assert score > before
            before = score


def test_p_values_by_hand() -> None:
    from scipy import stats

    found = null({"a": list(VALUES)})
    scores = sorted(found.scores)
    assert found.empirical(scores[-1] + 1) == 1 / 7
    assert found.empirical(scores[-1]) == 2 / 7
    assert found.empirical(0.0) == 1.0
    roots = [s ** (1 / 3) for s in scores]
    t = (2.0 - statistics.mean(roots)) / (statistics.stdev(roots) * math.sqrt(1 + 1 / 6))
    assert found.predictive(8.0) == pytest.approx(stats.t.sf(t, 5), rel=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.05, 0.01, 0.001, 1e-6])
def test_a_threshold_has_its_level(level: float) -> None:
    found = null({"a": list(VALUES)})
    assert found.predictive(found.threshold(level)) == pytest.approx(level, rel=1e-6)


def test_what_is_missing_is_left_out_on_both_sides() -> None:
    columns: dict[str, list[float | None]] = {
        "a": [1.0, 1.2, 1.3, 1.5, 2.0, 2.1, 7.0],
        "b": [0.1, 0.5, 0.2, 0.9, 0.3, 0.4, None],
    }
    assert len(null(columns, "a").scores) == 7
    assert len(null(columns, "a", "b").scores) == 6
    assert null(columns, "b").scores == null({"b": columns["b"][:6]}).scores


def test_too_few_complete_models_and_no_scanner_give_no_score() -> None:
    columns: dict[str, list[float | None]] = {
        "a": [1.0, 1.2, 1.3, 1.5, 2.0],
        "b": [0.1, None, 0.2, 0.9, 0.3],
    }
    assert null_of(clean(columns), ("a",)) is not None
    assert null_of(clean(columns), ("a", "b")) is None
    assert null_of(clean(columns), ()) is None
    assert null_of([], ("a",)) is None


def test_fresh_clean_models_exceed_a_threshold_about_as_often_as_its_level_says() -> None:
    draw = Random(5)
    hits = 0
    for _ in range(12):
        columns: dict[str, list[float | None]] = {
            name: [draw.gauss(0, 1) for _ in range(20)] for name in "abc"
        }
        found = null(columns)
        limit = found.threshold(0.05)
        fresh = [{name: draw.gauss(0, 1) for name in "abc"} for _ in range(50)]
        hits += sum(found.score(model) >= limit for model in fresh)
    assert 0.025 < hits / 600 < 0.09
