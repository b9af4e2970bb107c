"""Counts what a forward pass costs, from shapes alone, so that a limit is the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def multiply_adds(module: nn.Module, channels: int, size: int) -> int:
    """Return the multiplications that convolutions and linear layers make for one image.

    The module runs on tensors without data, so this takes no time to speak of and the module stays
    as it is.

    Args:
        module: in eval mode, any device.
        channels: C of its input.
        size: side of its square input, pixels.

    Returns:
        The number; 0 where the module cannot run without data, or not at this size.
    """
    total = 0

    def count(layer: nn.Module, _args: object, output: object) -> None:
        nonlocal total
        weight = getattr(layer, "weight", None)
        if isinstance(output, Tensor) and isinstance(weight, Tensor):
            total += output.numel() * weight[0].numel()

    handles: list[RemovableHandle] = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, _COUNTED)
    ]
    empty = {
        name: tensor.to("meta")
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    try:
        with torch.no_grad():
            functional_call(module, empty, (torch.empty(1, channels, size, size, device="meta"),))
    # What a module raises on an input of the wrong size, or on tensors that hold no numbers.
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        return 0
    except (AssertionError, MemoryError):
        return 0
    finally:
        for handle in handles:
            handle.remove()
    return total
