from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelaudit.functional.divergence import bootstrap_effective_size, gaussian_kl, layer_outliers
from modelaudit.functional.entropy import (
    histogram_entropy,
    histogram_entropy_paper,
    vasicek_entropy,
)
from modelaudit.functional.margin import class_margins, gamma_p_value
from modelaudit.functional.mask import mask_regulariser
from modelaudit.functional.noise import sign_step
from modelaudit.functional.shares import arrow_map, is_permutation_like, off_class_share
from modelaudit.functional.statistics import grubbs, log_odds, robust_z

pytestmark = pytest.mark.gpu


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.1


def check(on_cpu: Tensor, on_gpu: Tensor) -> None:
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-6, atol=1e-9)


def test_results_follow_their_inputs_to_the_gpu_and_agree_with_the_cpu() -> None:
    v = random(12)
    g = v.cuda()
    check(robust_z(v), robust_z(g))
    check(log_odds(v, v + 1), log_odds(g, g + 1))
    assert grubbs(v) == grubbs(g)
    check(
        gaussian_kl(v, v, v.flip(0), v.flip(0)),
        gaussian_kl(g, g, g.flip(0), g.flip(0)),
    )
    check(layer_outliers(v, u=1), layer_outliers(g, u=1))
    check(
        layer_outliers(v[:1], u=1),
        layer_outliers(g[:1], u=1),
    )
    x = random(50, 6)
    sizes = [
        bootstrap_effective_size(t, t.square(), 1, generator=torch.Generator().manual_seed(1))
        for t in (x, x.cuda())
    ]
    check(*sizes)
    for estimate in (
        histogram_entropy,
        histogram_entropy_paper,
        vasicek_entropy,
    ):
        check(estimate(x), estimate(x.cuda()))
    check(sign_step(v, v, 0.1, epsilon=0.3), sign_step(g, g, 0.1, epsilon=0.3))
    check(mask_regulariser(v), mask_regulariser(g))
    check(class_margins(x), class_margins(x.cuda()))
    assert gamma_p_value(v) == gamma_p_value(g)


def test_shares_follow_their_inputs_to_the_gpu() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(5, (3, 40), generator=generator)
    labels = torch.randint(5, (40,), generator=generator)
    check(
        off_class_share(predictions, labels, 5),
        off_class_share(predictions.cuda(), labels.cuda(), 5),
    )
    on_cpu = arrow_map(predictions, labels, 5)
    on_gpu = arrow_map(predictions.cuda(), labels.cuda(), 5)
    check(on_cpu.shares, on_gpu.shares)
    check(on_cpu.targets, on_gpu.targets)
    assert is_permutation_like(on_gpu) == is_permutation_like(on_cpu)
