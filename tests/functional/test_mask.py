from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional.mask import (
    mask_objective,
    mask_regulariser,
    mask_regulariser_paper_code,
)


def uniform_mask(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator, dtype=dtype).requires_grad_()


def gradient_of(value: Tensor, mask: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, mask)
    return gradient


def test_regulariser_is_the_logarithm_of_the_sum() -> None:
    mask = uniform_mask(4, 3, 3).detach()
    expected = math.log(mask.double().sum())
    assert float(mask_regulariser(mask)) == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_paper_code_is_that_of_the_logarithm() -> None:
    mask = uniform_mask(512, 4, 4, dtype=torch.float64)
    by_code = gradient_of(mask_regulariser_paper_code(mask), mask)
    by_log = gradient_of(mask_regulariser(mask), mask)
    torch.testing.assert_close(by_code, by_log, rtol=1e-12, atol=0)
    expected = torch.full_like(by_log, 1 / float(mask.detach().sum()))
    torch.testing.assert_close(by_log, expected, rtol=1e-12, atol=0)
    # methods/detectors.md §1.2 quotes 0.75 times this at the start.
    assert 0.75 * float(by_log[0, 0, 0]) == pytest.approx(1.8e-4, rel=0.05)


def test_value_of_the_paper_code_is_always_one() -> None:
    assert float(mask_regulariser_paper_code(uniform_mask(9).detach())) == 1.0
    assert float(mask_regulariser_paper_code(torch.zeros(9))) == 1.0


@pytest.mark.parametrize("regulariser", [mask_regulariser, mask_regulariser_paper_code])
def test_empty_mask_is_finite_with_zero_gradient(regulariser: object) -> None:
    assert callable(regulariser)
    mask = torch.zeros(5, requires_grad=True)
    value = regulariser(mask)
    assert value.isfinite()
    assert gradient_of(value, mask).tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_regularisers_compute_in_single_precision_or_wider(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    # The sum of this mask overflows float16.
    mask = torch.ones(100_000, dtype=dtype)
    assert mask_regulariser(mask).dtype == wide
    assert mask_regulariser_paper_code(mask).dtype == wide
    assert float(mask_regulariser(mask)) == pytest.approx(math.log(1e5), rel=1e-6)


def test_nan_mask_gives_nan() -> None:
    assert mask_regulariser(torch.tensor([0.5, math.nan])).isnan()


def test_regulariser_refuses_an_integer_mask() -> None:
    with pytest.raises(DtypeError, match="mask must be floating point"):
        mask_regulariser(torch.ones(3, dtype=torch.int64))


def naive_cross_entropy(logits: np.ndarray, labels: list[int]) -> float:
    losses: list[float] = [
        math.log(sum(math.exp(z) for z in row)) - row[y]
        for row, y in zip(logits.tolist(), labels, strict=True)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_objective_equals_the_literal_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(6, 4, generator=generator).to(dtype)
    negative = torch.randn(6, 4, generator=generator).to(dtype)
    mask, labels = uniform_mask(10).detach(), torch.tensor([0, 1, 2, 3, 0, 1])
    got = mask_objective(positive, negative, labels, mask, weight=0.75)
    expected = (
        naive_cross_entropy(positive.double().numpy(), labels.tolist())
        - naive_cross_entropy(negative.double().numpy(), labels.tolist())
        + 0.75 * math.log(mask.double().sum())
    )
    assert float(got) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_search_isolates_a_planted_feature() -> None:
    # Class 0 answers to feature 7 alone, which is always on: m must drop it, 1 - m must keep it.
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(4, 16, generator=generator)
    head[0], head[:, 7] = 0.0, 0.0
    head[0, 7] = 50.0
    features = torch.rand(128, 16, generator=generator)
    features[:, 7] = 0.0
    labels = (features @ head[1:].T).argmax(1) + 1
    features[:, 7] = 1.0
    mask = torch.rand(16, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([mask], lr=0.01)
    for _ in range(400):
        loss = mask_objective(
            (features * mask) @ head.T, (features * (1 - mask)) @ head.T, labels, mask, weight=0.75
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            mask.clamp_(0.0, 1.0)
    found = mask.detach()
    assert float(found[7]) < 0.1
    assert bool((((features * (1 - found)) @ head.T).argmax(1) == 0).all())


def test_objective_refuses_other_shapes_and_no_images() -> None:
    mask, logits, labels = torch.ones(3), torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ShapeError, match="logits_negative and logits_positive"):
        mask_objective(logits, torch.zeros(2, 3), labels, mask, weight=1.0)
    with pytest.raises(ShapeError, match="logits_positive must have 2 dimension"):
        mask_objective(logits[0], logits[0], labels, mask, weight=1.0)
    with pytest.raises(ShapeError, match="labels must have one entry per image"):
        mask_objective(logits, logits, labels[:1], mask, weight=1.0)
    with pytest.raises(ShapeError, match="labels must have one entry per image"):
        mask_objective(logits[:0], logits[:0], labels[:0], mask, weight=1.0)
    with pytest.raises(DtypeError, match="logits_positive must be floating point"):
        mask_objective(logits.long(), logits, labels, mask, weight=1.0)
