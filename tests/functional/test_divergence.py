from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import batch_norm

from modelaudit.errors import DegenerateStatisticError, DtypeError, ShapeError
from modelaudit.functional.divergence import (
    bootstrap_effective_size,
    gaussian_kl,
    layer_outliers,
    pooled_moments,
    reparameterised_batchnorm,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def activations(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def scalar_kl(mean: float, var: float, bn_mean: float, bn_var: float) -> float:
    values = (torch.tensor([v], dtype=torch.float64) for v in (mean, var, bn_mean, bn_var))
    return float(gaussian_kl(*values))


@pytest.mark.parametrize(
    ("sample", "bn", "nats"),
    [
        ((0, 1), (0, 1), 0.0),
        ((1, 1), (0, 1), 0.5),
        ((0, 1), (0, 4), 0.318147),
        ((0, 4), (0, 1), 0.806853),
        ((0, 1), (1, 2), 0.346574),
    ],
)
def test_divergence_of_known_normals(
    sample: tuple[int, int], bn: tuple[int, int], nats: float
) -> None:
    assert scalar_kl(*sample, *bn) == pytest.approx(nats, abs=1e-6)


def test_divergence_equals_the_printed_formula() -> None:
    mean, bn_mean = activations(50, seed=1), activations(50, seed=2)
    var, bn_var = activations(50, seed=3).exp(), activations(50, seed=4).exp()
    m, v, bm, bv = (t.numpy() for t in (mean, var, bn_mean, bn_var))
    expected = np.log(np.sqrt(bv) / np.sqrt(v)) + (v + (m - bm) ** 2) / (2 * bv) - 0.5
    np.testing.assert_allclose(gaussian_kl(mean, var, bn_mean, bn_var), expected, atol=1e-12)


def test_divergence_of_a_tiny_mismatch_keeps_its_digits() -> None:
    # ½(r - 1 - ln r) = d²/4 to leading order; the difference itself would lose every digit.
    assert scalar_kl(0, 1 + 1e-7, 0, 1) == pytest.approx(1e-14 / 4, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_divergence_is_float64_of_any_dtype(dtype: torch.dtype) -> None:
    one, zero = torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype)
    got = gaussian_kl(one, one, zero, one)
    assert got.dtype == torch.float64
    assert got.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("sample", "bn"),
    [
        ((0.0, 0.0), (0.0, 1.0)),
        ((0.0, 1.0), (0.0, 9e-11)),
        ((math.nan, 1.0), (0.0, 1.0)),
        ((0.0, math.nan), (0.0, 1.0)),
        ((0.0, 1.0), (0.0, math.nan)),
        ((0.0, math.inf), (0.0, 1.0)),
    ],
)
def test_divergence_of_a_dead_or_undefined_channel_is_nan(
    sample: tuple[float, float], bn: tuple[float, float]
) -> None:
    assert math.isnan(scalar_kl(*sample, *bn))


def test_divergence_of_no_channels_is_empty() -> None:
    empty = torch.zeros(0)
    assert gaussian_kl(empty, empty, empty, empty).shape == (0,)


def test_divergence_refuses_other_shapes_and_dtypes() -> None:
    one = torch.ones(3)
    with pytest.raises(ShapeError, match="var_bn and mean_sample must have the same shape"):
        gaussian_kl(one, one, one, torch.ones(4))
    with pytest.raises(DtypeError, match="var_sample must be floating point"):
        gaussian_kl(one, torch.ones(3, dtype=torch.int64), one, one)


def moments_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments over images and positions of ``(N, C, H, W)``, from per-image sums."""
    return pooled_moments(x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), x.numel() // x.shape[1])


def test_exact_statistics_have_no_divergence_and_a_poisoned_channel_ranks_first() -> None:
    x = activations(40, 16, 6, 6)
    mean, var = moments_of(x)
    assert float(gaussian_kl(mean, var, mean, var).max()) < 1e-10
    # Running statistics of a mixture: a share rho of the images is shifted by d deviations.
    rho, d = 0.1, 5.0
    bn_mean, bn_var = mean.clone(), var.clone()
    bn_mean[11] += rho * d * var[11].sqrt()
    bn_var[11] *= 1 + rho * (1 - rho) * d**2
    divergence = gaussian_kl(mean, var, bn_mean, bn_var)
    assert int(divergence.argmax()) == 11
    assert float(divergence[11]) == pytest.approx(0.2816, abs=1e-3)
    assert layer_outliers(divergence, u=3).tolist() == [11]


@pytest.mark.parametrize(
    ("rho", "d", "nats"),
    [(0.01, 5, 0.0124), (0.05, 5, 0.1342), (0.1, 5, 0.2816), (0.05, 2, 0.0113)],
)
def test_divergence_of_a_contaminated_channel_is_as_tabulated(
    rho: float, d: float, nats: float
) -> None:
    assert scalar_kl(0, 1, rho * d, 1 + rho * (1 - rho) * d**2) == pytest.approx(nats, abs=1e-4)


def test_moments_equal_numpy() -> None:
    x = 3 + 2 * activations(30, 5, 4, 4)
    mean, var = moments_of(x)
    assert mean.dtype == var.dtype == torch.float64
    np.testing.assert_allclose(mean, x.numpy().mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(var, x.numpy().var((0, 2, 3), ddof=1), rtol=1e-12)


def test_divergence_does_not_depend_on_the_batch_size() -> None:
    x = 100 + activations(40, 8, 5, 5)
    bn_mean, bn_var = torch.full((8,), 100.1), torch.ones(8)
    whole = gaussian_kl(*moments_of(x), bn_mean, bn_var)
    sums = squares = torch.zeros(8, dtype=torch.float64)
    for batch in x.split(7):
        sums = sums + batch.sum((0, 2, 3))
        squares = squares + batch.square().sum((0, 2, 3))
    split = gaussian_kl(*pooled_moments(sums, squares, 40 * 25), bn_mean, bn_var)
    np.testing.assert_allclose(split, whole, rtol=0, atol=1e-9)


def test_divergence_does_not_depend_on_the_order_of_images() -> None:
    x = activations(40, 8, 5, 5)
    bn_mean, bn_var = torch.zeros(8), torch.ones(8)
    shuffled = x[torch.randperm(40, generator=seeded(1))]
    np.testing.assert_allclose(
        gaussian_kl(*moments_of(x), bn_mean, bn_var),
        gaussian_kl(*moments_of(shuffled), bn_mean, bn_var),
        atol=1e-12,
    )


def test_variance_of_a_constant_channel_is_never_negative() -> None:
    value = torch.tensor([0.1], dtype=torch.float64)
    _, var = pooled_moments(value * 1000, value.square() * 1000, 1000)
    assert 0.0 <= float(var) < 1e-15


@pytest.mark.parametrize("count", [0, 1])
def test_moments_of_fewer_than_two_values_raise(count: int) -> None:
    zeros = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(DegenerateStatisticError, match=f"at least two values, got {count}"):
        pooled_moments(zeros, zeros, count)


def test_moments_refuse_single_precision_and_other_shapes() -> None:
    double, single = torch.zeros(3, dtype=torch.float64), torch.zeros(3)
    with pytest.raises(DtypeError, match="sums must be float64"):
        pooled_moments(single, double, 2)
    with pytest.raises(DtypeError, match="squares must be float64"):
        pooled_moments(double, single, 2)
    with pytest.raises(ShapeError, match="must have the same shape"):
        pooled_moments(double, torch.zeros(4, dtype=torch.float64), 2)


def test_independent_values_are_worth_their_number() -> None:
    x = activations(500, 64)
    size = bootstrap_effective_size(x, x.square(), 1, generator=seeded())
    assert size.dtype == torch.float64
    assert float(size.median()) == pytest.approx(500, rel=0.1)
    assert int(((size - 500).abs() < 100).sum()) >= 58


def test_equal_positions_of_an_image_are_worth_one_value() -> None:
    x = activations(500, 64).unsqueeze(2).expand(-1, -1, 16)
    size = bootstrap_effective_size(x.sum(2), x.square().sum(2), 16, generator=seeded())
    assert float(size.median()) == pytest.approx(500, rel=0.1)


def test_independent_positions_are_worth_one_value_each() -> None:
    x = activations(500, 64, 16)
    size = bootstrap_effective_size(x.sum(2), x.square().sum(2), 16, generator=seeded())
    assert float(size.median()) == pytest.approx(8000, rel=0.1)


def test_bootstrap_equals_a_literal_loop() -> None:
    x = activations(12, 3, 4)
    sums, squares = x.sum(2), x.square().sum(2)
    got = bootstrap_effective_size(sums, squares, 4, resamples=9, generator=seeded(5))
    drawn = torch.randint(12, (9, 12), generator=seeded(5))
    total = torch.zeros(3, dtype=torch.float64)
    whole = x.permute(1, 0, 2).reshape(3, -1)
    for rows in drawn:
        resampled = x[rows].permute(1, 0, 2).reshape(3, -1)
        total += gaussian_kl(resampled.mean(1), resampled.var(1), whole.mean(1), whole.var(1))
    np.testing.assert_allclose(got, 9 / total, rtol=1e-9)


def test_weighted_images_equal_images_that_are_there_as_often() -> None:
    x = activations(40, 5)
    twice = torch.cat((x, x[:20]))
    weights = torch.ones(40, dtype=torch.float64)
    weights[:20] = 2
    count = float(weights.sum())
    for one, two in zip(
        pooled_moments(weights @ x, weights @ x.square(), count),
        pooled_moments(twice.sum(0), twice.square().sum(0), 60),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_uneven_weights_lower_the_effective_size_as_kish_says() -> None:
    x = activations(500, 64)
    weights = torch.ones(500, dtype=torch.float64)
    weights[:100] = 4.0
    weights *= 500 / weights.sum()
    size = bootstrap_effective_size(
        x, x.square(), 1, image_weights=weights, generator=seeded(), resamples=400
    )
    kish = float(weights.sum().square() / weights.square().sum())
    assert kish == pytest.approx(320)
    assert float(size.median()) == pytest.approx(kish, rel=0.1)


def test_bootstrap_repeats_with_its_seed_and_takes_no_global_randomness() -> None:
    x = activations(30, 4)
    before = torch.get_rng_state()
    first = bootstrap_effective_size(x, x.square(), 1, generator=seeded(3))
    assert torch.equal(first, bootstrap_effective_size(x, x.square(), 1, generator=seeded(3)))
    assert not torch.equal(first, bootstrap_effective_size(x, x.square(), 1, generator=seeded(4)))
    assert torch.equal(before, torch.get_rng_state())


def test_bootstrap_of_a_dead_channel_is_nan_and_of_a_sparse_one_zero() -> None:
    x = activations(50, 3)
    x[:, 1] = 0.25
    x[:, 2] = 0.0
    x[7, 2] = 1.0  # absent from a third of the resamples, which are then constant
    size = bootstrap_effective_size(x, x.square(), 1, generator=seeded())
    assert float(size[0]) > 10
    assert size[1].isnan()
    assert float(size[2]) == 0.0


def test_bootstrap_of_a_channel_that_varies_within_images_only_is_bounded() -> None:
    within = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    x = within.expand(50, 1, 4)
    size = bootstrap_effective_size(x.sum(2), x.square().sum(2), 4, generator=seeded())
    assert float(size[0]) == 2 * 50 * 4


def test_bootstrap_refuses_what_it_cannot_resample() -> None:
    one = torch.zeros(1, 3, dtype=torch.float64)
    two = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(DegenerateStatisticError, match="at least two images, got 1"):
        bootstrap_effective_size(one, one, 1, generator=seeded())
    with pytest.raises(ValueError, match="positions and resamples must be positive"):
        bootstrap_effective_size(two, two, 0, generator=seeded())
    with pytest.raises(ValueError, match="positions and resamples must be positive"):
        bootstrap_effective_size(two, two, 1, resamples=0, generator=seeded())
    with pytest.raises(ShapeError, match="image_sums must have 2 dimension"):
        bootstrap_effective_size(two[0], two[0], 1, generator=seeded())
    with pytest.raises(ShapeError, match="must have the same shape"):
        bootstrap_effective_size(two, one, 1, generator=seeded())
    with pytest.raises(DtypeError, match="image_sums must be float64"):
        bootstrap_effective_size(two.float(), two, 1, generator=seeded())
    with pytest.raises(DtypeError, match="image_squares must be float64"):
        bootstrap_effective_size(two, two.float(), 1, generator=seeded())


def test_outliers_follow_mean_plus_u_standard_deviations() -> None:
    divergence = activations(200, seed=8).abs()
    values = divergence.numpy()
    for u in (1.0, 2.0, 3.0):
        expected = np.flatnonzero(values > values.mean() + u * values.std(ddof=1))
        assert layer_outliers(divergence, u=u).tolist() == expected.tolist()


def test_outliers_leave_nan_out() -> None:
    divergence = torch.full((20,), 0.01)
    divergence[4], divergence[9], divergence[0] = math.nan, 1.0, 0.02
    assert layer_outliers(divergence, u=3).tolist() == [9]


@pytest.mark.parametrize("divergence", [[], [1.0], [math.nan, 1.0], [0.1, 0.1, 0.1]])
def test_layers_without_spread_have_no_outliers(divergence: list[float]) -> None:
    found = layer_outliers(torch.tensor(divergence), u=3)
    assert found.dtype == torch.int64
    assert found.tolist() == []


def test_outliers_refuse_other_shapes_and_dtypes() -> None:
    with pytest.raises(ShapeError, match="divergence must have 1 dimension"):
        layer_outliers(torch.zeros(2, 2), u=3)
    with pytest.raises(DtypeError, match="divergence must be floating point"):
        layer_outliers(torch.zeros(2, dtype=torch.int64), u=3)


def test_correct_reparameterisation_hides_the_mismatch_and_the_printed_one_breaks_the_layer() -> (
    None
):
    x = activations(20, 6, 5, 5).float()
    weight, bias = torch.tensor([0.5, -1, 2, 1, 3, 0.1]), torch.linspace(-1, 1, 6)
    running_mean, running_var = torch.linspace(-2, 2, 6), torch.linspace(0.3, 5, 6)
    before = batch_norm(x, running_mean, running_var, weight, bias)

    mean, var = moments_of(x.double())
    new_weight, new_bias = reparameterised_batchnorm(
        weight, bias, running_mean, running_var, mean, var
    )
    assert new_weight.dtype == new_bias.dtype == torch.float32
    after = batch_norm(x, mean.float(), var.float(), new_weight, new_bias)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert float(gaussian_kl(mean, var, mean.float(), var.float()).max()) < 1e-10

    old, new = (running_var + 1e-5).sqrt(), (var + 1e-5).sqrt().float()
    printed_weight = new * weight / old
    printed_bias = bias - running_mean / old + mean.float() / new
    broken = batch_norm(x, mean.float(), var.float(), printed_weight, printed_bias)
    assert float((broken - before).abs().max()) > 1.0


def test_reparameterisation_refuses_other_shapes() -> None:
    one = torch.ones(3)
    with pytest.raises(ShapeError, match="all parameters must have the shape"):
        reparameterised_batchnorm(one, one, one, one, one, torch.ones(4))
