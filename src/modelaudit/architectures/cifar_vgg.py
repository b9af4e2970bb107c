"""VGG for small images: 3x3 convolutions, five poolings and one linear layer.

Simonyan & Zisserman, *Very Deep Convolutional Networks* (arXiv 1409.1556), in the CIFAR form of
the public backdoor toolkits. Keys: ``features.{i}`` and ``classifier`` (in some files ``linear``
or ``fc``), which is one linear layer or a sequence of several with dropout between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.nn import functional

from modelaudit.architectures._heads import Head, read_head
from modelaudit.architectures._keys import MAX_INDEX, has_prefix, renamed, shape_of
from modelaudit.architectures.base import ArchitectureFamily, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelaudit.architectures.base import Argument
    from modelaudit.weights import Weights

#: depth to convolutions per stage; stage widths are 1, 2, 4, 8 and 8 times the first.
DEPTHS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
COMMONEST = 16
MULTIPLIERS = (1, 2, 4, 8, 8)
#: every stage halves the resolution
STRIDE = 2 ** len(MULTIPLIERS)
#: torchvision's VGG: width of the first stage, and side of the pooled features
TORCHVISION_WIDTH = 64
TORCHVISION_POOL = 7


class CifarVgg(nn.Module):
    """VGG for small images; 32x32 where the head takes one value per channel.

    Args:
        depth: a key of `DEPTHS`.
        width: channels of the first stage.
        num_classes: outputs K.
        in_channels: channels of the input.
        has_batchnorm: whether every convolution is followed by BatchNorm.
        head: the classifier, where it is not one linear layer on one value per channel.
    """

    def __init__(
        self,
        *,
        depth: int = 16,
        width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        has_batchnorm: bool = True,
        head: Head | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for count, multiplier in zip(DEPTHS[depth], MULTIPLIERS, strict=True):
            for _ in range(count):
                out_channels = width * multiplier
                layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
                if has_batchnorm:
                    layers.append(nn.BatchNorm2d(out_channels))
                layers.append(nn.ReLU())
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.AvgPool2d(kernel_size=1, stride=1))
        self.features = nn.Sequential(*layers)
        self.pool_size = 1 if head is None else head.pool_size(channels)
        self.classifier = nn.Linear(channels, num_classes) if head is None else head.build()

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)``, H and W at least 32, to logits ``(N, K)``."""
        out = functional.adaptive_avg_pool2d(self.features(x), self.pool_size)
        return self.classifier(out.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


@dataclass(frozen=True, slots=True)
class _Convolutions:
    """What the keys under ``features`` say: input channels, first width, count and BatchNorm."""

    in_channels: int
    width: int
    count: int
    has_batchnorm: bool

    @property
    def depth(self) -> int:
        """The depth with this many convolutions, or the nearest."""
        return min(DEPTHS, key=lambda depth: abs(sum(DEPTHS[depth]) - self.count))


def _convolutions(weights: Weights) -> _Convolutions | None:
    shapes = [shape_of(weights, f"features.{i}.weight", 4) for i in range(MAX_INDEX)]
    found = [shape for shape in shapes if shape is not None]
    if not found or shapes[0] is None or any(shape[2:] != (3, 3) for shape in found):
        return None
    return _Convolutions(
        in_channels=found[0][1],
        width=found[0][0],
        count=len(found),
        has_batchnorm=has_prefix(weights, "features.1"),
    )


class CifarVggFamily(ArchitectureFamily):
    """Recognises `CifarVgg` at any width, with and without BatchNorm."""

    id: ClassVar[str] = "cifar_vgg"
    summary: ClassVar[str] = (
        "VGG-11/13/16/19 for small images, with and without BatchNorm, any width"
    )
    reference: ClassVar[str] = "Simonyan & Zisserman 2015, arXiv 1409.1556"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the one VGG that the convolutions and the head speak for."""
        found = _convolutions(weights)
        if found is None:
            return
        head = read_head(weights, ("classifier", "linear", "fc"))
        channels = found.width * MULTIPLIERS[-1]
        is_torchvision = (
            head is not None
            and found.width == TORCHVISION_WIDTH
            and head.name == "classifier"
            and head.in_features == channels * TORCHVISION_POOL**2
        )
        if not is_torchvision:
            yield _candidate(
                depth=found.depth,
                width=found.width,
                in_channels=found.in_channels,
                has_batchnorm=found.has_batchnorm,
                head=head,
            )

    def names(self) -> Iterator[str]:
        """Yield ``cifar_vgg11``, ``cifar_vgg11_bn`` and so on."""
        for depth in DEPTHS:
            yield from (
                _name(depth, has_batchnorm=has_batchnorm) for has_batchnorm in (False, True)
            )

    def examples(self) -> Iterator[Candidate]:
        """Yield each depth as published."""
        for depth in sorted(DEPTHS, key=lambda depth: depth != COMMONEST):
            for has_batchnorm in (True, False):
                yield _candidate(
                    depth=depth, width=64, in_channels=3, has_batchnorm=has_batchnorm, head=None
                )


def _name(depth: int, *, has_batchnorm: bool) -> str:
    return f"{CifarVggFamily.id}{depth}{'_bn' if has_batchnorm else ''}"


def _candidate(
    *, depth: int, width: int, in_channels: int, has_batchnorm: bool, head: Head | None
) -> Candidate:
    channels = width * MULTIPLIERS[-1]
    num_classes = 10 if head is None else head.num_classes
    pool_size = 1 if head is None else head.pool_size(channels)
    arguments: dict[str, Argument] = {
        "depth": depth,
        "width": width,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "has_batchnorm": has_batchnorm,
    }
    if head is not None and not head.is_single:
        arguments["hidden"] = head.hidden
    if pool_size != 1:
        arguments["pool_size"] = pool_size

    def build() -> nn.Module:
        return CifarVgg(
            depth=depth,
            width=width,
            num_classes=num_classes,
            in_channels=in_channels,
            has_batchnorm=has_batchnorm,
            head=head,
        )

    rename: Callable[[str], str] = str if head is None else renamed({head.name: "classifier"})
    native = STRIDE * pool_size
    sizes = tuple(dict.fromkeys((native, 32, 64)))
    return Candidate(
        name=_name(depth, has_batchnorm=has_batchnorm),
        family=CifarVggFamily.id,
        arguments=arguments,
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=sizes,
        rename=rename,
    )
