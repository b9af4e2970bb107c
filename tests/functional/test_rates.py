from __future__ import annotations

import math

import numpy as np
import pytest

from modelaudit.functional.rates import auroc, operating_point, rate, roc_points


def test_a_rate_carries_the_clopper_pearson_interval_of_scipy() -> None:
    from scipy import stats

    for count, trials in ((0, 30), (1, 30), (29, 30), (30, 30), (7, 12)):
        found = rate(count, trials)
        exact = stats.binomtest(count, trials).proportion_ci(0.95, method="exact")
        assert found.fraction == count / trials
        assert found.low == pytest.approx(exact.low, abs=1e-12)
        assert found.high == pytest.approx(exact.high, abs=1e-12)


def test_a_rate_without_trials_is_unknown() -> None:
    nothing = rate(0, 0)

    assert nothing.fraction is None
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_auroc_by_hand_with_a_tie() -> None:
    # pairs: 3>1, 3>2, 2>1 and the tie 2=2: (3 + 0.5) / 4
    assert auroc([3.0, 2.0], [1.0, 2.0]).value == 0.875


def test_auroc_is_the_mann_whitney_statistic_of_scipy() -> None:
    from scipy import stats

    draw = np.random.default_rng(3)
    positives = draw.normal(1.0, 1.0, 23).round(1).tolist()
    negatives = draw.normal(0.0, 1.0, 31).round(1).tolist()

    statistic = stats.mannwhitneyu(positives, negatives).statistic
    assert auroc(positives, negatives).value == pytest.approx(statistic / (23 * 31), abs=1e-15)


@pytest.mark.parametrize(("wins", "m", "n"), [(90, 10, 10), (50, 10, 10), (7, 4, 6), (24, 4, 6)])
def test_the_ends_of_the_interval_solve_newcombes_equation(wins: int, m: int, n: int) -> None:
    from scipy.optimize import brentq
    from scipy.stats import norm

    value = wins / (m * n)
    # Any scores with that many ordered pairs: the first `full` positives win against all.
    full, rest = divmod(wins, n)
    positives = [100.0] * full + [rest - 0.5] * (full < m) + [-1.0] * (m - full - 1)
    found = auroc(positives[:m], [float(i) for i in range(n)])
    assert found.value == pytest.approx(value)

    extra = (m + n) / 2 - 1

    def distance(theta: float) -> float:
        q = 1 + extra * (1 - theta) / (2 - theta) + extra * theta / (1 + theta)
        return float(
            abs(theta - value) - norm.ppf(0.975) * np.sqrt(theta * (1 - theta) * q / m / n)
        )

    assert found.low == pytest.approx(brentq(distance, 1e-9, value - 1e-9, xtol=1e-14), abs=1e-9)
    if value < 1.0:
        upper = brentq(distance, value + 1e-9, 1 - 1e-9, xtol=1e-14)
        assert found.high == pytest.approx(upper, abs=1e-9)
    else:
        assert found.high == 1.0


def test_perfect_separation_is_no_certainty() -> None:
    few = auroc([2.0, 3.0, 4.0], [0.0, 1.0])
    many = auroc([2.0] * 60, [0.0] * 60)

    assert few.value == many.value == 1.0
    assert few.high == many.high == 1.0
    assert few.low < 0.6 < 0.9 < many.low < 1.0


def test_the_interval_is_mirrored_with_the_score() -> None:
    up = auroc([1.0, 4.0, 5.0], [0.0, 2.0, 3.0, 1.5])
    down = auroc([-1.0, -4.0, -5.0], [0.0, -2.0, -3.0, -1.5])

    assert down.value == pytest.approx(1.0 - up.value)
    assert (down.low, down.high) == pytest.approx((1.0 - up.high, 1.0 - up.low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # Normal scores 1.5 deviations apart: the true area is Phi(1.5 / sqrt 2).
    from scipy.stats import norm

    draw = np.random.default_rng(11)
    truth = float(norm.cdf(1.5 / math.sqrt(2.0)))
    hits = 0
    for _ in range(400):
        found = auroc(draw.normal(1.5, 1.0, 15).tolist(), draw.normal(0.0, 1.0, 30).tolist())
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_a_ranking_needs_both_groups_and_numbers() -> None:
    with pytest.raises(ValueError, match="both groups, got 0 positives and 1 negatives"):
        auroc([], [1.0])
    with pytest.raises(ValueError, match="both groups"):
        roc_points([1.0], [])
    with pytest.raises(ValueError, match="got nan"):
        auroc([math.nan], [1.0])
    with pytest.raises(ValueError, match="confidence"):
        auroc([1.0], [0.0], confidence=1.0)


def test_roc_points_by_hand() -> None:
    assert roc_points([3.0, 2.0], [2.0, 1.0]) == (
        (0.0, 0.0),
        (0.0, 0.5),
        (0.5, 1.0),
        (1.0, 1.0),
    )


def test_the_area_under_the_points_is_the_auroc() -> None:
    draw = np.random.default_rng(5)
    positives = draw.normal(0.7, 1.0, 19).round(1).tolist()
    negatives = draw.normal(0.0, 1.0, 27).round(1).tolist()
    x, y = np.array(roc_points(positives, negatives)).T

    assert np.trapezoid(y, x) == pytest.approx(auroc(positives, negatives).value, abs=1e-12)


def test_an_operating_point_by_hand() -> None:
    # Five per cent of twenty clean models is one: the threshold is the second largest clean score.
    negatives = [float(i) for i in range(20)]
    found = operating_point([18.0, 18.5, 30.0], negatives, false_positive_rate=0.05)

    assert found is not None
    assert found.above == 18.0
    assert (found.false_alarms.count, found.false_alarms.trials) == (1, 20)
    assert (found.detections.count, found.detections.trials) == (2, 3)


def test_ties_never_exceed_the_allowed_false_alarms() -> None:
    found = operating_point([2.0, 1.0], [1.0] * 40, false_positive_rate=0.05)

    assert found is not None
    assert found.false_alarms.count == 0
    assert found.detections.count == 1


@pytest.mark.parametrize(("n", "share"), [(19, 0.05), (99, 0.01), (0, 0.05)])
def test_too_few_negatives_resolve_no_rate(n: int, share: float) -> None:
    assert operating_point([1.0], [0.0] * n, false_positive_rate=share) is None


@pytest.mark.parametrize(
    ("n", "share", "allowed"), [(100, 0.29, 29), (20, 0.05, 1), (100, 0.01, 1)]
)
def test_exact_shares_are_not_lost_to_rounding(n: int, share: float, allowed: int) -> None:
    found = operating_point([], [float(i) for i in range(n)], false_positive_rate=share)

    assert found is not None
    assert found.false_alarms.count == allowed
    assert found.detections.fraction is None


def test_an_operating_point_refuses_a_rate_of_one_and_nan() -> None:
    with pytest.raises(ValueError, match="false_positive_rate must be in"):
        operating_point([1.0], [0.0], false_positive_rate=1.0)
    with pytest.raises(ValueError, match="got nan"):
        operating_point([1.0], [math.nan], false_positive_rate=0.5)
