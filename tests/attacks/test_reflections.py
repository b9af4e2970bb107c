from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from modelaudit.attacks.reflections import (
    Reflection,
    add_reflection,
    blur_matrix,
    draw_reflection,
    ghost,
    out_of_focus,
    window,
)

GHOST = Reflection(
    picture=0,
    transmission=0.4,
    is_ghost=True,
    offset=(1, 2),
    ghost_share=0.7,
    sigma=1.0,
    attenuation=1.1,
)
BLURRED = replace(GHOST, is_ghost=False)


def picture(seed: int, *, size: int = 8) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def draws(*, side: int, n: int = 600) -> list[Reflection]:
    generator = torch.Generator().manual_seed(0)
    return [
        draw_reflection(generator, pool=5, transmission=(0.55, 0.95), side=side) for _ in range(n)
    ]


def test_draws_keep_to_their_ranges_at_the_reference_size() -> None:
    found = draws(side=224)
    assert {d.picture for d in found} == set(range(5))
    assert {x for d in found for x in d.offset} == set(range(3, 9))
    assert all(0.55 <= d.transmission <= 0.95 for d in found)
    assert all(1.0 <= d.sigma <= 5.0 for d in found)
    assert all(1.08 <= d.attenuation <= 1.18 for d in found)
    # |round(U(0,1)) - U(0.15,0.5)|: either 0.15 to 0.5 or 0.5 to 0.85.
    shares = torch.tensor([d.ghost_share for d in found])
    assert 0.15 <= float(shares.min()) <= 0.2 < 0.8 <= float(shares.max()) <= 0.85
    assert sum(d.is_ghost for d in found) / len(found) == pytest.approx(0.49, abs=0.06)


def test_offsets_and_blurs_scale_with_the_side_down_to_a_floor() -> None:
    small, large = draws(side=32), draws(side=448)
    assert {x for d in small for x in d.offset} == {1}
    assert {d.sigma >= 0.5 for d in small} == {True}
    assert max(d.sigma for d in small) == pytest.approx(5 / 7, abs=0.02)
    assert {x for d in large for x in d.offset} == {6, 8, 10, 12, 14, 16}


def test_without_reflected_light_only_the_gamma_curve_dims() -> None:
    image = picture(1)
    for how in (GHOST, BLURRED):
        dimmed = add_reflection(image, torch.zeros(3, 8, 8), how)
        assert torch.allclose(dimmed, image * 0.4 ** (1 / 2.2), atol=1e-6)


def test_full_transmission_of_a_ghost_is_the_identity() -> None:
    image = picture(1)
    assert torch.allclose(
        add_reflection(image, picture(2), replace(GHOST, transmission=1.0)), image, atol=1e-6
    )


def test_ghost_of_a_ramp_is_the_two_shifted_copies() -> None:
    ramp = (10.0 * torch.arange(8.0)[:, None] + torch.arange(8.0)).expand(1, 8, 8)
    # Without resizing, row i and column j hold 0.7 r(i + 1, j + 2) + 0.3 r(i, j).
    inner = 0.7 * ramp[:, 1:, 2:] + 0.3 * ramp[:, :7, :6]
    result = ghost(ramp, GHOST)
    assert result.shape == (1, 8, 8)
    assert float(result[0, 0, 0]) == pytest.approx(float(inner[0, 0, 0]))
    assert float(result[0, 7, 7]) == pytest.approx(float(inner[0, 6, 5]))
    # Half-pixel bilinear: row 4 of 8 is row (4.5 * 7 / 8) - 0.5 = 3.4375 of 7.
    column = float(inner[0, 3, 0]) + 0.4375 * (float(inner[0, 4, 0]) - float(inner[0, 3, 0]))
    assert float(result[0, 4, 0]) == pytest.approx(column, rel=1e-5)


def test_blur_is_a_gaussian_that_ends_at_two_deviations() -> None:
    matrix = blur_matrix(11, 1.2)
    weights = [math.exp(-0.5 * (d / 1.2) ** 2) if d <= 3 else 0.0 for d in range(11)]
    total = weights[0] + 2 * sum(weights[1:])
    expected = [weights[abs(5 - j)] / total for j in range(11)]
    assert matrix[5].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(matrix.sum(1), torch.ones(11))
    assert matrix[0, :5].tolist() == pytest.approx([w / sum(weights) for w in weights[:5]])


def test_window_is_one_at_the_centre_and_symmetric() -> None:
    weight = window(9, 5)
    assert float(weight[4, 2]) == 1.0
    assert torch.equal(weight, weight.flip(0, 1))
    # Three deviations away along one axis: exp(-9/2) under the root.
    assert float(weight[0, 2]) == pytest.approx(math.exp(-2.25), rel=1e-5)


def test_out_of_focus_light_is_dimmed_where_it_exceeds_the_range() -> None:
    reflected, transmitted = torch.full((2, 9, 9), 0.8), torch.full((2, 9, 9), 0.1)
    transmitted[1] = 0.6
    result = out_of_focus(reflected, transmitted, BLURRED)
    # Channel 0 adds up to 0.9; channel 1 to 1.4, so that 1.1 * 0.4 is taken off.
    assert float(result[0, 4, 4]) == pytest.approx(0.8 * 0.8, abs=1e-5)
    assert float(result[1, 4, 4]) == pytest.approx((0.8 - 0.44) * 0.8, abs=1e-5)
    assert float(result[0, 0, 4]) == pytest.approx(0.64 * math.exp(-2.25), rel=1e-4)


def test_ghost_image_is_the_mixture_at_linear_intensity() -> None:
    image, reflected = picture(1), torch.full((3, 8, 8), 0.5)
    mixed = 0.6 * 0.5**2.2 + 0.4 * image**2.2
    assert torch.allclose(add_reflection(image, reflected, GHOST), mixed ** (1 / 2.2), atol=1e-5)


@pytest.mark.parametrize("how", [GHOST, BLURRED])
def test_white_light_on_white_stays_in_range(how: Reflection) -> None:
    white = torch.ones(3, 8, 8)
    result = add_reflection(white, white, how)
    assert not result.isnan().any()
    assert float(result.max()) <= 1.0
