"""DenseNet with the CIFAR stem, under the key names that the public backdoor toolkits use.

Huang et al., *Densely Connected Convolutional Networks* (arXiv 1608.06993), DenseNet-BC with a 3x3
stride-1 stem. Keys: ``conv1 dense{1..4}.{i}.{bn,conv}{1,2} trans{1..3}.{bn,conv} bn linear``. New
channels come before the old ones in each concatenation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional

from modelaudit.architectures._keys import (
    block_count,
    linear_head,
    renamed,
    shape_of,
    small_inputs,
)
from modelaudit.architectures.base import ArchitectureFamily, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelaudit.weights import Weights

#: blocks per stage to the published depth
DEPTHS: dict[tuple[int, ...], int] = {
    (6, 12, 24, 16): 121,
    (6, 12, 36, 24): 161,
    (6, 12, 32, 32): 169,
    (6, 12, 48, 32): 201,
}
STAGES = (1, 2, 3, 4)
#: width of a layer's bottleneck, in growth rates
BOTTLENECK = 4


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution (1x1, 3x3); the input is passed on beside the result."""

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, bottleneck, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, growth_rate + C, H, W)``."""
        out = self.conv1(functional.relu(self.bn1(x)))
        out = self.conv2(functional.relu(self.bn2(out)))
        return torch.cat([out, x], dim=1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution and average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, out_channels, H/2, W/2)``."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(x))), 2)


class CifarDenseNet(nn.Module):
    """DenseNet-BC for small images.

    Args:
        blocks: layers of the four stages.
        growth_rate: channels that each layer adds.
        num_classes: outputs K.
        in_channels: channels of the input.
        stem_width: channels of the stem; twice the growth rate if omitted.
        transitions: output channels of the three transitions; half their inputs, rounded down, if
            omitted.
        bottleneck: channels between a layer's convolutions; four times the growth rate if omitted.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, ...] = (6, 12, 24, 16),
        growth_rate: int = 32,
        num_classes: int = 10,
        in_channels: int = 3,
        stem_width: int | None = None,
        transitions: tuple[int, ...] | None = None,
        bottleneck: int | None = None,
    ) -> None:
        super().__init__()
        channels = stem_width or 2 * growth_rate
        inner = bottleneck or BOTTLENECK * growth_rate
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for stage, count in zip(STAGES, blocks, strict=True):
            layers = [
                DenseLayer(channels + i * growth_rate, growth_rate, inner) for i in range(count)
            ]
            setattr(self, f"dense{stage}", nn.Sequential(*layers))
            channels += count * growth_rate
            if stage != STAGES[-1]:
                out_channels = channels // 2 if transitions is None else transitions[stage - 1]
                setattr(self, f"trans{stage}", Transition(channels, out_channels))
                channels = out_channels
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        out = self.conv1(x)
        for stage in STAGES:
            out = getattr(self, f"dense{stage}")(out)
            if stage != STAGES[-1]:
                out = getattr(self, f"trans{stage}")(out)
        out = functional.adaptive_avg_pool2d(functional.relu(self.bn(out)), 1)
        return self.linear(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class CifarDenseNetFamily(ArchitectureFamily):
    """Recognises `CifarDenseNet` at any growth rate and stage lengths."""

    id: ClassVar[str] = "cifar_densenet"
    summary: ClassVar[str] = (
        "DenseNet-121/161/169/201 with the CIFAR stem, any growth rate and length"
    )
    reference: ClassVar[str] = "Huang et al. 2017, arXiv 1608.06993"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the one DenseNet that the stem, the stages and the head speak for."""
        stem = shape_of(weights, "conv1.weight", 4)
        inner = shape_of(weights, "dense1.0.conv2.weight", 4)
        blocks = tuple(block_count(weights, f"dense{stage}") for stage in STAGES)
        if stem is None or inner is None or not all(blocks):
            return
        shapes = [shape_of(weights, f"trans{stage}.conv.weight", 4) for stage in STAGES[:-1]]
        transitions = tuple(shape[0] for shape in shapes if shape is not None)
        head = linear_head(weights)
        yield _candidate(
            blocks=blocks,
            growth_rate=inner[0],
            num_classes=10 if head is None else head.num_classes,
            in_channels=stem[1],
            stem_width=stem[0],
            transitions=transitions if len(transitions) == len(shapes) else None,
            bottleneck=inner[1],
            rename=str if head is None else renamed({head.name: "linear"}),
        )

    def names(self) -> Iterator[str]:
        """Yield ``cifar_densenet121`` and so on, and ``cifar_densenet`` for any other lengths."""
        yield from (f"{self.id}{depth}" for depth in DEPTHS.values())
        yield self.id

    def examples(self) -> Iterator[Candidate]:
        """Yield DenseNet-121 as published."""
        yield _candidate(
            blocks=(6, 12, 24, 16), growth_rate=32, num_classes=10, in_channels=3, stem_width=64
        )


def _candidate(
    *,
    blocks: tuple[int, ...],
    growth_rate: int,
    num_classes: int,
    in_channels: int,
    stem_width: int,
    transitions: tuple[int, ...] | None = None,
    bottleneck: int | None = None,
    rename: Callable[[str], str] = str,
) -> Candidate:
    def build() -> nn.Module:
        return CifarDenseNet(
            blocks=blocks,
            growth_rate=growth_rate,
            num_classes=num_classes,
            in_channels=in_channels,
            stem_width=stem_width,
            transitions=transitions,
            bottleneck=bottleneck,
        )

    return Candidate(
        name=f"{CifarDenseNetFamily.id}{DEPTHS.get(blocks, '')}",
        family=CifarDenseNetFamily.id,
        arguments={
            "blocks": blocks,
            "growth_rate": growth_rate,
            "num_classes": num_classes,
            "in_channels": in_channels,
        },
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=small_inputs(in_channels),
        rename=rename,
    )
