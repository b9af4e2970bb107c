"""Builders around torchvision's constructors; the library is imported inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from modelaudit.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from modelaudit.architectures._heads import Head

_WIDTH_MULTIPLIERS = (1.0, 0.1, 0.25, 0.35, 0.5, 0.75, 1.3, 1.4, 2.0)
_CHANNEL_STEP = 8
_STEM, _BLOCK, _LAST = 32, 320, 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetSpec:
    """Arguments of `torchvision.models.resnet.ResNet`."""

    blocks: tuple[int, ...]
    is_bottleneck: bool
    groups: int
    width_per_group: int
    in_channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseNetSpec:
    """Arguments of `torchvision.models.densenet.DenseNet`; `bottleneck` is in growth rates."""

    blocks: tuple[int, ...]
    growth_rate: int
    stem_width: int
    bottleneck: int
    in_channels: int


def models() -> ModuleType:
    """Import and return `torchvision.models`.

    Raises:
        PluginError: torchvision is missing, or does not fit the installed torch.
    """
    try:
        import torchvision.models
    # beside a torch that it was not built for, torchvision fails with a RuntimeError
    except (ImportError, RuntimeError) as err:
        raise PluginError(
            "the checkpoint's keys are torchvision's, and torchvision cannot be imported "
            f"({type(err).__name__}: {err}); install the torchvision release made for this torch"
        ) from err
    found: ModuleType = torchvision.models
    return found


def _convolution_like(module: nn.Conv2d, in_channels: int, stem: str) -> nn.Conv2d:
    """Return the stem's convolution for other input channels, or 3x3 with stride 1."""
    if stem == "library":
        kernel, stride = module.kernel_size[0], module.stride[0]
    else:
        kernel, stride = 3, 1
    has_bias = module.bias is not None
    return nn.Conv2d(
        in_channels, module.out_channels, kernel, stride, padding=kernel // 2, bias=has_bias
    )


def resnet(spec: ResNetSpec, head: Head, stem: str) -> Callable[[], nn.Module]:
    """Return a builder of `torchvision.models.resnet.ResNet`.

    Args:
        spec: its arguments.
        head: the classifier under ``fc``.
        stem: ``"library"``, ``"small"`` (3x3 stride 1, no pooling) or ``"small_pool"``.
    """

    def build() -> nn.Module:
        library = models().resnet
        block = library.Bottleneck if spec.is_bottleneck else library.BasicBlock
        model: Any = library.ResNet(
            block,
            list(spec.blocks),
            groups=spec.groups,
            width_per_group=spec.width_per_group,
        )
        model.conv1 = _convolution_like(model.conv1, spec.in_channels, stem)
        if stem == "small":
            model.maxpool = nn.Identity()
        model.fc = head.build()
        return model  # type: ignore[no-any-return]  # torchvision is untyped

    return build


def vgg(name: str, head: Head, in_channels: int) -> Callable[[], nn.Module]:
    """Return a builder of torchvision's VGG called `name`."""

    def build() -> nn.Module:
        model: Any = getattr(models(), name)(weights=None, init_weights=False, num_classes=1)
        model.features[0] = _convolution_like(model.features[0], in_channels, "library")
        model.classifier = head.build()
        return model  # type: ignore[no-any-return]  # torchvision is untyped

    return build


def densenet(spec: DenseNetSpec, head: Head, stem: str) -> Callable[[], nn.Module]:
    """Return a builder of `torchvision.models.densenet.DenseNet`; `stem` as in `resnet`."""

    def build() -> nn.Module:
        model: Any = models().densenet.DenseNet(
            growth_rate=spec.growth_rate,
            block_config=spec.blocks,
            num_init_features=spec.stem_width,
            bn_size=spec.bottleneck,
        )
        features = model.features
        features.conv0 = _convolution_like(features.conv0, spec.in_channels, stem)
        if stem == "small":
            features.pool0 = nn.Identity()
        model.classifier = head.build()
        return model  # type: ignore[no-any-return]  # torchvision is untyped

    return build


def mobilenet_v2(
    multiplier: float, head: Head, in_channels: int, stem: str
) -> Callable[[], nn.Module]:
    """Return a builder of torchvision's MobileNetV2; a small stem has stride 1."""

    def build() -> nn.Module:
        model: Any = models().mobilenet_v2(weights=None, width_mult=multiplier)
        model.features[0][0] = _convolution_like(model.features[0][0], in_channels, stem)
        model.classifier = head.build()
        return model  # type: ignore[no-any-return]  # torchvision is untyped

    return build


def width_multiplier(stem: int, block: int, last: int) -> float:
    """Return the published multiplier whose rounded channels come nearest to these.

    Args:
        stem: channels of the stem.
        block: channels after the last block.
        last: channels before the head.
    """

    def rounded(channels: float) -> int:
        # the library's rounding: to a multiple of eight, never down by more than a tenth
        near = max(
            _CHANNEL_STEP, int(channels + _CHANNEL_STEP / 2) // _CHANNEL_STEP * _CHANNEL_STEP
        )
        return near + _CHANNEL_STEP if near < 0.9 * channels else near

    def distance(multiplier: float) -> int:
        wanted = (_STEM * multiplier, _BLOCK * multiplier, _LAST * max(1.0, multiplier))
        return sum(abs(rounded(w) - f) for w, f in zip(wanted, (stem, block, last), strict=True))

    return min(_WIDTH_MULTIPLIERS, key=distance)
