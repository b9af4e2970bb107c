"""Attention maps and their distance against hand-computed numbers and a literal loop."""

from __future__ import annotations

import math

import pytest
import torch

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional.attention import attention_distance, attention_map
from tests.helpers.models import draw


def literal_map(features: torch.Tensor, power: float) -> list[list[list[float]]]:
    """Return the maps by loops over images, places and channels."""
    n, channels, height, width = features.shape
    maps = []
    for i in range(n):
        energy = [
            [
                sum(abs(float(features[i, c, y, x])) ** power for c in range(channels))
                for x in range(width)
            ]
            for y in range(height)
        ]
        norm = math.sqrt(sum(value**2 for row in energy for value in row))
        maps.append([[value / (norm + 1e-6) for value in row] for row in energy])
    return maps


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_map_equals_loops(power: float) -> None:
    features = draw((2, 3, 2, 4)).double()
    expected = torch.tensor(literal_map(features, power), dtype=torch.float64)
    torch.testing.assert_close(attention_map(features, power=power), expected)


def test_map_by_hand() -> None:
    features = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0]]]])  # energies 2 and 4, norm sqrt(20)
    expected = torch.tensor([[[2.0, 4.0]]]) / math.sqrt(20.0)
    torch.testing.assert_close(attention_map(features), expected, atol=1e-6, rtol=0)


def test_distance_to_itself_is_zero() -> None:
    features = draw((3, 4, 5, 5))
    assert float(attention_distance(features, features)) == 0.0


def test_scale_plays_no_part() -> None:
    features = draw((3, 4, 5, 5))
    assert float(attention_distance(features, 7.5 * features)) < 1e-12
    assert float(attention_distance(features, features.roll(1, -1))) > 1e-4


def test_distance_is_the_mean_over_images_and_places() -> None:
    one, other = draw((2, 3, 2, 2), 1), draw((2, 5, 2, 2), 2)
    difference = attention_map(one) - attention_map(other)
    expected = sum(float(v) ** 2 for v in difference.flatten()) / 8
    assert float(attention_distance(one, other)) == pytest.approx(expected, rel=1e-5)


def test_gradient_reaches_the_student_even_where_features_are_zero() -> None:
    student = draw((2, 3, 4, 4))
    student[0] = 0
    student.requires_grad_()
    attention_distance(student, draw((2, 3, 4, 4), 5)).backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert float(student.grad[1].abs().sum()) > 0


def test_half_precision_is_widened() -> None:
    assert attention_map(draw((1, 2, 3, 3)).bfloat16()).dtype == torch.float32


def test_one_place_is_refused() -> None:
    with pytest.raises(ShapeError, match="more than one place"):
        attention_map(torch.ones(2, 3, 1, 1))


def test_flat_features_are_refused() -> None:
    with pytest.raises(ShapeError, match="4 dimension"):
        attention_map(torch.ones(2, 3))


def test_integers_are_refused() -> None:
    with pytest.raises(DtypeError):
        attention_map(torch.ones(2, 3, 2, 2, dtype=torch.int64))


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="same shape"):
        attention_distance(torch.ones(2, 3, 2, 2), torch.ones(2, 3, 4, 4))
