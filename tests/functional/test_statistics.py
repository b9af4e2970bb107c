from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modelaudit.errors import DegenerateStatisticError, DtypeError, ShapeError
from modelaudit.functional.statistics import (
    class_p_values,
    clopper_pearson,
    generalised_esd,
    grubbs,
    log_odds,
    lower_bound,
    robust_z,
    student_t_sf,
    upper_bound,
)


def normal_scores(classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, generator=generator, dtype=torch.float64)


def reference_grubbs(scores: np.ndarray) -> tuple[int, float, float]:
    from scipy import stats

    index = int(scores.argmax())
    rest = np.delete(scores, index)
    t = (scores[index] - rest.mean()) / (rest.std(ddof=1) * np.sqrt(1 + 1 / len(rest)))
    return index, float(t), min(1.0, float(len(scores) * stats.t.sf(t, len(scores) - 2)))


@pytest.mark.parametrize("dof", [0.5, 1.0, 2.0, 3.0, 8.0, 41.0, 198.0, 1e4])
@pytest.mark.parametrize("t", [-50.0, -3.0, -1e-3, 0.0, 0.1, 1.0, 3.35, 4.49, 20.0])
def test_student_tail_agrees_with_scipy_to_1e_10(t: float, dof: float) -> None:
    from scipy import stats

    assert math.isclose(student_t_sf(t, dof), float(stats.t.sf(t, dof)), rel_tol=1e-10)


def test_student_tail_of_one_degree_is_the_cauchy_tail() -> None:
    for t in (1e-8, 1.0, 1e10):
        assert student_t_sf(t, 1) == pytest.approx(math.atan2(1.0, t) / math.pi, rel=1e-12)


def test_student_tail_at_infinity_is_zero_and_one() -> None:
    assert student_t_sf(math.inf, 3) == 0.0
    assert student_t_sf(-math.inf, 3) == 1.0
    assert student_t_sf(1e200, 3) == 0.0


def test_student_tail_refuses_nan() -> None:
    with pytest.raises(ValueError, match="t must be a number"):
        student_t_sf(math.nan, 3)


