"""The encoder-decoder that makes input-aware patterns and masks.

Nguyen & Tran, *Input-Aware Dynamic Backdoor Attack* (arXiv 2010.08138), appendix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Generator, Tensor

BATCHNORM_MOMENTUM = 0.05


def _block(in_channels: int, out_channels: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(in_channels, out_channels, 3, padding=1)
    yield nn.BatchNorm2d(out_channels, momentum=BATCHNORM_MOMENTUM)
    yield nn.ReLU()


class GeneratorNet(nn.Module):
    """Maps an image to a map of the same size, in [0, 1].

    For each width two 3x3 convolutions and a pooling by 2; one convolution in the middle; then for
    each width, backwards, a bilinear upsampling by 2 and two convolutions, the very last without
    ReLU; tanh, scaled to [0, 1].

    Args:
        in_channels: channels of the images.
        out_channels: channels of the map.
        widths: channels of the levels; the paper's are 32, 64 and 128.
        generator: source of the initial weights, on the CPU; PyTorch's default distribution.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, widths: tuple[int, ...], generator: Generator
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        with torch.device("meta"):
            channels = in_channels
            for width in widths:
                layers += [*_block(channels, width), *_block(width, width), nn.MaxPool2d(2)]
                channels = width
            layers += _block(channels, channels)
            for following in (*reversed(widths[:-1]), out_channels):
                layers.append(nn.Upsample(scale_factor=2.0, mode="bilinear"))
                layers += [*_block(channels, channels), *_block(channels, following)]
                channels = following
            layers.pop()  # the last ReLU
        self.layers = nn.Sequential(*layers).to_empty(device="cpu")
        for module in self.layers.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                assert module.bias is not None
                bound = 1.0 / math.sqrt(9 * module.in_channels)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` in [0, 1] to ``(N, out_channels, H, W)`` in [0, 1].

        Differs from the paper, which feeds the classifier's normalised images: here mean and
        standard deviation are 1/2 and 1/4 for every data set, so that the trigger is a function of
        the image alone.
        """
        out: Tensor = self.layers((images - 0.5) / 0.25)
        return out.tanh() / 2.0 + 0.5


def require_divisible(size: tuple[int, int], widths: tuple[int, ...]) -> None:
    """Raise unless images of `size` can be halved once per width.

    Raises:
        ConfigError: they cannot, or there are no widths.
    """
    factor = 2 ** len(widths)
    if not widths or min(widths) < 1:
        raise ConfigError(f"widths must be positive numbers, at least one, got {widths!r}")
    if size[0] % factor or size[1] % factor:
        raise ConfigError(
            f"images of {size!r} pixels cannot be halved {len(widths)} times, give fewer widths"
        )
