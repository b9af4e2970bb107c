"""The feature maps at the end of each stage of a network, found by following one forward pass."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from modelaudit.errors import RepairError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from modelaudit.suspect import Suspect

_POOLS = (_AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a stage's feature maps come out.

    Attributes:
        name: module whose output they are; the empty name is the whole network.
        call: which call of the module in one forward pass, from 0: an activation may be shared.
        shape: (C, H, W) of one image's maps.
    """

    name: str
    call: int
    shape: tuple[int, int, int]


def find_stages(model: Suspect, *, count: int = 3) -> tuple[Stage, ...]:
    """Return the last maps at each of the last `count` sizes that have more than one place.

    For a CIFAR ResNet-18 these are the outputs of its second, third and fourth stage, for a Wide
    ResNet those of its three groups. What a pooling layer returns is left out: behind a global
    pooling the map is one place, its attention is constant and teaches nothing.

    Args:
        model: in eval mode; two images pass through it, and are counted.
        count: number of stages at most; a network with fewer sizes gives fewer.

    Raises:
        RepairError: no layer returns maps.
    """
    calls: Counter[str] = Counter()
    found: dict[tuple[int, int], Stage] = {}
    pooled: list[Tensor] = []

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(child: nn.Module, _args: Any, output: Any) -> None:
            number = calls[name]
            calls[name] += 1
            if not isinstance(output, Tensor) or output.dim() != 4:
                return
            if isinstance(child, _POOLS):
                pooled.append(output)
            # A container may end with a pooling layer, and then returns what that returned.
            if any(output is tensor for tensor in pooled):
                return
            channels, height, width = output.shape[1:]
            if height * width > 1:
                shape = (channels, height, width)
                found[height, width] = Stage(name=name, call=number, shape=shape)

        return hook

    handles = [child.register_forward_hook(record(n)) for n, child in model.module.named_modules()]
    shape = (2, model.input_channels, model.input_size, model.input_size)
    try:
        with torch.no_grad():
            model.logits(torch.full(shape, 0.5))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise RepairError(
            "expected a network with feature maps, this one has none of more than one place; take "
            "another repair"
        )
    by_size = sorted(found.values(), key=lambda stage: -stage.shape[1] * stage.shape[2])
    return tuple(by_size[-count:])


@contextmanager
def recorded(module: nn.Module, stages: tuple[Stage, ...]) -> Generator[Callable[[], list[Tensor]]]:
    """While open, keep the stages' maps of the latest forward pass.

    Args:
        module: the network that `stages` were found in, or a copy of it.
        stages: what to keep.

    Yields:
        A function that returns the maps of the latest pass, in the order of `stages`.
    """
    wanted = {(stage.name, stage.call): index for index, stage in enumerate(stages)}
    maps: dict[int, Tensor] = {}
    calls: Counter[str] = Counter()

    def start(_module: nn.Module, _args: Any) -> None:
        calls.clear()
        maps.clear()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            index = wanted.get((name, calls[name]))
            calls[name] += 1
            if index is not None:
                maps[index] = output

        return hook

    handles = [module.register_forward_pre_hook(start)]
    # Once per module, however many of its calls are wanted.
    handles += [
        module.get_submodule(name).register_forward_hook(keep(name))
        for name in {stage.name for stage in stages}
    ]
    try:
        yield lambda: [maps[index] for index in range(len(stages))]
    finally:
        for handle in handles:
            handle.remove()
