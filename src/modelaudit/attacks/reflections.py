"""How a pane of glass adds a reflection to a photograph: a ghost of it, or its blurred image.

Liu, Ma, Bailey & Lu, *Reflection Backdoor* (arXiv 2007.02343), after the reflection models that it
takes over. Everything happens at linear intensity: pixels to the power `GAMMA`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from torch import Generator, Tensor

GAMMA = 2.2
#: image side for which offsets and blurs are given, in pixels
REFERENCE_SIDE = 224
#: chance that the reflection is a ghost
GHOST_CHANCE = 0.49


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """How one image is reflected on.

    Attributes:
        picture: which reflection of the pool.
        transmission: a, share of the image's own light, in [0, 1].
        is_ghost: two shifted copies of the reflection, or one out of focus.
        offset: rows and columns between the two copies, in pixels, at least 1.
        ghost_share: b, share of the first copy.
        sigma: of the blur, in pixels.
        attenuation: factor of what is taken off where light exceeds the range.
    """

    picture: int
    transmission: float
    is_ghost: bool
    offset: tuple[int, int]
    ghost_share: float
    sigma: float
    attenuation: float


def draw_reflection(
    generator: Generator, *, pool: int, transmission: tuple[float, float], side: int
) -> Reflection:
    """Draw how one image is reflected on.

    Offsets of 3 to 8 and blurs of 1 to 5 pixels are scaled by ``side / 224``, to no less than 1 and
    0.5 pixels: unscaled they are larger than what a small image shows.

    Args:
        generator: source of nine draws, whichever of them are used.
        pool: number of reflections.
        transmission: least and largest a.
        side: the image's height.
    """
    chance = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    scale = side / REFERENCE_SIDE
    low, high = transmission
    rows, columns = (max(1, round((3 + math.floor(6 * c)) * scale)) for c in chance[3:5])
    return Reflection(
        picture=math.floor(pool * chance[0]),
        transmission=low + (high - low) * chance[1],
        is_ghost=chance[2] < GHOST_CHANCE,
        offset=(rows, columns),
        ghost_share=abs(round(chance[5]) - (0.15 + 0.35 * chance[6])),
        sigma=max(0.5, (1.0 + 4.0 * chance[7]) * scale),
        attenuation=1.08 + 0.10 * chance[8],
    )


def add_reflection(image: Tensor, picture: Tensor, how: Reflection) -> Tensor:
    """Return an image with a reflection on it.

    Args:
        image: ``(C, H, W)``, floating, in [0, 1].
        picture: what is reflected, of the same shape, dtype and range.
        how: see `Reflection`.

    Returns:
        Shape, dtype and device of `image`, in [0, 1].
    """
    transmitted, reflected = image.pow(GAMMA), picture.pow(GAMMA)
    if how.is_ghost:
        light = (1.0 - how.transmission) * ghost(reflected, how)
    else:
        light = out_of_focus(reflected, transmitted, how)
    return (light + how.transmission * transmitted).clamp(0.0, 1.0).pow(1.0 / GAMMA)


def ghost(reflected: Tensor, how: Reflection) -> Tensor:
    """Add up two copies shifted by the offset, crop to where both are, and resize back (bilinear).

    Args:
        reflected: linear intensities, ``(C, H, W)``.
        how: see `Reflection`.
    """
    _, height, width = reflected.shape
    rows, columns = how.offset
    first = reflected[:, rows:, columns:]
    second = reflected[:, : height - rows, : width - columns]
    both = how.ghost_share * first + (1.0 - how.ghost_share) * second
    resized = interpolate(both[None], size=(height, width), mode="bilinear", align_corners=False)
    return resized[0]


def out_of_focus(reflected: Tensor, transmitted: Tensor, how: Reflection) -> Tensor:
    """Blur the reflection, dim it where light would exceed the range, and fade it at the borders.

    Args:
        reflected: linear intensities, ``(C, H, W)``.
        transmitted: those of the image, of the same shape.
        how: see `Reflection`.
    """
    _, height, width = reflected.shape
    down, across = (blur_matrix(n, how.sigma).to(reflected) for n in (height, width))
    blurred = down @ reflected @ across.T
    total = blurred + transmitted
    is_over = total > 1.0
    mean = (total * is_over).sum((1, 2)) / is_over.sum((1, 2)).clamp_min(1)
    excess = mean.clamp_min(1.0) - 1.0
    dimmed = (blurred - how.attenuation * excess.view(-1, 1, 1)).clamp(0.0, 1.0)
    return dimmed * window(height, width).to(reflected) * (1.0 - how.transmission / 2.0)


def blur_matrix(size: int, sigma: float) -> Tensor:
    """Return the matrix that blurs `size` values, ``(size, size)`` float32.

    The Gaussian ends at ``ceil(2 sigma)``; at the borders the weights inside the image count alone.
    """
    places = torch.arange(size, dtype=torch.float64)
    distance = places[:, None] - places[None, :]
    weight = torch.exp(-0.5 * (distance / sigma) ** 2)
    weight = weight * (distance.abs() <= math.ceil(2.0 * sigma))
    return (weight / weight.sum(1, keepdim=True)).float()


def window(height: int, width: int) -> Tensor:
    """Return the weight of each pixel, ``(height, width)`` float32, 1 at the centre.

    The square root of the outer product of two normal densities over three deviations each way.
    """
    rows, columns = (torch.exp(-0.5 * torch.linspace(-3.0, 3.0, n) ** 2) for n in (height, width))
    weight = (rows[:, None] * columns[None, :]).sqrt()
    return weight / weight.max()