@pytest.mark.parametrize("dof", [0.0, -1.0, math.inf, math.nan])
def test_student_tail_refuses_impossible_degrees_of_freedom(dof: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom must be positive"):
        student_t_sf(1.0, dof)


@pytest.mark.parametrize("classes", [5, 10, 43, 200])
@pytest.mark.parametrize("seed", range(5))
def test_grubbs_equals_the_literal_formula(classes: int, seed: int) -> None:
    scores = normal_scores(classes, seed)
    index, statistic, p_value = reference_grubbs(scores.numpy())
    result = grubbs(scores)
    assert result.index == index
    assert result.statistic == pytest.approx(statistic, rel=1e-12)
    assert result.p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(
    ("classes", "five_percent", "one_percent"),
    [(10, 3.35, 4.49), (43, 3.24, 3.80), (200, 3.53, 3.96)],
)
def test_tabulated_critical_values_have_their_level(
    classes: int, five_percent: float, one_percent: float
) -> None:
    # The table was simulated: its last digit is good to about 0.02.
    assert classes * student_t_sf(five_percent, classes - 2) == pytest.approx(0.05, rel=0.06)
    assert classes * student_t_sf(one_percent, classes - 2) == pytest.approx(0.01, rel=0.12)


@pytest.mark.parametrize("classes", [10, 43])
def test_grubbs_rejects_one_normal_population_in_twenty(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    population = torch.randn(2000, classes, generator=generator)
    rejected = sum(grubbs(row).p_value <= 0.05 for row in population)
    # The binomial standard error of the rate is 0.005.
    assert 0.035 <= rejected / 2000 <= 0.065


@pytest.mark.parametrize("classes", [5, 10, 43])
def test_class_p_values_equal_the_literal_formula(classes: int) -> None:
    from scipy import stats

    scores = normal_scores(classes)
    for index, p_value in enumerate(class_p_values(scores)):
        rest = np.delete(scores.numpy(), index)
        t = (float(scores[index]) - rest.mean()) / (rest.std(ddof=1) * np.sqrt(1 + 1 / len(rest)))
        assert p_value == pytest.approx(float(stats.t.sf(t, classes - 2)), rel=1e-9)


def test_class_p_values_of_hand_worked_scores() -> None:
    # Beside 0, 0, 0, 4 (mean 1, deviation 2) a 6 has t = 5 / (2 sqrt(5/4)) = sqrt(5), whose tail
    # with 3 degrees of freedom is 0.0557.
    p_values = class_p_values(torch.tensor([0.0, 0.0, 6.0, 0.0, 4.0]))
    assert p_values[2] == pytest.approx(0.0557, abs=5e-5)
    assert p_values.index(min(p_values)) == 2
    assert all(p > 0.5 for p in (p_values[0], p_values[1], p_values[3]))


def test_the_smallest_class_p_value_is_grubbs_without_its_correction() -> None:
    scores = 3 * normal_scores(10)
    found = grubbs(scores)
    assert 10 * min(class_p_values(scores)) == pytest.approx(found.p_value, rel=1e-12)


@pytest.mark.parametrize("classes", [10, 43])
def test_a_class_named_before_is_rejected_one_time_in_twenty(classes: int) -> None:
    generator = torch.Generator().manual_seed(4)
    population = torch.randn(2000, classes, generator=generator)
    rejected = sum(class_p_values(row)[3] <= 0.05 for row in population)
    # The binomial standard error of the rate is 0.005.
    assert 0.035 <= rejected / 2000 <= 0.065


def test_beside_equal_others_nothing_is_surprising() -> None:
    assert class_p_values(torch.tensor([0.1, 0.1, 0.3, 0.1, 0.1])) == pytest.approx(
        (0.6575, 0.6575, 1.0, 0.6575, 0.6575), abs=1e-4
    )
    assert class_p_values(torch.tensor([0.1, 0.1, 0.0, 0.1, 0.1]))[2] == 1.0
    assert class_p_values(torch.full((6,), 0.1)) == (1.0,) * 6


@pytest.mark.parametrize("scores", [[], [1.0, 2.0, 3.0, 4.0], [1.0, 2, 3, 4, math.nan]])
def test_class_p_values_need_five_numbers(scores: list[float]) -> None:
    with pytest.raises(DegenerateStatisticError):
        class_p_values(torch.tensor(scores))


def test_grubbs_of_a_planted_outlier_is_far_above_the_critical_value() -> None:
    wiggle = 0.01 * torch.tensor([0.0, 1, -1, 2, -2, 1, -1, 0, 0], dtype=torch.float64)
    scores = torch.cat([1 + wiggle, torch.tensor([10.0], dtype=torch.float64)])
    result = grubbs(scores)
    assert result.index == 9
    assert result.statistic == pytest.approx(reference_grubbs(scores.numpy())[1], rel=1e-12)
    assert result.statistic > 100 * 3.35
    assert result.p_value < 1e-15


def test_grubbs_of_a_tie_for_the_largest_names_the_first_and_is_no_outlier() -> None:
    result = grubbs(torch.tensor([0.0, 5.0, 1.0, 5.0, 2.0, 3.0]))
    assert result.index == 1
    assert result.p_value > 0.5


def test_grubbs_does_not_depend_on_scale_and_order() -> None:
    scores = normal_scores(10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    changed = grubbs(1000 + 7 * scores[order])
    assert int(order[changed.index]) == grubbs(scores).index
    assert changed.statistic == pytest.approx(grubbs(scores).statistic, rel=1e-9)


@pytest.mark.parametrize("classes", [0, 1, 2, 4])
def test_grubbs_of_fewer_than_five_classes_raises(classes: int) -> None:
    with pytest.raises(DegenerateStatisticError, match=f"at least 5 scores, got {classes}"):
        grubbs(normal_scores(classes))


@pytest.mark.parametrize("largest", [0.1, 9.0])
def test_grubbs_of_equal_scores_raises(largest: float) -> None:
    scores = torch.full((10,), 0.1)
    scores[3] = largest
    with pytest.raises(DegenerateStatisticError, match="needs scores that differ"):
        grubbs(scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_grubbs_of_a_score_that_is_not_finite_raises(value: float) -> None:
    scores = normal_scores(10)
    scores[4] = value
    with pytest.raises(DegenerateStatisticError, match="needs finite scores"):
        grubbs(scores)


def test_grubbs_refuses_other_shapes_and_dtypes() -> None:
    with pytest.raises(ShapeError, match="scores must have 1 dimension"):
        grubbs(torch.zeros(5, 5))
    with pytest.raises(DtypeError, match="scores must be floating point"):
        grubbs(torch.arange(10))


def test_esd_finds_one_outlier_as_grubbs_does() -> None:
    scores = normal_scores(10)
    scores[7] = 20.0
    assert generalised_esd(scores, alpha=0.05) == (7,)


def test_esd_finds_two_outliers_that_hide_each_other() -> None:
    scores = normal_scores(12)
    scores[2], scores[9] = 30.0, 28.0
    assert grubbs(scores).p_value > 0.05
    assert generalised_esd(scores, alpha=0.05) == (2, 9)


def test_esd_of_normal_scores_is_empty() -> None:
    assert generalised_esd(normal_scores(20), alpha=0.01) == ()


def test_esd_looks_at_the_upper_side_only() -> None:
    scores = normal_scores(12)
    scores[5] = -50.0
    assert generalised_esd(scores, alpha=0.05) == ()


def test_esd_stops_at_the_allowed_number() -> None:
    scores = normal_scores(40)
    scores[:3] = torch.tensor([1e6, 1e4, 1e2], dtype=torch.float64)
    assert generalised_esd(scores, alpha=0.05, max_outliers=2) == (0, 1)
    assert generalised_esd(scores, alpha=0.05) == (0, 1, 2)


def test_esd_keeps_an_outlier_found_before_the_rest_turns_out_equal() -> None:
    scores = torch.tensor([0.0] * 8 + [10.0, 1000.0])
    assert generalised_esd(scores, alpha=0.05) == (9,)


def test_esd_raises_when_the_rest_is_equal_and_nothing_was_found() -> None:
    with pytest.raises(DegenerateStatisticError, match="needs scores that differ"):
        generalised_esd(torch.tensor([0.0] * 8 + [10.0, 11.0]), alpha=0.05)


def test_esd_of_fewer_than_five_classes_raises() -> None:
    with pytest.raises(DegenerateStatisticError, match="at least 5 scores, got 3"):
        generalised_esd(normal_scores(3), alpha=0.05)


def test_esd_of_five_classes_may_remove_one() -> None:
    scores = torch.tensor([0.0, 0.1, -0.1, 50.0, 0.05])
    assert generalised_esd(scores, alpha=0.05) == (3,)


@pytest.mark.parametrize("max_outliers", [0, 7])
def test_esd_refuses_a_number_of_outliers_that_leaves_too_few(max_outliers: int) -> None:
    with pytest.raises(ValueError, match="max_outliers must be between 1 and 6"):
        generalised_esd(normal_scores(10), alpha=0.05, max_outliers=max_outliers)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_esd_refuses_an_impossible_level(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        generalised_esd(normal_scores(10), alpha=alpha)


@pytest.mark.parametrize("count", [3, 10, 11])
def test_robust_z_equals_numpy(count: int) -> None:
    scores = normal_scores(count)
    values = scores.numpy()
    deviation = values - np.median(values)
    expected = deviation / (1.4826 * np.median(np.abs(deviation)))
    np.testing.assert_allclose(robust_z(scores).numpy(), expected, rtol=1e-12)


def test_robust_z_takes_the_mean_of_the_middle_two() -> None:
    # torch.median would take 2 for the median.
    scores = torch.tensor([1.0, 2.0, 4.0, 100.0])
    assert robust_z(scores)[3] == pytest.approx(97 / (1.4826 * 1.5))


def test_robust_z_leaves_nan_out_and_in_place() -> None:
    scores = torch.tensor([1.0, math.nan, 2.0, 4.0, 3.0, 9.0])
    z = robust_z(scores)
    assert z[1].isnan()
    np.testing.assert_allclose(z[~z.isnan()], robust_z(scores[~scores.isnan()]), rtol=1e-15)


def test_robust_z_is_float64_of_any_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert robust_z(torch.tensor([1.0, 2.0, 4.0], dtype=dtype)).dtype == torch.float64


def test_zero_mad_leaves_equal_scores_at_zero_and_others_far_out() -> None:
    z = robust_z(torch.tensor([2.0, 2.0, 2.0, 2.0, 2.1]))
    assert z[:4].tolist() == [0.0] * 4
    assert z[4] > 1e9


def test_zero_mad_and_zero_median_raise() -> None:
    with pytest.raises(DegenerateStatisticError, match="a median and a MAD of zero"):
        robust_z(torch.tensor([0.0, 0.0, 0.0, 5.0]))


@pytest.mark.parametrize(
    "scores", [[], [1.0, 2.0], [1.0, math.nan, math.nan, 2.0], [1.0, 2.0, 3.0, math.inf]]
)
def test_robust_z_of_too_few_or_infinite_scores_raises(scores: list[float]) -> None:
    with pytest.raises(DegenerateStatisticError, match="at least three scores"):
        robust_z(torch.tensor(scores))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 1), (250, 2000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_clopper_pearson_agrees_with_scipy(successes: int, trials: int, confidence: float) -> None:
    from scipy import stats

    test = stats.binomtest(successes, trials)
    expected = test.proportion_ci(confidence_level=confidence, method="exact")
    got = clopper_pearson(successes, trials, confidence=confidence)
    assert got == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (250, 2000)])
def test_one_sided_bounds_agree_with_scipy(successes: int, trials: int) -> None:
    from scipy import stats

    above = stats.binomtest(successes, trials, alternative="greater").proportion_ci()
    below = stats.binomtest(successes, trials, alternative="less").proportion_ci()
    assert lower_bound(successes, trials) == pytest.approx(above.low, rel=1e-9, abs=1e-12)
    assert upper_bound(successes, trials) == pytest.approx(below.high, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("trials", "bound"), [(50, 0.942), (10, 0.741)])
def test_lower_bound_of_all_successes_is_a_root_of_the_level(trials: int, bound: float) -> None:
    assert lower_bound(trials, trials) == pytest.approx(0.05 ** (1 / trials), rel=1e-10)
    assert lower_bound(trials, trials) == pytest.approx(bound, abs=5e-4)


def test_no_trials_say_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert lower_bound(0, 0) == 0.0
    assert upper_bound(0, 0) == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1)])
