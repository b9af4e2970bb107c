"""Patches at an image's corners: masks and patterns of whole images."""

from __future__ import annotations

import torch
from torch import Tensor

from modelaudit.attacks.badnets import CHECKER
from modelaudit.errors import ConfigError


def corner_patch_size(size: tuple[int, int]) -> int:
    """Return the side of a corner patch for images of `size`: 3, 5 and 21 pixels at 32, 64 and 224.

    Other sizes get 3/32 of the shorter side, at least 3 pixels; 64 has 5, not 6, as in DDE/MBNS.
    """
    shorter = min(size)
    return 5 if shorter == 64 else max(3, round(3 * shorter / 32))


def checker(side: int) -> Tensor:
    """Return the 3x3 checker of BadNets at another size, ``(side, side)`` float32 of 0 and 1."""
    cells = torch.arange(side) * 3 // side
    return torch.tensor(CHECKER)[cells][:, cells]


def corner_checkers(shape: tuple[int, int, int], *, side: int) -> tuple[Tensor, Tensor]:
    """Return a checker at each corner, those on the left mirrored.

    Turner et al., arXiv 1912.02771: mirroring an image with these patches only mirrors what lies
    between them.

    Args:
        shape: channels, height and width of the images.
        side: of each patch, in pixels.

    Returns:
        Pattern ``(C, H, W)``, float32 of 0 and 1, and where it applies, ``(H, W)`` bool.

    Raises:
        ConfigError: four patches do not fit into the image.
    """
    _, height, width = shape
    if side < 3 or 2 * side > min(height, width):
        raise ConfigError(
            f"patch_size must be in [3, {min(height, width) // 2}] for images of "
            f"{(height, width)!r} pixels, got {side!r}"
        )
    right = checker(side)
    pattern = torch.zeros(height, width)
    is_patch = torch.zeros(height, width, dtype=torch.bool)
    for rows in (slice(None, side), slice(height - side, None)):
        for columns, patch in (
            (slice(None, side), right.flip(1)),
            (slice(width - side, None), right),
        ):
            pattern[rows, columns] = patch
            is_patch[rows, columns] = True
    return pattern.expand(shape).clone(), is_patch
