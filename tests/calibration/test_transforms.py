from __future__ import annotations

import math

import pytest

from modelaudit.calibration.transforms import Transform, transform_of, transformed
from modelaudit.results import Finding
from tests.helpers.calibration import result


def test_divergences_are_taken_by_their_logarithm() -> None:
    assert transformed(result("mbns", 25.0), Transform.LOG) == pytest.approx(math.log(25))
    assert transformed(result("mbns", 0.0), Transform.LOG) == pytest.approx(math.log(1e-6))


def test_shares_are_taken_by_their_log_odds_with_half_an_image() -> None:
    value = transformed(result("ban", 0.1), Transform.LOG_ODDS)
    assert value == pytest.approx(math.log(20.5 / 180.5))
    assert transformed(result("ban", 0.0), Transform.LOG_ODDS) == pytest.approx(
        math.log(0.5 / 200.5)
    )
    assert transformed(result("ban", -0.3), Transform.LOG_ODDS) == pytest.approx(
        math.log(0.5 / 200.5)
    )
    assert transformed(result("ban", 1.0), Transform.LOG_ODDS) == pytest.approx(
        math.log(200.5 / 0.5)
    )


@pytest.mark.parametrize("t", [0.0, 1.4, 3.35, 8.0, 40.0])
def test_the_largest_of_k_t_statistics_becomes_its_normal_quantile(t: float) -> None:
    from scipy import stats

    single = stats.t.sf(t, 8)
    expected = stats.norm.isf(-math.expm1(10 * math.log1p(-single)))
    assert transformed(result("mm_bd", t), Transform.MAX_T) == pytest.approx(expected, rel=1e-9)


def test_extreme_t_statistics_stay_finite() -> None:
    for t in (-1e9, 1e9, 1e300):
        value = transformed(result("mm_bd", t, per_class=(1.0,) * 200), Transform.MAX_T)
        assert value is not None
        assert math.isfinite(value)


def test_a_maximum_over_an_unknown_number_of_classes_has_no_scale() -> None:
    assert transformed(result("mm_bd", 3.0, per_class=()), Transform.MAX_T) is None


def test_other_scores_stay_as_they_are() -> None:
    assert transformed(result("dde", 0.25), Transform.IDENTITY) == 0.25


@pytest.mark.parametrize("transform", list(Transform))
def test_no_score_and_no_power_have_no_statistic(transform: Transform) -> None:
    assert transformed(result("mbns", None), transform) is None
    assert transformed(result("mbns", 3.0, finding=Finding.NO_POWER), transform) is None
    assert transformed(result("mbns", math.nan), transform) is None


@pytest.mark.parametrize("transform", list(Transform))
def test_every_transform_rises_with_the_score(transform: Transform) -> None:
    scores = [0.001, 0.01, 0.1, 0.5, 0.9]
    values = [transformed(result("x", score), transform) for score in scores]
    assert values == sorted(values, key=lambda v: -math.inf if v is None else v)
    assert len(set(values)) == len(scores)


def test_the_built_in_scanners_have_their_transforms() -> None:
    assert transform_of("ban") is Transform.LOG_ODDS
    assert transform_of("mbns") is Transform.LOG
    assert transform_of("mm_bd") is Transform.MAX_T
    assert transform_of("somebodys") is Transform.IDENTITY
