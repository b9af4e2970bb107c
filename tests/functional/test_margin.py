from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from modelaudit.errors import DegenerateStatisticError, DtypeError, ShapeError
from modelaudit.functional.margin import class_margins, gamma_p_value, margin_to


def logits_of(images: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, classes, generator=generator, dtype=torch.float64)


def naive_margins(logits: Tensor) -> list[list[float]]:
    return [
        [row[t] - max(v for k, v in enumerate(row) if k != t) for t in range(len(row))]
        for row in logits.tolist()
    ]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_margins_equal_the_naive_loop_exactly(classes: int) -> None:
    logits = logits_of(20, classes)
    assert class_margins(logits).tolist() == naive_margins(logits)


def test_margin_of_the_predicted_class_alone_is_positive() -> None:
    margins = class_margins(logits_of(20, 10))
    assert torch.equal(margins > 0, margins == margins.amax(1, keepdim=True))


def test_tied_classes_have_zero_margin() -> None:
    logits = torch.tensor([[3.0, 3.0, 1.0], [2.0, 2.0, 2.0]])
    assert class_margins(logits).tolist() == [[0.0, 0.0, -2.0], [0.0, 0.0, 0.0]]


def test_margin_to_is_a_column_of_the_margins() -> None:
    logits = logits_of(20, 10)
    for targets in (torch.arange(20) % 10, logits.argmax(1), (torch.arange(20) % 10).int()):
        expected = class_margins(logits)[torch.arange(20), targets.long()]
        assert torch.equal(margin_to(logits, targets), expected)


def test_permuting_classes_permutes_margins() -> None:
    logits = logits_of(20, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(class_margins(logits[:, order]), class_margins(logits)[:, order])


def test_gradient_is_one_at_the_target_and_minus_one_at_its_rival() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]], requires_grad=True)
    margin_to(logits, torch.tensor([0, 1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_margins_keep_the_dtype(dtype: torch.dtype) -> None:
    logits = logits_of(3, 4).to(dtype)
    assert class_margins(logits).dtype == dtype
    assert margin_to(logits, torch.zeros(3, dtype=torch.int64)).dtype == dtype


def test_margins_of_no_images_are_empty() -> None:
    assert class_margins(torch.zeros(0, 3)).shape == (0, 3)
    assert margin_to(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_undefined_logit_makes_every_margin_undefined() -> None:
    assert class_margins(torch.tensor([[1.0, math.nan, 2.0]])).isnan().all()


def test_margins_refuse_other_shapes_and_dtypes() -> None:
    targets = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ShapeError, match="at least two classes, got 1"):
        class_margins(torch.zeros(2, 1))
    with pytest.raises(ShapeError, match="logits must have 2 dimension"):
        class_margins(torch.zeros(2))
    with pytest.raises(DtypeError, match="logits must be floating point"):
        class_margins(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="targets must have one entry per row"):
        margin_to(torch.zeros(3, 3), targets)
    with pytest.raises(DtypeError, match="targets must be an integer tensor"):
        margin_to(torch.zeros(2, 3), targets.float())


def test_linear_model_reaches_its_closed_form_maximum_margin() -> None:
    # For two classes the maximum of the margin over the unit box is at a corner.
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, 8, generator=generator), torch.randn(2, generator=generator)
    x = torch.rand(4, 8, generator=generator).requires_grad_()
    targets = torch.zeros(4, dtype=torch.int64)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(margin_to(x @ weight.T + bias, targets).sum(), x)
        x = (x + 0.5 * gradient).clamp(0, 1).detach().requires_grad_()
    expected = (weight[0] - weight[1]).clamp_min(0).sum() + bias[0] - bias[1]
    got = margin_to(x @ weight.T + bias, targets)
    torch.testing.assert_close(got, expected.expand(4), atol=1e-5, rtol=1e-5)


def gamma_scores(count: int, shape: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(shape, 1.7, count)


@pytest.mark.parametrize("classes", [3, 10, 43])
@pytest.mark.parametrize("shape", [0.5, 2.0, 20.0, 500.0])
def test_gamma_p_value_agrees_with_scipys_fit(classes: int, shape: float) -> None:
    from scipy import stats

    scores = gamma_scores(classes, shape, seed=classes)
    ordered = np.sort(scores)
    fitted, _, scale = stats.gamma.fit(ordered[:-1], floc=0)
    survival = stats.gamma.sf(ordered[-1], fitted, scale=scale)
    expected = -np.expm1(classes * np.log1p(-survival))
    assert gamma_p_value(torch.from_numpy(scores)) == pytest.approx(float(expected), rel=1e-6)


def test_gamma_p_value_does_not_depend_on_scale_and_order() -> None:
    scores = torch.from_numpy(gamma_scores(10, 20.0, seed=1))
    p_value = gamma_p_value(scores)
    assert gamma_p_value(scores.flip(0) * 1000) == pytest.approx(p_value, rel=1e-9)


def test_gamma_p_value_of_a_planted_outlier_is_small() -> None:
    scores = torch.from_numpy(gamma_scores(10, 20.0, seed=1))
    scores[4] = 10 * scores.max()
    assert gamma_p_value(scores) < 1e-6


def test_gamma_p_value_rejects_far_more_than_its_nominal_share_of_clean_models() -> None:
    # methods/detectors.md §11.3 measured 24 % at a nominal 5 %: why it decides nothing here.
    population = gamma_scores(400 * 10, 20.0, seed=2).reshape(400, 10)
    rejected = sum(gamma_p_value(torch.from_numpy(row)) < 0.05 for row in population)
    assert 0.17 <= rejected / 400 <= 0.31


@pytest.mark.parametrize(
    "scores", [[], [1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, -1.0], [1.0, 2.0, math.nan]]
)
def test_gamma_fit_of_too_few_or_impossible_scores_raises(scores: list[float]) -> None:
    with pytest.raises(DegenerateStatisticError, match="at least three positive finite scores"):
        gamma_p_value(torch.tensor(scores))


def test_gamma_fit_of_infinite_scores_raises() -> None:
    with pytest.raises(DegenerateStatisticError, match="at least three positive finite scores"):
        gamma_p_value(torch.tensor([1.0, 2.0, math.inf]))


def test_gamma_fit_of_equal_scores_raises() -> None:
    with pytest.raises(DegenerateStatisticError, match="needs scores that differ"):
        gamma_p_value(torch.tensor([0.1, 0.1, 0.1, 5.0]))


def test_gamma_fit_refuses_other_shapes_and_dtypes() -> None:
    with pytest.raises(ShapeError, match="scores must have 1 dimension"):
        gamma_p_value(torch.ones(2, 2))
    with pytest.raises(DtypeError, match="scores must be floating point"):
        gamma_p_value(torch.ones(5, dtype=torch.int64))
