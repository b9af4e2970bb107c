from __future__ import annotations

import math

import pytest
import torch

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional.noise import random_start, sign_step


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_start_is_uniform_in_the_ball() -> None:
    noise = random_start((100, 200), 0.3, seeded())
    assert noise.shape == (100, 200)
    assert noise.dtype == torch.float32
    assert noise.device.type == "cpu"
    assert float(noise.abs().max()) <= torch.tensor(0.3)
    assert abs(float(noise.mean())) < 0.005
    # A uniform variable on [-ε, ε] has the standard deviation ε/√3.
    assert float(noise.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.02)


def test_start_repeats_with_its_seed_and_takes_no_global_randomness() -> None:
    before = torch.get_rng_state()
    assert torch.equal(random_start((7,), 1.0, seeded(1)), random_start((7,), 1.0, seeded(1)))
    assert not torch.equal(random_start((7,), 1.0, seeded(1)), random_start((7,), 1.0, seeded(2)))
    assert torch.equal(before, torch.get_rng_state())


def test_start_of_zero_size_or_zero_radius() -> None:
    assert random_start((0,), 0.3, seeded()).shape == (0,)
    assert random_start((4,), 0.0, seeded()).abs().max() == 0.0


@pytest.mark.parametrize("epsilon", [-0.1, math.nan])
def test_negative_radius_raises(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        random_start((3,), epsilon, seeded())
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        sign_step(torch.zeros(3), torch.zeros(3), 0.1, epsilon=epsilon)


def test_step_follows_the_sign_of_the_gradient() -> None:
    noise = torch.tensor([0.0, 0.1, -0.1, 0.25, -0.25])
    gradient = torch.tensor([0.0, 3.0, -1e-9, 7.0, -7.0])
    got = sign_step(noise, gradient, 0.1, epsilon=0.3)
    torch.testing.assert_close(got, torch.tensor([0.0, 0.2, -0.2, 0.3, -0.3]))
    assert noise.tolist() == torch.tensor([0.0, 0.1, -0.1, 0.25, -0.25]).tolist()


def test_negative_step_descends() -> None:
    got = sign_step(torch.zeros(2), torch.tensor([1.0, -1.0]), -0.1, epsilon=None)
    torch.testing.assert_close(got, torch.tensor([-0.1, 0.1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_clipped_noise_never_leaves_the_ball_and_unclipped_reaches_twice_as_far(
    dtype: torch.dtype,
) -> None:
    epsilon, steps = 0.3, 30
    start = random_start((500,), epsilon, seeded()).to(dtype)
    gradient = torch.where(torch.arange(500) % 2 == 0, 1.0, -1.0).to(dtype)
    clipped = free = start
    for _ in range(steps):
        clipped = sign_step(clipped, gradient, epsilon / steps, epsilon=epsilon)
        free = sign_step(free, gradient, epsilon / steps, epsilon=None)
    assert clipped.dtype == free.dtype == dtype
    assert bool((clipped.abs() <= torch.tensor(epsilon, dtype=dtype)).all())
    assert epsilon < float(free.abs().max()) <= 2 * epsilon * 1.01
    # A step is one ε in all, so an entry leaves the ball when it started on the gradient's side.
    assert float((free.abs() > epsilon).double().mean()) == pytest.approx(0.5, abs=0.1)


def test_step_is_detached() -> None:
    noise = torch.zeros(3, requires_grad=True)
    got = sign_step(noise, torch.ones(3), 0.1, epsilon=0.3)
    assert not got.requires_grad
    assert noise.tolist() == [0.0] * 3


def test_undefined_gradient_shows_in_the_noise() -> None:
    got = sign_step(torch.zeros(2), torch.tensor([math.nan, math.inf]), 0.1, epsilon=0.3)
    assert got[0].isnan()
    assert float(got[1]) == pytest.approx(0.1)


def test_step_keeps_the_dtype_of_the_noise() -> None:
    got = sign_step(torch.zeros(2), torch.ones(2, dtype=torch.float64), 0.1, epsilon=0.3)
    assert got.dtype == torch.float32


def test_step_refuses_other_shapes_and_dtypes() -> None:
    with pytest.raises(ShapeError, match="gradient and noise must have the same shape"):
        sign_step(torch.zeros(3), torch.zeros(4), 0.1, epsilon=None)
    with pytest.raises(DtypeError, match="noise must be floating point"):
        sign_step(torch.zeros(3, dtype=torch.int64), torch.zeros(3), 0.1, epsilon=None)
