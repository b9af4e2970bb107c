from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from modelaudit.errors import DegenerateStatisticError, DtypeError, ShapeError
from modelaudit.functional.entropy import (
    histogram_entropy,
    histogram_entropy_paper,
    vasicek_entropy,
)

ESTIMATORS = [histogram_entropy, histogram_entropy_paper, vasicek_entropy]
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS)
Estimator = Callable[[Tensor], Tensor]


def normal(images: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, generator=generator, dtype=torch.float64)


def standardised(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.double().numpy()
    return np.asarray((array - array.mean(0)) / array.std(0, ddof=1))


def plug_in(counts: list[int], images: int) -> float:
    return -sum(c / images * math.log(c / images) for c in counts if c)


def naive_paper_histogram(values: Tensor, width: float) -> list[float]:
    z = standardised(values)
    low = z.min()
    bins = int((z.max() - low) / width)
    return [
        plug_in(
            [
                int(((z[:, k] > low + width * i) & (z[:, k] < low + width * (i + 1))).sum())
                for i in range(bins)
            ],
            len(z),
        )
        for k in range(z.shape[1])
    ]


def naive_histogram(values: Tensor, width: float) -> list[float]:
    z = standardised(values)
    edges = np.arange(round(16 / width) + 1) * width - 8
    edges[0], edges[-1] = -np.inf, np.inf
    return [
        plug_in(np.histogram(z[:, k], edges)[0].tolist(), len(z)) + math.log(width)
        for k in range(z.shape[1])
    ]


def naive_vasicek(values: Tensor) -> list[float]:
    z = np.sort(standardised(values), axis=0)
    n, channels = z.shape
    m = math.isqrt(n)
    return [
        float(
            np.mean(
                [
                    math.log(n / (2 * m) * (z[min(i + m, n - 1), k] - z[max(i - m, 0), k]))
                    for i in range(n)
                ]
            )
        )
        for k in range(channels)
    ]


def test_histogram_of_many_normal_values_has_the_normal_entropy() -> None:
    assert float(histogram_entropy(normal(50_000, 1))) == pytest.approx(1.418, abs=3e-3)


def test_histogram_of_500_normal_values_has_the_known_bias() -> None:
    raw = histogram_entropy(normal(500, 50)) - math.log(0.1)
    assert float(raw[0]) == pytest.approx(3.656, abs=0.03)
    assert float(raw.mean()) == pytest.approx(3.656, abs=0.005)


def test_paper_histogram_of_500_normal_values_has_the_known_bias() -> None:
    raw = histogram_entropy_paper(normal(500, 50))
    assert float(raw.mean()) == pytest.approx(5.489, abs=0.015)
    assert float(raw.std()) == pytest.approx(0.026, abs=0.01)


def test_vasicek_of_normal_and_uniform_values() -> None:
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(5000, 8, generator=generator, dtype=torch.float64)
    assert float(vasicek_entropy(normal(5000, 1))) == pytest.approx(1.42, abs=0.01)
    assert float(vasicek_entropy(uniform).mean()) == pytest.approx(math.log(12) / 2, abs=0.02)
    assert float(vasicek_entropy(normal(500, 50)).mean()) == pytest.approx(1.399, abs=0.005)


@pytest.mark.parametrize("width", [0.01, 0.1, 0.37])
def test_paper_histogram_equals_the_naive_loop(width: float) -> None:
    values = 5 + 3 * normal(200, 4, seed=2)
    np.testing.assert_allclose(
        histogram_entropy_paper(values, width=width),
        naive_paper_histogram(values, width),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("width", [0.1, 0.25])
def test_histogram_equals_numpys(width: float) -> None:
    values = 5 + 3 * normal(200, 4, seed=3)
    values[0, 1] = 1e3  # beyond eight standard deviations: counted in the last bin
    assert standardised(values).max() > 8
    np.testing.assert_allclose(
        histogram_entropy(values, width=width), naive_histogram(values, width), rtol=0, atol=1e-12
    )


def test_vasicek_equals_the_naive_loop() -> None:
    values = normal(150, 4, seed=4) ** 3
    np.testing.assert_allclose(vasicek_entropy(values), naive_vasicek(values), atol=1e-12)


def test_paper_histogram_drops_values_on_an_edge() -> None:
    # Two values per channel: the lowest is an edge, the other lies beyond the last full bin.
    values = torch.tensor([[0.0], [1.0]])
    assert float(histogram_entropy_paper(values, width=1.0)) == 0.0
    # Four equally spaced values; the width makes every one of them an edge.
    values = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    spacing = float(1 / values.double().std(0))
    assert float(histogram_entropy_paper(values, width=spacing)) == pytest.approx(
        naive_paper_histogram(values, spacing)[0], abs=1e-12
    )


def test_paper_histogram_wider_than_the_range_has_no_bin() -> None:
    assert histogram_entropy_paper(normal(20, 3), width=100.0).tolist() == [0.0] * 3


def mixture(images: int, share: float, distance: float, seed: int) -> Tensor:
    values = normal(images, 1, seed)[:, 0]
    values[: round(share * images)] += distance
    return values


@every_estimator
def test_a_bimodal_channel_ranks_lowest(estimate: Estimator) -> None:
    values = normal(500, 64, seed=5)
    values[:, 17] = mixture(500, 0.1, 5.0, seed=6)
    assert int(estimate(values).argmin()) == 17


@pytest.mark.parametrize(
    ("share", "distance", "nats"),
    [(0.01, 5, 1.3617), (0.05, 5, 1.2194), (0.05, 8, 0.9193), (0.1, 2, 1.4072), (0.1, 5, 1.1450)],
)
def test_mixtures_have_the_tabulated_entropy(share: float, distance: float, nats: float) -> None:
    values = mixture(100_000, share, distance, seed=7).unsqueeze(1)
    assert float(histogram_entropy(values, width=0.05)) == pytest.approx(nats, abs=0.01)


@every_estimator
def test_entropy_does_not_depend_on_scale_and_shift(estimate: Estimator) -> None:
    values = normal(300, 5, seed=8)
    scaled = values.clone()
    scaled[:, 2] = 1024.0 * scaled[:, 2] - 64.0  # binary numbers: no rounding moves a value's bin
    np.testing.assert_allclose(estimate(scaled), estimate(values), atol=1e-9)


@every_estimator
def test_entropy_does_not_depend_on_the_order_of_images(estimate: Estimator) -> None:
    values = normal(300, 5, seed=9)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(estimate(values[order]), estimate(values), atol=1e-9)


@every_estimator
def test_constant_and_undefined_channels_are_nan_and_change_no_other(estimate: Estimator) -> None:
    values = normal(100, 6, seed=10)
    alone = estimate(values[:, 2:])
    values[:, 0], values[3, 1] = 0.1, math.nan
    got = estimate(values)
    assert got[:2].isnan().all()
    np.testing.assert_allclose(got[2:], alone, atol=1e-12)
    values[3, 1] = math.inf
    assert estimate(values)[1].isnan()


@every_estimator
def test_entropy_without_a_channel_that_varies_is_all_nan(estimate: Estimator) -> None:
    assert estimate(torch.ones(10, 3)).isnan().tolist() == [True] * 3
    assert estimate(torch.ones(10, 0)).shape == (0,)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_entropy_is_float64_and_finite_of_any_dtype(
    estimate: Estimator, dtype: torch.dtype
) -> None:
    got = estimate(normal(200, 3).to(dtype))
    assert got.dtype == torch.float64
    assert got.isfinite().all()


@every_estimator
def test_entropy_of_two_images_is_finite(estimate: Estimator) -> None:
    assert estimate(torch.tensor([[0.0, 1.0], [1.0, 5.0]])).isfinite().all()


def test_ties_do_not_give_minus_infinity() -> None:
    values = torch.zeros(100, 1)
    values[:5, 0] = torch.arange(1.0, 6.0)
    tied = float(vasicek_entropy(values))
    assert math.isfinite(tied)
    assert tied < float(vasicek_entropy(normal(100, 1))) - 5


@every_estimator
@pytest.mark.parametrize("images", [0, 1])
def test_fewer_than_two_images_raise(estimate: Estimator, images: int) -> None:
    with pytest.raises(DegenerateStatisticError, match=f"at least two images, got {images}"):
        estimate(torch.zeros(images, 3))


@every_estimator
def test_entropy_refuses_other_shapes_and_dtypes(estimate: Estimator) -> None:
    with pytest.raises(ShapeError, match="values must have 2 dimension"):
        estimate(torch.zeros(5))
    with pytest.raises(DtypeError, match="values must be floating point"):
        estimate(torch.zeros(5, 2, dtype=torch.int64))


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_histograms_refuse_an_impossible_width(width: float) -> None:
    with pytest.raises(ValueError, match="width must be"):
        histogram_entropy(normal(10, 1), width=width)
    with pytest.raises(ValueError, match="width must be"):
        histogram_entropy_paper(normal(10, 1), width=width)


def test_histogram_refuses_a_width_beyond_its_grid() -> None:
    with pytest.raises(ValueError, match="width must be"):
        histogram_entropy(normal(10, 1), width=17.0)
