"""Networks that hide bits in an image and read them again.

Tancik, Mildenhall & Ng, *StegaStamp* (arXiv 1904.05343), as Li et al. use it for sample-specific
triggers (arXiv 2012.03816), made small: no spatial transformer, no perceptual loss, no critic.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator

logger = logging.getLogger(__name__)

#: share of the steps in which the residual's weight rises from 0, and the bound falls to its value
RAMP = 0.5
#: how much larger the bound is at the first step: a decoder that reads nothing teaches nothing
FIRST_BOUND = 4.0
#: the networks halve an image this often
HALVINGS = 2


class Encoder(nn.Module):
    """Makes the residual that hides bits in an image: a U-Net with two halvings.

    Args:
        shape: channels, height and width of the images; height and width divisible by 4.
        bits: how many bits.
        widths: channels of the three levels.
        bound: largest absolute residual.

    Raises:
        ConfigError: the size is not divisible by 4.
    """

    def __init__(
        self, *, shape: tuple[int, int, int], bits: int, widths: tuple[int, int, int], bound: float
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if height % 2**HALVINGS or width % 2**HALVINGS:
            raise ConfigError(
                f"images must have sides divisible by {2**HALVINGS}, got {(height, width)!r}"
            )
        first, second, third = widths
        self.shape = shape
        self.bound = bound
        self.spread = nn.Linear(bits, channels * height * width)
        self.down1 = nn.Conv2d(2 * channels, first, 3, padding=1)
        self.down2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.down3 = nn.Conv2d(second, third, 3, stride=2, padding=1)
        self.up2 = nn.Conv2d(third, second, 3, padding=1)
        self.join2 = nn.Conv2d(2 * second, second, 3, padding=1)
        self.up1 = nn.Conv2d(second, first, 3, padding=1)
        self.join1 = nn.Conv2d(2 * first + 2 * channels, first, 3, padding=1)
        self.last = nn.Conv2d(first, channels, 1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """Return residuals, the shape of `images`, within the bound.

        Args:
            images: ``(N, C, H, W)``, float32, in [0, 1].
            bits: ``(N, B)``, float32, 0 or 1.
        """
        secret = self.spread(bits - 0.5).relu().view(-1, *self.shape)
        joined = torch.cat([images - 0.5, secret], dim=1)
        one = self.down1(joined).relu()
        two = self.down2(one).relu()
        three = self.down3(two).relu()
        out = self.up2(interpolate(three, scale_factor=2.0)).relu()
        out = self.join2(torch.cat([out, two], dim=1)).relu()
        out = self.up1(interpolate(out, scale_factor=2.0)).relu()
        out = self.join1(torch.cat([out, one, joined], dim=1)).relu()
        return self.bound * torch.tanh(self.last(out))


class Decoder(nn.Module):
    """Reads the bits: convolutions that halve the image, and one linear layer.

    Args:
        shape: channels, height and width of the images.
        bits: how many bits.
        widths: channels of the three levels.
    """

    def __init__(
        self, *, shape: tuple[int, int, int], bits: int, widths: tuple[int, int, int]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for i, width in enumerate((*widths, widths[-1])):
            layers += [nn.Conv2d(channels, width, 3, stride=1 if i == 0 else 2, padding=1)]
            layers += [nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers)
        height, width = (math.ceil(math.ceil(math.ceil(s / 2) / 2) / 2) for s in shape[1:])
        self.last = nn.Linear(channels * height * width, bits)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` in [0, 1] to logits of the bits, ``(N, B)``."""
        logits: Tensor = self.last(self.layers(images - 0.5).flatten(1))
        return logits


def draw_weights(module: nn.Module, *, generator: Generator) -> None:
    """Give convolutions and linear layers He et al.'s uniform weights for ReLU, and no bias.

    Args:
        module: on the CPU.
        generator: on the CPU.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class HidingQuality:
    """How well bits are hidden, over images.

    Attributes:
        bit_accuracy: fraction of random bits that are read correctly.
        mean_residual: mean absolute change of a pixel, in [0, 1].
    """

    bit_accuracy: float
    mean_residual: float


def train_hiding(
    encoder: Encoder,
    decoder: Decoder,
    images: Tensor,
    *,
    epochs: int,
    rate: float,
    residual_weight: float,
    batch_size: int,
    generator: Generator,
) -> None:
    """Train both networks on random bits: the bits' cross-entropy + the weighted squared residual.

    The residual's weight rises and its bound falls to its value over the first half of the steps.

    Args:
        encoder: changed in place.
        decoder: changed in place.
        images: ``(N, C, H, W)`` uint8, on the networks' device.
        epochs: passes over the images.
        rate: Adam's learning rate.
        residual_weight: weight of the mean squared residual, once it is full.
        batch_size: images per step.
        generator: source of order and bits, on the CPU.
    """
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=rate)
    size = min(batch_size, len(images))
    steps = len(images) // size
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for step in range(steps):
            progress = min(1.0, (epoch * steps + step) / (RAMP * epochs * steps))
            batch = images[order[step * size : (step + 1) * size]].float() / 255.0
            bits = _random_bits(len(batch), decoder.last.out_features, generator).to(batch)
            scale = FIRST_BOUND + (1.0 - FIRST_BOUND) * progress
            residuals = scale * encoder(batch, bits)
            read = binary_cross_entropy_with_logits(
                decoder((batch + residuals).clamp(0.0, 1.0)), bits
            )
            loss = read + residual_weight * progress * residuals.square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        logger.info(
            "hiding bits: epoch %d of %d, cross-entropy %.4f, residual %.4f",
            *(epoch + 1, epochs, float(read.detach()), float(residuals.detach().abs().mean())),
        )


def measure_hiding(
    encoder: Encoder,
    decoder: Decoder,
    images: Tensor,
    *,
    generator: Generator,
    batch_size: int = 500,
) -> HidingQuality:
    """Measure both networks on images rounded to 8 bits, as files hold them.

    Args:
        encoder: as trained.
        decoder: as trained.
        images: ``(N, C, H, W)`` uint8, not those of the training.
        generator: source of the bits, on the CPU.
        batch_size: images per pass.
    """
    right = changed = 0.0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].float() / 255.0
            bits = _random_bits(len(batch), decoder.last.out_features, generator).to(batch)
            hidden = (batch + encoder(batch, bits)).clamp(0.0, 1.0)
            hidden = (hidden * 255.0).round() / 255.0
            right += float(((decoder(hidden) > 0.0) == (bits > 0.5)).double().mean(1).sum())
            changed += float((hidden - batch).abs().double().mean((1, 2, 3)).sum())
    return HidingQuality(bit_accuracy=right / len(images), mean_residual=changed / len(images))


def _random_bits(n: int, bits: int, generator: Generator) -> Tensor:
    return torch.randint(2, (n, bits), generator=generator).float()
