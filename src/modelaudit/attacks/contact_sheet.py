"""A picture of what an attack does: clean images, the same triggered, and their difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import pad

from modelaudit import seeds
from modelaudit.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from modelaudit.attacks.base import Attack, ConfigT

#: what is put on the images: the trigger of test time, that of training, or what cover images get
Shown = Literal["test", "training", "cover"]

#: white pixels around each cell
MARGIN = 2
#: cells of smaller images are enlarged, by a whole factor, to at least this many pixels
CELL_SIDE = 96
#: contrast of the differences, around middle grey
GAIN = 10.0


def contact_sheet(
    attack: Attack[ConfigT],
    images: Tensor,
    *,
    indices: Tensor | None = None,
    generator: Generator | None = None,
    shown: Shown = "test",
) -> NDArray[np.uint8]:
    """Draw one column per image: clean, triggered, and ten times the difference around grey.

    Args:
        attack: any attack, prepared if its trigger has to be.
        images: ``(N, C, H, W)`` of 1 or 3 channels, uint8 or floating in [0, 1]; N at least 1.
        indices: index of each image in its data set, ``(N,)`` int64; 0 to N - 1 if None.
        generator: source of what the trigger draws; derived from the attack's seed if None.
        shown: what is put on the images; the donor of a cover image is the one before it.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        ConfigError: the attack has no cover images, or no training trigger for these images.
        ShapeError: not a batch of grey or colour images of the attack's size.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ShapeError(
            f"expected images of shape (N, 1 or 3, H, W), N at least 1, got {tuple(images.shape)!r}"
        )
    clean = images.float() / 255.0 if images.dtype == torch.uint8 else images
    places = torch.arange(len(images)) if indices is None else indices
    source = seeds.generator(attack.seed, "contact_sheet") if generator is None else generator
    if shown == "cover" and not attack.has_cover:
        raise ConfigError(f"the attack {attack.id!r} has no cover images")
    with torch.no_grad():
        if shown == "cover":
            triggered = attack.trigger.cover(clean, donors=clean.roll(1, 0), generator=source)
        else:
            function = attack.trigger.apply if shown == "test" else attack.trigger.apply_train
            triggered = function(clean, indices=places, generator=source)
    difference = (0.5 + GAIN * (triggered - clean)).clamp(0.0, 1.0)
    rows = [_row(part) for part in (clean, triggered, difference)]
    sheet = pad(torch.cat(rows, dim=1), (MARGIN, 0, MARGIN, 0), value=1.0)
    pixels = (sheet * 255.0).round().to(torch.uint8).cpu().permute(1, 2, 0).contiguous()
    array: NDArray[np.uint8] = pixels.numpy()
    return array


def _row(images: Tensor) -> Tensor:
    """Return the images side by side, enlarged and in colour, ``(3, height, width)``."""
    factor = max(1, -(-CELL_SIDE // max(images.shape[-2:])))
    cells = images.expand(-1, 3, -1, -1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    bordered = pad(cells, (0, MARGIN, 0, MARGIN), value=1.0)
    return torch.cat(list(bordered), dim=2)
