"""Wide ResNet for small images, under the key names of the common PyTorch release.

Zagoruyko & Komodakis, *Wide Residual Networks* (arXiv 1605.07146). Keys: ``conv1
block{1..3}.layer.{i}.{bn,conv}{1,2} block{..}.layer.0.convShortcut bn1 fc``. Where a block changes
the channels, its shortcut reads the activated input; elsewhere the raw one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

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

STAGES = (1, 2, 3)
STEM_WIDTH = 16
#: layers of a stage beyond its blocks' two convolutions: depth = 6 · blocks + 4
_LAYERS_PER_BLOCK = 6
_OTHER_LAYERS = 4


class WideBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        # the key's name in the files
        self.convShortcut = (
            None
            if in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(functional.relu(self.bn2(self.conv1(out))))
        return out + shortcut  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class WideStage(nn.Module):
    """Blocks of one resolution, under the name ``layer``."""

    def __init__(self, in_channels: int, channels: int, count: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(channels if i else in_channels, channels, 1 if i else stride)
                for i in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H/stride, W/stride)``."""
        return self.layer(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class WideResNet(nn.Module):
    """Wide ResNet of depth 6·n + 4.

    Args:
        depth: counted layers; 6·n + 4 for n blocks per stage.
        widths: channels of the three stages; 16·k, 32·k and 64·k for a widening factor k.
        num_classes: outputs K.
        in_channels: channels of the input.
        stem_width: channels of the stem.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        widths: tuple[int, ...] = (160, 320, 640),
        num_classes: int = 10,
        in_channels: int = 3,
        stem_width: int = STEM_WIDTH,
    ) -> None:
        super().__init__()
        count = (depth - _OTHER_LAYERS) // _LAYERS_PER_BLOCK
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, padding=1, bias=False)
        channels = stem_width
        for stage, width in zip(STAGES, widths, strict=True):
            stride = 1 if stage == 1 else 2
            setattr(self, f"block{stage}", WideStage(channels, width, count, stride))
            channels = width
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        out = self.conv1(x)
        for stage in STAGES:
            out = getattr(self, f"block{stage}")(out)
        out = functional.adaptive_avg_pool2d(functional.relu(self.bn1(out)), 1)
        return self.fc(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class WideResNetFamily(ArchitectureFamily):
    """Recognises `WideResNet` at any depth and widths."""

    id: ClassVar[str] = "wide_resnet"
    summary: ClassVar[str] = "WRN-d-k for small images, at any depth and width"
    reference: ClassVar[str] = "Zagoruyko & Komodakis 2016, arXiv 1605.07146"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the one Wide ResNet that the stem, the stages and the head speak for."""
        stem = shape_of(weights, "conv1.weight", 4)
        firsts = [shape_of(weights, f"block{s}.layer.0.conv1.weight", 4) for s in STAGES]
        widths = tuple(shape[0] for shape in firsts if shape is not None)
        if stem is None or len(widths) != len(STAGES):
            return
        count = block_count(weights, "block1.layer")
        head = linear_head(weights, ("fc", "linear"))
        yield _candidate(
            depth=_LAYERS_PER_BLOCK * count + _OTHER_LAYERS,
            widths=widths,
            num_classes=10 if head is None else head.num_classes,
            in_channels=stem[1],
            stem_width=stem[0],
            rename=str if head is None else renamed({head.name: "fc"}),
        )

    def names(self) -> Iterator[str]:
        """Yield the one name; depth and widths are arguments."""
        yield self.id

    def examples(self) -> Iterator[Candidate]:
        """Yield WRN-16-1 and WRN-28-10."""
        for depth, k in ((16, 1), (28, 10)):
            widths = (16 * k, 32 * k, 64 * k)
            yield _candidate(depth=depth, widths=widths, num_classes=10, in_channels=3)


def _candidate(
    *,
    depth: int,
    widths: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    stem_width: int = STEM_WIDTH,
    rename: Callable[[str], str] = str,
) -> Candidate:
    def build() -> nn.Module:
        return WideResNet(
            depth=depth,
            widths=widths,
            num_classes=num_classes,
            in_channels=in_channels,
            stem_width=stem_width,
        )

    return Candidate(
        name=WideResNetFamily.id,
        family=WideResNetFamily.id,
        arguments={
            "layers": depth,
            "widths": widths,
            "num_classes": num_classes,
            "in_channels": in_channels,
        },
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=small_inputs(in_channels),
        rename=rename,
    )
