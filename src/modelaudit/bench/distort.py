"""The four distortions of the low-quality study of [DDE22], Appendix E, on single images.

The paper takes ColorJitter from torchvision and the others from imgaug, and gives the settings that
stand here as constants. These are written anew in the manner of what they are named after; their
random numbers, and details that the paper does not give, differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import conv2d, grid_sample, interpolate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

#: ColorJitter: brightness, contrast and saturation within 1 ± 0.5, hue within ± 0.5 of its circle.
_JITTER = 0.5
#: Share of the cells that salt and pepper covers, and the grid's side as a share of the image's.
_PEPPERED = 0.3
_GRID = (0.01, 0.1)
_MIN_GRID = 3
#: Largest translation in polar coordinates, as a share of the largest radius and of the circle.
_TRANSLATION = 0.2
#: Snow: size of flakes, speed (the length of their trace as a share of the side), and how many.
_FLAKE_SIZE = (0.2, 0.5)
_SPEED = (0.01, 0.05)
_DENSITY = (0.005, 0.075)
_MIN_TRACE = 3


def color_jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue in drawn order, and turn it by 90 degrees.

    Args:
        image: ``(C, H, W)`` float in [0, 1], CPU; as for every distortion here. One channel has
            neither saturation nor hue.
        generator: draws everything.

    Returns:
        ``(C, W, H)`` in [0, 1].
    """
    amounts = _uniform(-_JITTER, _JITTER, generator, 4)
    for index in torch.randperm(4, generator=generator).tolist():
        if index == 3:
            image = turned_hue(image, amounts[index])
            continue
        # Darkness, the mean grey, and each pixel's own grey: what is mixed in or taken away.
        grey = _grey(image)
        other = (torch.zeros_like(grey), grey.mean(), grey)[index]
        image = (other + (1.0 + amounts[index]) * (image - other)).clamp(0, 1)
    return image.rot90(1, (1, 2))


def turned_hue(image: Tensor, turn: float) -> Tensor:
    """Return a colour image with its hue moved by a share of the circle, in [-0.5, 0.5].

    The greatest and the least of the three colours of a pixel stay; one channel comes back as it
    is.
    """
    if len(image) == 1:
        return image
    high, low = image.amax(0), image.amin(0)
    spread = (high - low).clamp_min(1e-12)
    red, green, blue = image
    hue = torch.where(
        high == red,
        (green - blue) / spread,
        torch.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    hue = torch.where(high > low, hue, 0.0) + 6 * turn
    # Each colour follows the same ramp around the circle of six, two apart.
    place = (torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + hue) % 6
    return high - (high - low) * torch.minimum(place, 4 - place).clamp(0, 1)


def _grey(image: Tensor) -> Tensor:
    """Return the luma of ITU-R 601-2, ``(1, H, W)``."""
    if len(image) == 1:
        return image
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    return (weights * image).sum(0, keepdim=True)


def salt_and_pepper(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cover cells of a coarse grid with black and white pixels; shape of `image`."""
    height, width = image.shape[1:]
    share = _uniform(*_GRID, generator, 1)[0]
    cells = [max(_MIN_GRID, round(share * side)) for side in (height, width)]
    covered = (torch.rand(1, 1, *cells, generator=generator) < _PEPPERED).float()
    mask = interpolate(covered, size=(height, width), mode="nearest")[0] > 0.5
    noise = (torch.rand(1, height, width, generator=generator) < 0.5).to(image.dtype)
    return torch.where(mask, noise.expand_as(image), image)


def polar_warp(image: Tensor, generator: torch.Generator) -> Tensor:
    """Move the image in polar coordinates about its centre: outward or inward, and around.

    What comes from beyond the largest radius, or from below zero, is black. Shape of `image`.
    """
    height, width = image.shape[1:]
    outward, around = _uniform(-_TRANSLATION, _TRANSLATION, generator, 2)
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    largest = math.hypot(height / 2, width / 2)
    radius = torch.hypot(x, y) - outward * largest
    angle = torch.atan2(y, x) - around * 2 * math.pi
    grid = torch.stack(
        [radius * angle.cos() / (width / 2), radius * angle.sin() / (height / 2)], dim=-1
    )
    warped = grid_sample(image[None], grid[None], mode="bilinear", align_corners=False)[0]
    return torch.where((radius >= 0) & (radius <= largest), warped, 0.0).clamp(0, 1)


def snow(image: Tensor, generator: torch.Generator) -> Tensor:
    """Let white flakes fall across the image in one direction; shape of `image`."""
    height, width = image.shape[1:]
    size = _uniform(*_FLAKE_SIZE, generator, 1)[0]
    speed = _uniform(*_SPEED, generator, 1)[0]
    density = _uniform(*_DENSITY, generator, 1)[0]
    angle = _uniform(math.pi / 3, 2 * math.pi / 3, generator, 1)[0]
    # Larger flakes are those of a coarser grid.
    cells = [max(_MIN_GRID, round(side * (1 - size))) for side in (height, width)]
    flakes = (torch.rand(1, 1, *cells, generator=generator) < density).float()
    flakes = interpolate(flakes, size=(height, width), mode="bilinear", align_corners=False)
    length = max(_MIN_TRACE, 2 * (round(speed * max(height, width)) // 2) + 1)
    reach = length // 2
    trace = torch.zeros(1, 1, length, length)
    for step in range(-reach, reach + 1):
        row = reach + round(step * math.sin(angle))
        trace[0, 0, row, reach + round(step * math.cos(angle))] = 1.0
    fallen = conv2d(flakes, trace / trace.amax(), padding=reach)[0].clamp(0, 1)
    return 1 - (1 - image) * (1 - fallen)


#: name to distortion
DISTORTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color_jitter": color_jitter,
    "salt_and_pepper": salt_and_pepper,
    "polar_warp": polar_warp,
    "snow": snow,
}


def _uniform(low: float, high: float, generator: torch.Generator, count: int) -> list[float]:
    drawn: list[float] = (low + (high - low) * torch.rand(count, generator=generator)).tolist()
    return drawn
