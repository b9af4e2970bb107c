"""The Bezier curve between sets of weights."""

from __future__ import annotations

import pytest
import torch

from modelaudit.errors import ShapeError
from modelaudit.functional.curve import bezier_coefficients, bezier_point
from tests.helpers.models import draw

START, INNER, END = ([draw((2, 3), s), draw((4,), s + 9)] for s in (1, 2, 3))


@pytest.mark.parametrize("t", [0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
def test_coefficients_sum_to_one(t: float) -> None:
    assert sum(bezier_coefficients(t)) == pytest.approx(1.0, abs=1e-12)


def test_coefficients_by_hand() -> None:
    assert bezier_coefficients(0.3) == pytest.approx((0.49, 0.42, 0.09))


def test_ends_are_reached_bit_for_bit() -> None:
    for t, expected in ((0.0, START), (1.0, END)):
        for point, end in zip(bezier_point(START, INNER, END, t), expected, strict=True):
            assert torch.equal(point, end)
            assert point.data_ptr() != end.data_ptr()


def test_an_inner_point_half_way_makes_the_curve_the_straight_line() -> None:
    middle = [(a + b) / 2 for a, b in zip(START, END, strict=True)]
    for t in (0.25, 0.5):
        for point, a, b in zip(bezier_point(START, middle, END, t), START, END, strict=True):
            torch.testing.assert_close(point, (1 - t) * a + t * b)


def test_the_slope_of_the_inner_point_is_its_coefficient() -> None:
    inner = [value.clone().requires_grad_() for value in INNER]
    sum(p.sum() for p in bezier_point(START, inner, END, 0.2)).backward()  # type: ignore[union-attr]  # never empty
    for value in inner:
        assert value.grad is not None
        torch.testing.assert_close(value.grad, torch.full_like(value, 2 * 0.2 * 0.8))


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_places_off_the_curve_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        bezier_coefficients(t)


def test_sets_that_do_not_match_are_refused() -> None:
    with pytest.raises(ShapeError, match="as many"):
        bezier_point(START, INNER[:1], END, 0.5)
    with pytest.raises(ShapeError, match="same shape"):
        bezier_point(START, INNER[::-1], END, 0.5)
