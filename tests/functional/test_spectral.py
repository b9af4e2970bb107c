from __future__ import annotations

import numpy as np
import pytest
import torch

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional.divergence import reparameterised_batchnorm
from modelaudit.functional.spectral import channel_lipschitz
from tests.helpers.models import draw


def test_the_norm_is_the_largest_singular_value_of_each_filter() -> None:
    weight, gamma = draw((6, 4, 3, 3)), draw((6,), 1)
    variance = draw((6,), 2).abs()
    expected = [
        np.linalg.svd(weight[k].reshape(4, 9).double().numpy(), compute_uv=False)[0]
        * abs(float(gamma[k]))
        / np.sqrt(float(variance[k]) + 1e-5)
        for k in range(6)
    ]
    found = channel_lipschitz(weight, gamma, variance, eps=1e-5)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_filter_by_hand() -> None:
    # [[3, 0], [0, 4]] has the singular values 3 and 4.
    weight = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    found = channel_lipschitz(weight, torch.tensor([-2.0]), torch.tensor([3.0]), eps=1.0)
    assert found.tolist() == [pytest.approx(4.0)]


def test_a_linear_layer_has_the_length_of_its_row() -> None:
    found = channel_lipschitz(torch.tensor([[3.0, 4.0]]), torch.ones(1), torch.zeros(1), eps=1.0)
    assert found.tolist() == [pytest.approx(5.0)]


def test_reparameterised_statistics_leave_the_score() -> None:
    weight, gamma, beta = draw((5, 3, 3, 3)), draw((5,), 1), draw((5,), 2)
    mean, variance = draw((5,), 3), draw((5,), 4).abs() + 0.1
    other = draw((5,), 5).abs() + 0.1
    new_gamma, _ = reparameterised_batchnorm(gamma, beta, mean, variance, mean + 1, other)
    torch.testing.assert_close(
        channel_lipschitz(weight, new_gamma, other, eps=1e-5),
        channel_lipschitz(weight, gamma, variance, eps=1e-5),
        rtol=1e-5,
        atol=0,
    )


def test_a_dead_channel_is_finite_and_a_broken_one_is_nan() -> None:
    weight = draw((3, 2, 3, 3))
    weight[1] = 0
    weight[2, 0, 0, 0] = torch.inf
    found = channel_lipschitz(weight, torch.ones(3), torch.zeros(3), eps=1e-5)
    assert found[0].isfinite()
    assert found[1] == 0
    assert found[2].isnan()


def test_shapes_that_do_not_belong_together_raise() -> None:
    with pytest.raises(ShapeError):
        channel_lipschitz(draw((3, 2, 3, 3)), torch.ones(2), torch.ones(3), eps=1e-5)
    with pytest.raises(ShapeError):
        channel_lipschitz(draw((3,)), torch.ones(3), torch.ones(3), eps=1e-5)
    with pytest.raises(DtypeError):
        channel_lipschitz(draw((3, 2)), torch.ones(3), torch.ones(3, dtype=torch.int64), eps=1e-5)
