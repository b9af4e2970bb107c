"""Random crops and mirror images of the clean set, as far as the model was trained to bear them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect

#: The usual 4 pixels of 32, 8 of 64.
_PADDING_FRACTION = 8

#: Inputs beyond this side are cropped from larger images in training; padding them is unusual.
_MAX_PADDED_SIZE = 128

#: Accuracy that a model may lose on transformed images and still count as trained on such.
_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What is done to each training image at random.

    Attributes:
        padding: black pixels added on each side before a window of the image's size is cut out; 0
            for no crop.
        flip: whether every second image is mirrored.
        hole: side of a black square that covers a random place, up to half of it beyond the border;
            0 for none.
    """

    padding: int = 0
    flip: bool = False
    hole: int = 0


def augment(images: Tensor, augmentation: Augmentation, *, generator: torch.Generator) -> Tensor:
    """Crop and mirror each image by its own draw (methods/repairs.md §0.7).

    Args:
        images: pixels. Shape ``(N, C, H, W)``, floating, any device.
        augmentation: what to do.
        generator: CPU generator; it is drawn from in the same way with and without mirroring, so
            that both see the same windows.

    Returns:
        A new tensor; shape, dtype and device of `images`.
    """
    n, _, height, width = images.shape
    span = 2 * augmentation.padding + 1
    corner = (torch.rand((2, n, 1), generator=generator) * span).long().to(images.device)
    mirrored = (torch.rand((n, 1), generator=generator) < 0.5).to(images.device)
    padded = pad(images, (augmentation.padding,) * 4)
    rows = corner[0] + torch.arange(height, device=images.device)
    columns = corner[1] + torch.arange(width, device=images.device)
    if augmentation.flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    # Indices around a slice put the sliced channels last: the memory format that convolutions like.
    cut = padded[which, :, rows.view(n, height, 1), columns.view(n, 1, width)].permute(0, 3, 1, 2)
    if augmentation.hole:
        corner = torch.rand((2, n, 1), generator=generator) * torch.tensor([height, width]).view(
            2, 1, 1
        )
        start = corner.long() - augmentation.hole // 2
        rows, columns = torch.arange(height) - start[0], torch.arange(width) - start[1]
        is_row = (rows >= 0) & (rows < augmentation.hole)
        is_column = (columns >= 0) & (columns < augmentation.hole)
        covered = is_row.unsqueeze(2) & is_column.unsqueeze(1)
        cut = cut.masked_fill(covered.unsqueeze(1).to(images.device), 0)
    return cut


def choose_augmentation(
    model: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    crop: bool | None,
    flip: bool | None,
    generator: torch.Generator,
    batch_size: int,
) -> Augmentation:
    """Decide between plain, cropped and mirrored images by asking the model.

    Whether a mirrored image keeps its label depends on what it shows: an animal does, a road sign
    or a digit does not. Nobody says so in the clean set, but a model that was trained with mirror
    images labels them as well as plain ones, and one that was not mostly does not. The same holds
    for crops of the padded image.

    Args:
        model: the model to be repaired.
        images: ``(N, C, H, W)`` in [0, 1], clean.
        labels: ``(N,)`` int64.
        crop: whether to crop; None asks the model.
        flip: whether to mirror; None asks the model.
        generator: draws the windows.
        batch_size: images computed together.

    Returns:
        The choice. N forward passes are counted for each question, and N more if there is any.
    """
    size = model.input_size
    padding = size // _PADDING_FRACTION if size <= _MAX_PADDED_SIZE else 0
    if crop is None or flip is None:
        plain = _accuracy(model, images, labels, batch_size)
        if crop is None:
            cut = augment(images, Augmentation(padding=padding), generator=generator)
            crop = padding > 0 and _accuracy(model, cut, labels, batch_size) >= plain - _TOLERANCE
        if flip is None:
            flip = _accuracy(model, images.flip(-1), labels, batch_size) >= plain - _TOLERANCE
    return Augmentation(padding=padding if crop else 0, flip=flip)


def _accuracy(model: Suspect, images: Tensor, labels: Tensor, batch_size: int) -> float:
    predictions = model.predict(images, batch_size=batch_size)
    return float((predictions == labels.cpu()).double().mean())
