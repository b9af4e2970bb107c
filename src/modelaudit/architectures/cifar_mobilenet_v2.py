"""MobileNetV2 for small images, under the key names that the public backdoor toolkits use.

Sandler et al., *MobileNetV2* (arXiv 1801.04381). Differs from the paper as the toolkits do: ReLU
instead of ReLU6, stride 1 in the stem and the second stage, and a projected shortcut wherever a
stride-1 block changes the channels. Keys: ``conv1 bn1 layers.{i}.{conv,bn}{1,2,3}
layers.{i}.shortcut.{0,1} conv2 bn2 linear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn import functional

from modelaudit.architectures._keys import (
    block_count,
    has_prefix,
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

#: expansion, output channels and stride of each block
Plan = tuple[tuple[int, int, int], ...]

#: expansion, output channels, blocks and first stride of each stage; stride 2 -> 1 in the second
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
PUBLISHED: Plan = tuple(
    (expansion, width, 1 if i else stride)
    for expansion, width, count, stride in _STAGES
    for i in range(count)
)
STEM_WIDTH, LAST_WIDTH = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and 1x1 projection; a shortcut at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.has_shortcut = stride == 1
        self.shortcut = nn.Sequential()
        if self.has_shortcut and in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.has_shortcut:
            out = out + self.shortcut(x)
        return out  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 for small images.

    Args:
        plan: expansion, output channels and stride of each block.
        stem_width: channels of the stem.
        last_width: channels before the head.
        num_classes: outputs K.
        in_channels: channels of the input.
    """

    def __init__(
        self,
        *,
        plan: Plan = PUBLISHED,
        stem_width: int = STEM_WIDTH,
        last_width: int = LAST_WIDTH,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        layers: list[nn.Module] = []
        channels = stem_width
        for expansion, width, stride in plan:
            layers.append(InvertedResidual(channels, width, expansion, stride))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.conv2 = nn.Conv2d(channels, last_width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last_width)
        self.linear = nn.Linear(last_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        out = self.layers(functional.relu(self.bn1(self.conv1(x))))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = functional.adaptive_avg_pool2d(out, 1)
        return self.linear(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


def _read_plan(weights: Weights, stem_width: int) -> Plan | None:
    """Return the blocks' arguments; other channels without a shortcut key mean stride 2."""
    plan: list[tuple[int, int, int]] = []
    channels = stem_width
    count = block_count(weights, "layers")
    for i in range(count):
        wide = shape_of(weights, f"layers.{i}.conv1.weight", 4)
        narrow = shape_of(weights, f"layers.{i}.conv3.weight", 4)
        if wide is None or narrow is None:
            return None
        if narrow[0] != channels:
            stride = 1 if has_prefix(weights, f"layers.{i}.shortcut") else 2
        else:
            stride = PUBLISHED[i][2] if count == len(PUBLISHED) else 1
        plan.append((max(wide[0] // channels, 1), narrow[0], stride))
        channels = narrow[0]
    return tuple(plan) or None


class CifarMobileNetV2Family(ArchitectureFamily):
    """Recognises `CifarMobileNetV2` at any widths."""

    id: ClassVar[str] = "cifar_mobilenet_v2"
    summary: ClassVar[str] = "MobileNetV2 with the CIFAR strides, at any width"
    reference: ClassVar[str] = "Sandler et al. 2018, arXiv 1801.04381"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the one MobileNetV2 that the stem, the blocks and the head speak for."""
        stem = shape_of(weights, "conv1.weight", 4)
        last = shape_of(weights, "conv2.weight", 4)
        if stem is None or last is None or (plan := _read_plan(weights, stem[0])) is None:
            return
        head = linear_head(weights)
        yield _candidate(
            plan=plan,
            stem_width=stem[0],
            last_width=last[0],
            num_classes=10 if head is None else head.num_classes,
            in_channels=stem[1],
            rename=str if head is None else renamed({head.name: "linear"}),
        )

    def names(self) -> Iterator[str]:
        """Yield the one name."""
        yield self.id

    def examples(self) -> Iterator[Candidate]:
        """Yield the network as the toolkits publish it."""
        yield _candidate(
            plan=PUBLISHED,
            stem_width=STEM_WIDTH,
            last_width=LAST_WIDTH,
            num_classes=10,
            in_channels=3,
        )


def _candidate(
    *,
    plan: Plan,
    stem_width: int,
    last_width: int,
    num_classes: int,
    in_channels: int,
    rename: Callable[[str], str] = str,
) -> Candidate:
    def build() -> nn.Module:
        return CifarMobileNetV2(
            plan=plan,
            stem_width=stem_width,
            last_width=last_width,
            num_classes=num_classes,
            in_channels=in_channels,
        )

    return Candidate(
        name=CifarMobileNetV2Family.id,
        family=CifarMobileNetV2Family.id,
        arguments={
            "stem_width": stem_width,
            "widths": tuple(width for _, width, _ in plan),
            "last_width": last_width,
            "num_classes": num_classes,
            "in_channels": in_channels,
        },
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=small_inputs(in_channels),
        rename=rename,
        notes=("strides read from channels and shortcuts",),
    )
