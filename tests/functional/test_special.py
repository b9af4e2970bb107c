from __future__ import annotations

import math
import random

import pytest

from modelaudit.functional.special import (
    binomial_lower_end,
    binomial_upper_end,
    inverse_regularised_incomplete_beta,
    normal_cdf,
    normal_quantile,
    regularised_incomplete_beta,
)


@pytest.mark.parametrize("seed", range(4))
def test_incomplete_beta_agrees_with_scipy_to_1e_10(seed: int) -> None:
    from scipy import special

    draw = random.Random(seed)
    for _ in range(500):
        a, b = 10 ** draw.uniform(-1, 5), 10 ** draw.uniform(-1, 5)
        # Points spread over the distribution, half of them far out in the lower tail.
        level = draw.random() if draw.random() < 0.5 else 10 ** draw.uniform(-12, 0)
        x = float(special.betaincinv(a, b, level))
        if not 1e-12 < x < 1 - 1e-12:
            continue  # 1 - x would carry the error of x
        expected = float(special.betainc(a, b, x))
        got = regularised_incomplete_beta(a, b, x, complement=1 - x)
        assert math.isclose(got, expected, rel_tol=1e-10), (a, b, x)


def test_incomplete_beta_of_the_largest_parameters_is_finite_and_quick() -> None:
    got = regularised_incomplete_beta(1e8, 1e8, 0.5, complement=0.5)
    assert got == pytest.approx(0.5, rel=1e-9)


def test_incomplete_beta_is_zero_and_one_at_the_ends() -> None:
    assert regularised_incomplete_beta(2.0, 3.0, 0.0, complement=1.0) == 0.0
    assert regularised_incomplete_beta(2.0, 3.0, 1.0, complement=0.0) == 1.0


def test_incomplete_beta_of_two_ones_is_x() -> None:
    assert regularised_incomplete_beta(1.0, 1.0, 0.3, complement=0.7) == pytest.approx(0.3, 1e-14)


@pytest.mark.parametrize(
    ("a", "b", "x"),
    [
        (0.0, 1.0, 0.5),
        (1.0, -1.0, 0.5),
        (math.inf, 1.0, 0.5),
        (1.0, 2e8, 0.5),
        (math.nan, 1.0, 0.5),
    ],
)
def test_incomplete_beta_refuses_a_bad_parameter(a: float, b: float, x: float) -> None:
    with pytest.raises(ValueError, match="shape parameters must be positive"):
        regularised_incomplete_beta(a, b, x, complement=1 - x)


@pytest.mark.parametrize("x", [-0.1, 1.1, math.nan])
def test_incomplete_beta_refuses_x_outside_the_unit_interval(x: float) -> None:
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\]"):
        regularised_incomplete_beta(1.0, 1.0, x, complement=1 - x)


@pytest.mark.parametrize(("a", "b"), [(1, 50), (50, 1), (3, 8), (0.5, 0.5), (4001, 6000)])
@pytest.mark.parametrize("probability", [1e-9, 0.025, 0.5, 0.975])
def test_inverse_agrees_with_scipy(a: float, b: float, probability: float) -> None:
    from scipy import special

    got = inverse_regularised_incomplete_beta(a, b, probability)
    assert got == pytest.approx(float(special.betaincinv(a, b, probability)), rel=1e-10)


def test_inverse_is_zero_and_one_at_the_ends() -> None:
    assert inverse_regularised_incomplete_beta(2.0, 3.0, 0.0) < 1e-300
    assert inverse_regularised_incomplete_beta(2.0, 3.0, 1.0) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_inverse_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
        inverse_regularised_incomplete_beta(1.0, 1.0, probability)


def test_binomial_ends_leave_the_stated_tail() -> None:
    from scipy import stats

    low, high = binomial_lower_end(7, 20, 0.01), binomial_upper_end(7, 20, 0.01)
    assert float(stats.binom.sf(6, 20, low)) == pytest.approx(0.01, rel=1e-9)
    assert float(stats.binom.cdf(7, 20, high)) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("x", [-38.0, -8.0, -1.0, 0.0, 0.5, 1.96, 8.0])
def test_normal_cdf_agrees_with_scipy(x: float) -> None:
    from scipy import stats

    assert normal_cdf(x) == pytest.approx(float(stats.norm.cdf(x)), rel=1e-11)


@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9999])
def test_normal_quantile_agrees_with_scipy(probability: float) -> None:
    from scipy import stats

    expected = float(stats.norm.ppf(probability))
    assert normal_quantile(probability) == pytest.approx(expected, abs=1e-11)


def test_normal_quantile_is_finite_to_the_end() -> None:
    assert 38.0 < normal_quantile(1.0) < 39.0


@pytest.mark.parametrize("probability", [0.49, 1.1, math.nan])
def test_normal_quantile_refuses_what_is_not_in_the_upper_half(probability: float) -> None:
    with pytest.raises(ValueError, match=r"probability must be in \[0.5, 1\]"):
        normal_quantile(probability)
