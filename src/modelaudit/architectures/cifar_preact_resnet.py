"""Pre-activation ResNet with the CIFAR stem, under the key names of the public backdoor toolkits.

He et al., *Identity Mappings in Deep Residual Networks* (arXiv 1603.05027). Differs from the paper
as the toolkits do: unless the file has a final ``bn``, nothing stands between the last addition
and the pooling.
Keys: ``conv1 layer{1..4}.{i}.{bn,conv}{j} layer{..}.shortcut.0 [bn] linear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn import functional

from modelaudit.architectures._keys import (
    has_prefix,
    linear_head,
    renamed,
    shape_of,
    small_inputs,
)
from modelaudit.architectures.base import ArchitectureFamily, Candidate
from modelaudit.architectures.cifar_resnet import DEPTHS, STAGES, is_doubling, read_stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelaudit.architectures.base import Argument
    from modelaudit.weights import Weights


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice; the projection reads the first activation."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(functional.relu(self.bn2(self.conv1(out))))
        return out + shortcut  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class PreActBottleneck(nn.Module):
    """BatchNorm, ReLU and convolution (1x1, 3x3, 1x1), fourfold expansion."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 4·channels, H/stride, W/stride)``."""
        out = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(functional.relu(self.bn2(self.conv1(out))))
        out = self.conv3(functional.relu(self.bn3(out)))
        return out + shortcut  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class CifarPreActResNet(nn.Module):
    """Pre-activation ResNet for small images.

    Args:
        depth: a key of `modelaudit.architectures.cifar_resnet.DEPTHS`.
        width: channels of the stem.
        num_classes: outputs K.
        in_channels: channels of the input.
        stage_widths: channels of the four stages (before the bottleneck's expansion), where they
            are not 1, 2, 4 and 8 times `width`.
        has_final_norm: whether a BatchNorm ``bn`` follows the last block.
        has_final_relu: whether a ReLU stands before the pooling; as `has_final_norm` if omitted.
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        stage_widths: tuple[int, ...] | None = None,
        has_final_norm: bool = False,
        has_final_relu: bool | None = None,
    ) -> None:
        super().__init__()
        blocks, is_bottleneck = DEPTHS[depth]
        block = PreActBottleneck if is_bottleneck else PreActBlock
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        widths = stage_widths or tuple(width * 2**stage for stage in range(len(blocks)))
        channels = width
        for stage, count in enumerate(blocks):
            layers: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(block(channels, widths[stage], stride))
                channels = widths[stage] * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels) if has_final_norm else None
        self.relu = (
            nn.ReLU() if (has_final_norm if has_final_relu is None else has_final_relu) else None
        )
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        out = self.conv1(x)
        for stage in STAGES:
            out = getattr(self, f"layer{stage}")(out)
        if self.bn is not None:
            out = self.bn(out)
        if self.relu is not None:
            out = self.relu(out)
        out = functional.adaptive_avg_pool2d(out, 1)
        return self.linear(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class CifarPreActResNetFamily(ArchitectureFamily):
    """Recognises `CifarPreActResNet` at any width, with and without a final BatchNorm."""

    id: ClassVar[str] = "cifar_preact_resnet"
    summary: ClassVar[str] = (
        "pre-activation ResNet-18/34/50/101/152 with the CIFAR stem, at any width"
    )
    reference: ClassVar[str] = "He et al. 2016, arXiv 1603.05027"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the form of the toolkits, and by name only the one whose final ReLU differs."""
        stem = shape_of(weights, "conv1.weight", 4)
        stages = read_stages(weights)
        if stem is None or stages is None or has_prefix(weights, "bn1"):
            return
        depth, widths = stages
        head = linear_head(weights)
        has_final_norm = has_prefix(weights, "bn")
        for has_final_relu in (has_final_norm, not has_final_norm):
            yield _candidate(
                depth=depth,
                width=stem[0],
                num_classes=10 if head is None else head.num_classes,
                in_channels=stem[1],
                stage_widths=None if is_doubling(stem[0], widths) else widths,
                has_final_norm=has_final_norm,
                has_final_relu=has_final_relu,
                rename=str if head is None else renamed({head.name: "linear"}),
            )

    def names(self) -> Iterator[str]:
        """Yield ``cifar_preact_resnet18`` and so on, each with its three suffixes."""
        for depth in DEPTHS:
            for has_final_norm in (False, True):
                for has_final_relu in (False, True):
                    yield _name(depth, has_norm=has_final_norm, has_relu=has_final_relu)

    def examples(self) -> Iterator[Candidate]:
        """Yield each depth as published."""
        for depth in DEPTHS:
            yield _candidate(depth=depth, width=64, num_classes=10, in_channels=3)


def _name(depth: int, *, has_norm: bool, has_relu: bool) -> str:
    suffix = {
        (False, False): "",
        (False, True): "_final_relu",
        (True, True): "_final_bn",
        (True, False): "_final_bn_linear",
    }[has_norm, has_relu]
    return f"{CifarPreActResNetFamily.id}{depth}{suffix}"


def _candidate(
    *,
    depth: int,
    width: int,
    num_classes: int,
    in_channels: int,
    stage_widths: tuple[int, ...] | None = None,
    has_final_norm: bool = False,
    has_final_relu: bool = False,
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

    def build() -> nn.Module:
        return CifarPreActResNet(
            depth=depth,
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            stage_widths=stage_widths,
            has_final_norm=has_final_norm,
            has_final_relu=has_final_relu,
        )

    is_usual = has_final_norm == has_final_relu
    said = "assumed" if has_final_relu else "assumed absent"
    return Candidate(
        name=_name(depth, has_norm=has_final_norm, has_relu=has_final_relu),
        family=CifarPreActResNetFamily.id,
        arguments=arguments,
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=small_inputs(in_channels),
        rename=rename,
        is_only_by_name=not is_usual,
        notes=(f"ReLU before the pooling: {said}{'' if is_usual else ', unlike the toolkits'}",),
    )
