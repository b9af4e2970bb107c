"""Imitates the random crop of training, which leaves its mark on BatchNorm statistics.

Small-image classifiers are nearly always trained on crops of a padded image. The padding takes part
in every running mean and variance: for a ResNet-18 on CIFAR-10 that was trained with 4 black
pixels, the median divergence of the first BatchNorm layer is 0.04 on plain images under the right
normalisation, and 0.0001 on images cropped in the same way; the next normalisation is at 0.02. So a
comparison with running statistics needs the crop, or it picks the wrong normalisation and takes
clean models for backdoored ones.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: The usual 4 pixels of 32, 8 of 64.
_PADDING_FRACTION = 8

#: Larger inputs are cropped from larger images, without padding.
_MAX_PADDED_SIZE = 128

#: Step through the list of offsets that visits all of them, far from the previous one each time.
_OFFSET_STEP = 0.6180339887498949


class TrainingCrop(StrEnum):
    """What surrounds the image before a window of its own size is cut out at random."""

    #: nothing: the images are as they are
    NONE = "none"
    #: black pixels, added before the normalisation
    BLACK = "black"
    #: zeros, added after the normalisation
    MEAN = "mean"
    #: the image's own border, mirrored
    REFLECT = "reflect"


def crops_for(size: int) -> tuple[TrainingCrop, ...]:
    """Return the crops that are usual for square inputs of `size` pixels."""
    return tuple(TrainingCrop) if 16 <= size <= _MAX_PADDED_SIZE else (TrainingCrop.NONE,)


def training_crops(images: Tensor, crop: TrainingCrop, *, mean: Sequence[float]) -> Tensor:
    """Pad each image and cut a window of its own size out, without drawing random numbers.

    The padding is an eighth of the side. The window's offsets run evenly through all possible ones
    from image to image, so that the statistics of few images are as near as possible to those of
    many random crops.

    Args:
        images: pixels in [0, 1]. Shape ``(N, C, H, H)``, floating, any device.
        crop: what to pad with.
        mean: the normalisation's mean per channel, which `TrainingCrop.MEAN` pads with. Length C.

    Returns:
        Shape, dtype and device of `images`.
    """
    if crop is TrainingCrop.NONE:
        return images
    size = images.shape[-1]
    width = size // _PADDING_FRACTION
    border = (width, width, width, width)
    if crop is TrainingCrop.REFLECT:
        padded = pad(images, border, mode="reflect")
    else:
        fill = images.new_tensor(mean).view(1, -1, 1, 1)
        fill = fill if crop is TrainingCrop.MEAN else torch.zeros_like(fill)
        padded = pad(images - fill, border) + fill
    offsets = 2 * width + 1
    steps = torch.arange(len(images), dtype=torch.float64) * _OFFSET_STEP
    places = ((steps % 1.0) * offsets**2).long().to(images.device)
    window = torch.arange(size, device=images.device)
    rows = (places // offsets).view(-1, 1) + window
    columns = (places % offsets).view(-1, 1) + window
    which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    cut = padded.permute(0, 2, 3, 1)[which, rows.unsqueeze(2), columns.unsqueeze(1)]
    return cut.permute(0, 3, 1, 2)
