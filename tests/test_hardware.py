"""Bfloat16 only where the hardware multiplies it; channels last but where that is unsafe."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelaudit.hardware import fast_dtype, fast_format


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, None),
        ({"avx512_bf16": False, "amx_bf16": False}, None),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_bfloat16_is_fast_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fast_dtype(torch.device("cpu")) is expected


def test_bfloat16_is_fast_on_a_gpu() -> None:
    assert fast_dtype(torch.device("cuda")) is torch.bfloat16


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), torch.contiguous_format),
        (nn.Conv2d(15, 32, 1, stride=(1, 2)), torch.contiguous_format),
        (nn.Conv2d(32, 32, 1, stride=2, groups=4), torch.contiguous_format),
        (nn.Conv2d(16, 32, 1, stride=2), torch.channels_last),
        (nn.Conv2d(4, 8, 1), torch.channels_last),
        (nn.Conv2d(4, 8, 3, stride=2), torch.channels_last),
        (nn.Linear(4, 8), torch.channels_last),
    ],
)
def test_layout_is_channels_last_but_with_few_channels_in_a_strided_1x1_convolution(
    layer: nn.Module, expected: torch.memory_format
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(layer))
    assert fast_format(module, CPU) is expected
    assert fast_format(module, torch.device("cuda")) is torch.channels_last


@pytest.mark.parametrize("channels", [4, 16])
def test_gradients_in_that_layout_are_right(channels: int) -> None:
    draws = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(channels, 8, 1, stride=2, bias=False)
    layer.to(memory_format=fast_format(layer, CPU))
    images = torch.rand(16, channels, 8, 8, generator=draws)
    outputs = layer(images.contiguous(memory_format=fast_format(layer, CPU)))
    slopes = torch.rand(outputs.shape, generator=draws)
    (outputs * slopes).sum().backward()
    assert layer.weight.grad is not None
    expected = torch.einsum("nohw,nihw->oi", slopes, images[:, :, ::2, ::2])
    torch.testing.assert_close(layer.weight.grad[:, :, 0, 0], expected)
