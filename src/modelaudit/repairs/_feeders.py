"""Which convolution feeds a BatchNorm layer and nothing else, found by following the tensors."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from modelaudit.suspect import Suspect


class _Consumers(TorchFunctionMode):
    """Counts, for each watched tensor, the operations that made tensors of it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}
        self.uses: Counter[int] = Counter()

    def watch(self, value: Tensor) -> None:
        # Kept alive, so that no other tensor gets its identity.
        self.watched[id(value)] = value

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        arguments = [*_tensors(args), *_tensors((kwargs or {}).values())]
        out = func(*args, **(kwargs or {}))
        # Shapes, dtypes and sizes are asked for without using the values.
        if next(_tensors([out]), None) is not None:
            self.uses.update({id(t) for t in arguments if id(t) in self.watched})
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def sole_feeders(model: Suspect) -> dict[str, str]:
    """Find the BatchNorm layers whose input one convolution makes for them alone.

    Pruning such a channel may remove the convolution's filter as well. Not so where the output goes
    elsewhere too (a shortcut, a concatenation), where either layer runs more than once, or where
    the filter is shared with another layer.

    Args:
        model: in eval mode; one image passes through it, and is counted.

    Returns:
        Site name to the name of the convolution (or linear layer) that feeds it.
    """
    pairs = {s.name: s.upstream for s in model.sites if s.upstream is not None and s.has_statistics}
    modules = {name: model.module.get_submodule(name) for pair in pairs.items() for name in pair}
    calls: Counter[str] = Counter()
    outputs: dict[str, Tensor] = {}
    consumers = _Consumers()

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, Tensor):
                outputs[name] = output
                consumers.watch(output)

        return hook

    handles = [child.register_forward_hook(record(name)) for name, child in modules.items()]
    shape = (1, model.input_channels, model.input_size, model.input_size)
    try:
        with torch.no_grad(), consumers:
            model.logits(torch.full(shape, 0.5))
    finally:
        for handle in handles:
            handle.remove()
    owners = Counter(
        id(parameter)
        for child in model.module.modules()
        for parameter in child.parameters(recurse=False)
    )
    return {
        site: feeder
        for site, feeder in pairs.items()
        if calls[site] == calls[feeder] == 1
        and consumers.uses[id(outputs[feeder])] == 1
        and all(owners[id(p)] == 1 for p in modules[feeder].parameters(recurse=False))
    }
