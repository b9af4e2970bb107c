from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional import reweighting
from modelaudit.functional.reweighting import effective_count, matching_weights


def _gaussian(images: int, statistics: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, statistics, generator=generator, dtype=torch.float64)


def _standard_errors(weights: Tensor, deviations: Tensor) -> Tensor:
    images = len(deviations)
    return (weights @ deviations / images) / (deviations.std(0) / images**0.5)


def _objective(weights: Tensor, deviations: Tensor, ridge: float, scale: float) -> Tensor:
    """Compute the docstring's formula literally, `scale` being cutoff·s."""
    z = _standard_errors(weights, deviations)
    rho = z.square() / (1 + (z / scale).square())
    return rho.mean() + ridge * (weights - 1).square().mean()


def test_means_that_are_zero_need_no_weights() -> None:
    deviations = _gaussian(60, 20)
    weights = matching_weights(deviations - deviations.mean(0))
    assert torch.allclose(weights, torch.ones(60, dtype=torch.float64), atol=1e-6)


def test_two_images_and_one_statistic_by_hand() -> None:
    # The standard error is sqrt(8) / sqrt(2) = 2; z = (5 w1 + w2)/2 / 2 with w2 = 2 - w1, which is
    # (2 w1 + 1)/2, and the variance of the weights is (w1 - 1)².
    deviations = torch.tensor([[5.0], [1.0]], dtype=torch.float64)
    weights = matching_weights(deviations, ridge=1.0, cutoff=1e6)
    # d/dw1 of ((2 w1 + 1)/2)² + (w1 - 1)² = (2 w1 + 1) + 2 (w1 - 1) = 0 at w1 = 1/4
    assert weights.tolist() == pytest.approx([0.25, 1.75], abs=1e-4)


def test_no_ridge_and_one_sign_puts_everything_on_the_nearest_image() -> None:
    deviations = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    weights = matching_weights(deviations, ridge=0.0, cutoff=1e6)
    assert weights.tolist() == pytest.approx([3.0, 0.0, 0.0], abs=1e-3)


def test_other_shares_of_two_kinds_are_recovered() -> None:
    # A third of the sample is of one kind, two thirds of what the statistics were taken from were.
    kind = torch.arange(300) < 100
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(2, 40, generator=generator, dtype=torch.float64)
    values = centres[kind.long()] + _gaussian(300, 40)
    target = (2 * centres[1] + centres[0]) / 3
    weights = matching_weights(values - target, ridge=0.1)
    assert float(weights[kind].sum() / weights.sum()) == pytest.approx(2 / 3, abs=0.02)


def test_statistics_that_no_mixture_explains_do_not_bend_the_weights() -> None:
    kind = torch.arange(300) < 100
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(2, 40, generator=generator, dtype=torch.float64)
    values = centres[kind.long()] + _gaussian(300, 40)
    target = (2 * centres[1] + centres[0]) / 3
    target[:4] += 8.0
    deviations = values - target
    weights = matching_weights(deviations, ridge=0.1)
    assert float(weights[kind].sum() / weights.sum()) == pytest.approx(2 / 3, abs=0.03)
    # What it is about: the four stay where they were, the others come to zero.
    left = (weights @ deviations / 300).abs()
    assert float(left[:4].min()) > 6
    assert float(left[4:].max()) < 0.5


def test_the_weights_are_a_minimum_of_the_formula() -> None:
    deviations = _gaussian(40, 25) + 0.3
    found = matching_weights(deviations, ridge=0.5, rounds=50)
    # s is that of the weights themselves, and fixed while they are compared
    s = max(1.0, 1.4826 * float(_standard_errors(found, deviations).abs().median()))
    best = _objective(found, deviations, 0.5, 3 * s)
    assert best < _objective(torch.ones(40, dtype=torch.float64), deviations, 0.5, 3 * s)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        step = 0.05 * torch.randn(40, generator=generator, dtype=torch.float64)
        other = (found + step).clamp_min(0)
        other *= 40 / other.sum()
        assert best <= _objective(other, deviations, 0.5, 3 * s) + 1e-6


def test_the_order_of_images_does_not_matter() -> None:
    deviations = _gaussian(50, 30) + 0.2
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    one, two = matching_weights(deviations), matching_weights(deviations[order])
    assert torch.allclose(one[order], two, atol=1e-4)


def test_what_says_nothing_is_left_out() -> None:
    deviations = _gaussian(50, 4) + 0.2
    useless = torch.stack((torch.full((50,), torch.nan), torch.full((50,), 7.0)), dim=1).to(
        torch.float64
    )
    padded = torch.cat((deviations, useless), 1)
    assert torch.equal(matching_weights(padded), matching_weights(deviations))
    assert torch.equal(matching_weights(useless), torch.ones(50, dtype=torch.float64))
    assert matching_weights(deviations[:1]).tolist() == [1.0]


def test_parts_of_any_size_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    deviations = _gaussian(60, 50) + 0.2
    deviations[:, 20] = torch.nan
    whole = matching_weights(deviations)
    # Neither number divides the images or the columns that say something.
    monkeypatch.setattr(reweighting, "_ROWS", 16)
    monkeypatch.setattr(reweighting, "_COLUMNS", 13)
    assert torch.allclose(matching_weights(deviations), whole, rtol=0, atol=1e-12)
    assert float((whole - 1).abs().max()) > 0.1


def test_weights_stay_a_mixture() -> None:
    weights = matching_weights(_gaussian(80, 60) + 1.0, ridge=0.01)
    assert float(weights.min()) >= 0
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-9)


def test_the_effective_count_is_kishs() -> None:
    assert effective_count(torch.ones(7)) == pytest.approx(7.0)
    assert effective_count(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)


def test_bad_arguments_are_refused() -> None:
    deviations = _gaussian(5, 3)
    with pytest.raises(ShapeError):
        matching_weights(deviations[0])
    with pytest.raises(DtypeError):
        matching_weights(deviations.float())
    for options in ({"ridge": -1.0}, {"cutoff": 0.0}, {"rounds": 0}):
        with pytest.raises(ValueError, match="expected at least one image"):
            matching_weights(deviations, **options)  # type: ignore[arg-type]  # a test's shorthand
    with pytest.raises(ValueError, match="expected at least one image"):
        matching_weights(deviations[:0])
