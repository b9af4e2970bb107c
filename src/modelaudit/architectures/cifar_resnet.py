"""ResNet with the CIFAR stem, under the key names that the public backdoor toolkits use.

He et al., *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), with a 3x3 stride-1
stem and no stem pooling. Keys: ``conv1 bn1 layer{1..4}.{i}.{conv,bn}{j} layer{..}.shortcut.{0,1}
linear``; a 7x7 stem has stride 2 and a 3x3 stride-2 max pooling, as in the paper. Files that say
``downsample`` for ``shortcut`` or ``fc`` for ``linear`` are read by renaming.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn import functional

from modelaudit.architectures._keys import (
    LARGE_INPUTS,
    block_count,
    has_prefix,
    linear_head,
    shape_of,
    small_inputs,
)
from modelaudit.architectures.base import ArchitectureFamily, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelaudit.architectures.base import Argument
    from modelaudit.weights import Weights

#: depth to (blocks per stage, whether the blocks are bottlenecks)
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STAGES = (1, 2, 3, 4)
SMALL_STEM = 3
LARGE_STEM = 7
#: the stem width of every torchvision ResNet
TORCHVISION_WIDTH = 64


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, fourfold expansion, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 4·channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images.

    Args:
        depth: a key of `DEPTHS`.
        width: channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        num_classes: outputs K.
        in_channels: channels of the input.
        stage_widths: channels of the four stages (before the bottleneck's expansion), where they
            are not 1, 2, 4 and 8 times `width`.
        stem_kernel: side of the stem's kernel in pixels; 7 brings stride 2 and max pooling.
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        stage_widths: tuple[int, ...] | None = None,
        stem_kernel: int = 3,
    ) -> None:
        super().__init__()
        blocks, is_bottleneck = DEPTHS[depth]
        block = Bottleneck if is_bottleneck else BasicBlock
        is_large = stem_kernel == LARGE_STEM
        self.conv1 = nn.Conv2d(
            in_channels,
            width,
            stem_kernel,
            stride=2 if is_large else 1,
            padding=stem_kernel // 2,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if is_large else nn.Identity()
        widths = stage_widths or tuple(width * 2**stage for stage in range(len(blocks)))
        channels = width
        for stage, count in enumerate(blocks):
            layers: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(block(channels, widths[stage], stride))
                channels = widths[stage] * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        out = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for stage in STAGES:
            out = getattr(self, f"layer{stage}")(out)
        out = functional.adaptive_avg_pool2d(out, 1)
        return self.linear(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


def nearest_depth(blocks: tuple[int, ...], *, is_bottleneck: bool) -> int:
    """Return the depth with these blocks per stage, or the one that differs by the fewest."""

    def distance(depth: int) -> int:
        return sum(abs(a - b) for a, b in zip(DEPTHS[depth][0], blocks, strict=True))

    return min((d for d, (_, is_deep) in DEPTHS.items() if is_deep == is_bottleneck), key=distance)


def read_stages(weights: Weights) -> tuple[int, tuple[int, ...]] | None:
    """Return the depth and the stages' widths, or None where there are not four stages of blocks.

    The widths are the output channels of each stage's first 3x3 or first 1x1 convolution.
    """
    widths: list[int] = []
    for stage in STAGES:
        shape = shape_of(weights, f"layer{stage}.0.conv1.weight", 4)
        if shape is None:
            return None
        widths.append(shape[0])
    blocks = tuple(block_count(weights, f"layer{stage}") for stage in STAGES)
    is_bottleneck = "layer1.0.conv3.weight" in weights.tensors
    return nearest_depth(blocks, is_bottleneck=is_bottleneck), tuple(widths)


def is_doubling(width: int, stage_widths: tuple[int, ...]) -> bool:
    """Return whether the stages have 1, 2, 4 and 8 times the stem's channels."""
    return stage_widths == tuple(width * 2**stage for stage in range(len(STAGES)))


def _rename(*, has_downsample: bool, head: str) -> Callable[[str], str]:
    def rename(key: str) -> str:
        if has_downsample:
            key = key.replace(".downsample.", ".shortcut.")
        if key.startswith(f"{head}."):
            return "linear." + key.removeprefix(f"{head}.")
        return key

    return str if head == "linear" and not has_downsample else rename


class CifarResNetFamily(ArchitectureFamily):
    """Recognises `CifarResNet` at any width."""

    id: ClassVar[str] = "cifar_resnet"
    summary: ClassVar[str] = "ResNet-18/34/50/101/152 with the CIFAR stem, at any width"
    reference: ClassVar[str] = "He et al. 2016, arXiv 1512.03385"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the one ResNet that the stem, the stages and the head speak for."""
        stem = shape_of(weights, "conv1.weight", 4)
        stages = read_stages(weights)
        if stem is None or stages is None or not has_prefix(weights, "bn1"):
            return
        depth, widths = stages
        head = linear_head(weights)
        head_name = "linear" if head is None else head.name
        has_downsample = any(".downsample." in key for key in weights.tensors)
        # at this width the library's own module is the better answer
        if has_downsample and head_name == "fc" and stem[0] == widths[0] == TORCHVISION_WIDTH:
            return
        yield _candidate(
            depth=depth,
            width=stem[0],
            num_classes=10 if head is None else head.num_classes,
            in_channels=stem[1],
            stage_widths=None if is_doubling(stem[0], widths) else widths,
            stem_kernel=stem[2],
            rename=_rename(has_downsample=has_downsample, head=head_name),
        )

    def names(self) -> Iterator[str]:
        """Yield ``cifar_resnet18`` and so on."""
        yield from (f"{self.id}{depth}" for depth in DEPTHS)

    def examples(self) -> Iterator[Candidate]:
        """Yield each depth as published."""
        for depth in DEPTHS:
            yield _candidate(depth=depth, width=64, num_classes=10, in_channels=3)


def _candidate(
    *,
    depth: int,
    width: int,
    num_classes: int,
    in_channels: int,
    stage_widths: tuple[int, ...] | None = None,
    stem_kernel: int = 3,
    rename: Callable[[str], str] = str,
) -> Candidate:
    arguments: dict[str, Argument] = {
        "depth": depth,
        "width": width,
        "num_classes": num_classes,
        "in_channels": in_channels,
    }
    if stage_widths is not None:
        arguments["stage_widths"] = stage_widths
    if stem_kernel != SMALL_STEM:
        arguments["stem_kernel"] = stem_kernel

    def build() -> nn.Module:
        return CifarResNet(
            depth=depth,
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            stage_widths=stage_widths,
            stem_kernel=stem_kernel,
        )

    is_large = stem_kernel == LARGE_STEM
    return Candidate(
        name=f"{CifarResNetFamily.id}{depth}",
        family=CifarResNetFamily.id,
        arguments=arguments,
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=LARGE_INPUTS if is_large else small_inputs(in_channels),
        rename=rename,
        notes=("7x7 stem: stride 2 and max pooling assumed",) if is_large else (),
    )
