"""Pictures made from a seed, in place of the logos and photographs that papers use as triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.attacks.triggers import round_to_8_bits

if TYPE_CHECKING:
    from torch import Generator, Tensor


def natural_picture(
    shape: tuple[int, int, int],
    *,
    generator: Generator,
    exponent: float = 1.25,
    shared: float = 0.95,
) -> Tensor:
    """Draw a colour field whose amplitude falls with frequency as that of photographs does.

    White noise is weighted by ``1 / f ** exponent``; each channel, brought to mean 0 and deviation
    1, then passes through the normal distribution function, so that it uses the whole range.

    Args:
        shape: channels, height and width.
        generator: source of the draw.
        exponent: photographs have about 1, more is smoother.
        shared: share of the variance that the channels have in common, in [0, 1]; less is more
            colourful.

    Returns:
        Shape ``shape``, float32, in [0, 1] in steps of 1/255.
    """
    channels, height, width = shape
    noise = torch.randn(channels + 1, height, width, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :])
    weight = frequency.clamp_min(1.0 / max(height, width)).pow(-exponent)
    fields = _standardised(torch.fft.ifft2(torch.fft.fft2(noise) * weight).real)
    mixed = shared**0.5 * fields[:1] + (1.0 - shared) ** 0.5 * fields[1:]
    return round_to_8_bits(torch.special.ndtr(_standardised(mixed)))


def colour_patch(shape: tuple[int, int, int], *, generator: Generator) -> Tensor:
    """Draw a patch of independent random colours, the sigmoid of normal noise as in DDE/MBNS.

    Args:
        shape: channels, height and width.
        generator: source of the draw.

    Returns:
        Shape ``shape``, float32, in [0, 1] in steps of 1/255.
    """
    return round_to_8_bits(torch.randn(shape, generator=generator).sigmoid())


def _standardised(fields: Tensor) -> Tensor:
    """Return each channel with mean 0 and deviation 1; a constant one becomes 0."""
    centred = fields - fields.mean((1, 2), keepdim=True)
    deviation = centred.square().mean((1, 2), keepdim=True).sqrt()
    return centred / deviation.clamp_min(1e-12)
