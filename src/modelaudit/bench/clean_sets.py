"""The defender's clean images of a data set, stored as the ``.npz`` that a user would give."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib import format as npy

from modelaudit import seeds
from modelaudit.bench.claims import claim
from modelaudit.bench.degrade import degraded, require_known
from modelaudit.bench.files import write_whole
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from modelaudit.bench.data import ImageData

#: the date that every member of the archive bears, so that equal content makes equal files
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanImagesFile:
    """A stored clean set.

    Attributes:
        name: of the data set and how many images, such as ``"cifar10_500"``.
        images: how many.
        path: the file.
        degradation: what was done to the images, None for nothing.
    """

    name: str
    images: int
    path: Path
    degradation: str | None = None


def draw_held_out(data: ImageData, count: int, *, seed: int = 0) -> Tensor:
    """Choose images that the attacker never had, as many of each class as possible.

    Args:
        data: the data set.
        count: how many; all where there are fewer.
        seed: of the choice.

    Returns:
        Indices into the training images, ascending, int64.

    Raises:
        ConfigError: no image is held out.
    """
    held_out = torch.arange(data.attacker_count, len(data.train_images))
    if not len(held_out) or count < 1:
        raise ConfigError(
            f"a clean set needs at least one of the {len(held_out)} images of {data.name!r} that "
            f"are held out, asked for {count!r}"
        )
    order = torch.randperm(len(held_out), generator=seeds.generator(seed, "clean_set", data.name))
    shuffled = held_out[order]
    labels = data.train_labels[shuffled]
    turn = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        turn[mine] = torch.arange(int(mine.sum()))
    # one of each class in turn; within a turn the classes come as they were shuffled
    ranked = shuffled[turn.argsort(stable=True)]
    return ranked[:count].sort().values


def store_clean_set(
    folder: Path,
    load: Callable[[], ImageData],
    *,
    name: str,
    images: int,
    image_size: int | None = None,
    degradation: str | None = None,
) -> CleanImagesFile:
    """Return the clean set of a population's data set; made once, the same every time.

    Args:
        folder: of the population; the file goes to its ``clean_sets``.
        load: gives the data, where the file is not there yet.
        name: of the data set.
        images: how many images are wanted.
        image_size: see `ModelPlan.image_size`.
        degradation: what to do to the same images, see `modelaudit.bench.degrade`.

    Raises:
        ConfigError: no image is held out, or an unknown degradation.
    """
    if degradation is not None:
        require_known(degradation)
    size = "" if image_size is None else f"_{image_size}px"
    title = f"{name}{size}_{images}"
    if degradation is not None:
        title += f"_{degradation}"
    path = folder / "clean_sets" / f"{title}.npz"
    with claim(folder, "clean_sets", wait=True):
        if not path.exists():
            data = load()
            chosen = draw_held_out(data, images)
            pixels, labels = data.train_images[chosen], data.train_labels[chosen]
            if degradation is not None:
                pixels, labels = _degraded(pixels, labels, degradation)
            write_clean_set(path, pixels, labels)
    return CleanImagesFile(name=title, images=images, path=path, degradation=degradation)


def _degraded(images: Tensor, labels: Tensor, degradation: str) -> tuple[Tensor, Tensor]:
    colour = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    made = degraded(list(colour.numpy()), labels.numpy(), degradation)
    pixels = torch.from_numpy(np.stack(made.images)).permute(0, 3, 1, 2)
    return pixels, torch.from_numpy(made.labels)


def write_clean_set(path: Path, images: Tensor, labels: Tensor) -> None:
    """Write an ``.npz`` with ``images`` and ``labels``; equal arguments give equal bytes.

    Args:
        path: the file; it is there whole or not at all.
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
    """
    arrays = {"images": images.permute(0, 2, 3, 1).contiguous().numpy(), "labels": labels.numpy()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in arrays.items():
            content = io.BytesIO()
            npy.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", date_time=_DATE), content.getvalue())
    write_whole(path, buffer.getvalue())