def test_bounds_refuse_counts_that_contradict_each_other(successes: int, trials: int) -> None:
    for bound in (clopper_pearson, lower_bound, upper_bound):
        with pytest.raises(ValueError, match="need 0 ≤ successes ≤ trials"):
            bound(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_bounds_refuse_an_impossible_confidence(confidence: float) -> None:
    for bound in (clopper_pearson, lower_bound, upper_bound):
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
            bound(1, 2, confidence=confidence)


def test_log_odds_is_the_logit_with_a_half_added() -> None:
    successes, trials = torch.tensor([0, 3, 10, 0]), torch.tensor([10, 10, 10, 0])
    share = (successes.numpy() + 0.5) / (trials.numpy() + 1.0)
    got = log_odds(successes, trials)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), np.log(share / (1 - share)), rtol=1e-12, atol=1e-15)


def test_log_odds_refuses_impossible_counts() -> None:
    for k, n in ((-1.0, 2.0), (3.0, 2.0), (math.nan, 2.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="successes must be between 0 and trials"):
            log_odds(torch.tensor([k]), torch.tensor([n]))
    with pytest.raises(ShapeError, match="must have the same shape"):
        log_odds(torch.zeros(2), torch.ones(3))


def test_log_odds_of_nothing_is_nothing() -> None:
    assert log_odds(torch.zeros(0), torch.zeros(0)).shape == (0,)
