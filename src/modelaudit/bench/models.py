"""The architectures that a plan can name, from our own architecture rooms, at any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.architectures.cifar_densenet import CifarDenseNet
from modelaudit.architectures.cifar_mobilenet_v2 import (
    LAST_WIDTH,
    PUBLISHED,
    STEM_WIDTH,
    CifarMobileNetV2,
)
from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNet
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def make_module(architecture: str, *, width: int, num_classes: int, in_channels: int) -> nn.Module:
    """Return a module of a plan's architecture, its weights as the library leaves them.

    Args:
        architecture: one of `modelaudit.bench.plan.ARCHITECTURES`.
        width: channels of the first stage; published are 64 (DenseNet-121: twice the growth rate),
            and 32 for MobileNetV2, all of whose widths follow.
        num_classes: outputs K.
        in_channels: channels of the images.

    Raises:
        ConfigError: no such architecture, or a width that it cannot have.
    """
    match architecture:
        case "cifar_resnet18":
            return CifarResNet(
                depth=18, width=width, num_classes=num_classes, in_channels=in_channels
            )
        case "cifar_vgg16":
            return CifarVgg(depth=16, width=width, num_classes=num_classes, in_channels=in_channels)
        case "cifar_preact_resnet18":
            return CifarPreActResNet(
                depth=18,
                width=width,
                num_classes=num_classes,
                in_channels=in_channels,
                has_final_norm=True,
            )
        case "cifar_densenet121":
            if width % 2:
                raise ConfigError(
                    f"width of {architecture!r} must be even, twice the growth rate, got {width!r}"
                )
            return CifarDenseNet(
                growth_rate=width // 2, num_classes=num_classes, in_channels=in_channels
            )
        case "cifar_mobilenet_v2":
            return CifarMobileNetV2(
                plan=tuple(
                    (expansion, _scaled(channels, width), stride)
                    for expansion, channels, stride in PUBLISHED
                ),
                stem_width=width,
                last_width=_scaled(LAST_WIDTH, width),
                num_classes=num_classes,
                in_channels=in_channels,
            )
        case _:
            raise ConfigError(f"no architecture {architecture!r} can be trained")


def _scaled(channels: int, width: int) -> int:
    return max(1, channels * width // STEM_WIDTH)
