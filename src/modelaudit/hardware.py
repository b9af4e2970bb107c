"""What this hardware computes fast, and what its kernels get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Channels that oneDNN's kernels take together where vectors have 512 bits; 8 where they have 256.
_BLOCK = 16


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where the hardware multiplies it faster than float32, else None.

    Searches and training run in it; whatever is measured afterwards runs in float32. A processor
    without such instructions imitates them, which takes a multiple of float32's time.
    """
    if device.type == "cuda":
        return torch.bfloat16
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if has_bf16 else None


def fast_format(module: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the layout of images and weights that `module` computes fast in: channels last.

    But not on a processor where it has a strided 1x1 convolution of few channels. The weight
    gradient of such a layer, channels last and in float32, is written past its buffer by oneDNN
    (uxlfoundation/oneDNN issue 6035): a crash, endless loops or wrong gradients.

    Args:
        module: the network.
        device: where it computes.
    """
    if device.type == "cpu" and any(_is_overrun(layer) for layer in _convolutions(module)):
        return torch.contiguous_format
    return torch.channels_last


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _is_overrun(layer: nn.Conv2d) -> bool:
    is_strided = max(layer.stride) > 1
    return (
        is_strided
        and tuple(layer.kernel_size) == (1, 1)
        and layer.in_channels // layer.groups < _BLOCK
    )
