from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from modelaudit.errors import DegenerateStatisticError, DtypeError, ShapeError
from modelaudit.functional.gamma_fit import fit_gamma, gamma_p_value_paper_code, nelder_mead

if TYPE_CHECKING:
    from collections.abc import Sequence


def scores(classes: int, seed: int) -> np.ndarray:
    drawn: np.ndarray = np.random.default_rng(seed).gamma(20.0, 1.0, classes)
    return drawn


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [10, 43])
def test_p_value_is_that_of_scipys_fit_with_free_location(classes: int, seed: int) -> None:
    from scipy import stats

    values = scores(classes, seed)
    ordered = np.sort(values)
    shape, location, scale = stats.gamma.fit(ordered[:-1])
    survival = stats.gamma.sf(ordered[-1], shape, location, scale)
    expected = -math.expm1(classes * math.log1p(-survival))
    found = gamma_p_value_paper_code(torch.from_numpy(values))
    assert found == pytest.approx(expected, abs=0.01)


def test_fit_is_a_maximum_of_the_likelihood() -> None:
    from scipy import stats

    values = scores(200, 3)
    shape, location, scale = fit_gamma(values.tolist())
    best = stats.gamma.logpdf(values, shape, location, scale).sum()
    for factor in (0.97, 1.03):
        assert stats.gamma.logpdf(values, shape * factor, location, scale).sum() < best
        assert stats.gamma.logpdf(values, shape, location, scale * factor).sum() < best
    # The true shape is 20 with location 0 and scale 1: mean and variance are well determined.
    assert location + shape * scale == pytest.approx(values.mean(), rel=1e-3)
    assert shape * scale**2 == pytest.approx(values.var(), rel=0.05)


def test_planted_outlier_has_a_small_p_value_whatever_its_place() -> None:
    values = torch.from_numpy(scores(10, 1))
    values[4] = 5 * values.max()
    assert gamma_p_value_paper_code(values) < 1e-6
    assert gamma_p_value_paper_code(values.flip(0)) == gamma_p_value_paper_code(values)


def test_negative_scores_are_allowed() -> None:
    values = torch.from_numpy(scores(10, 2)) - 25.0
    assert bool((values < 0).any())
    assert 0.0 <= gamma_p_value_paper_code(values) <= 1.0


def test_simplex_finds_the_bottom_of_a_bowl() -> None:
    def bowl(point: Sequence[float]) -> float:
        return (point[0] - 3.0) ** 2 + 10.0 * (point[1] + 1.0) ** 2

    assert nelder_mead(bowl, (0.0, 1.0)) == pytest.approx((3.0, -1.0), abs=1e-3)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, math.nan], [2.0] * 9 + [3.0]])
def test_what_no_distribution_fits_raises(values: list[float]) -> None:
    with pytest.raises(DegenerateStatisticError):
        gamma_p_value_paper_code(torch.tensor(values))


def test_other_tensors_are_refused() -> None:
    with pytest.raises(ShapeError):
        gamma_p_value_paper_code(torch.ones(2, 5))
    with pytest.raises(DtypeError):
        gamma_p_value_paper_code(torch.arange(10))
