"""Labelled image data for training: packs of JPEG bytes, and folders with a subfolder per class.

A pack is an ``.npz`` with ``{train,test}_jpeg`` (flat uint8), ``{train,test}_offsets`` (int64,
image i is ``jpeg[offsets[i]:offsets[i+1]]``), ``{train,test}_labels`` (uint8) and ``classes``. The
attacker trains on the first images of the training part, the defender owns the rest, test images
only measure ACC and ASR.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from modelaudit.cleanset.images import image_suffixes
from modelaudit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

#: defender's share of the training images where a pack does not say (CIFAR-10: 5,000 of 50,000)
HELD_OUT_FRACTION = 0.1
#: share of a class folder that becomes test images
TEST_FRACTION = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """One data set in memory.

    Attributes:
        name: short name, such as ``"cifar10"``.
        train_images: ``(N, C, H, W)`` uint8, the attacker's first and then the defender's.
        train_labels: ``(N,)`` int64.
        test_images: ``(M, C, H, W)`` uint8.
        test_labels: ``(M,)`` int64.
        classes: class names in label order.
        attacker_count: how many of the training images the attacker may use; the rest is held out.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    attacker_count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return int(channels), int(height), int(width)


def data_path(name: str, data_root: Path) -> Path:
    """Return the pack ``<name>_jpeg.npz`` or the folder `name` under `data_root`.

    Raises:
        DataError: there is neither.
    """
    for path in (data_root / f"{name}_jpeg.npz", data_root / name):
        if path.exists():
            return path
    raise DataError(
        f"expected {name + '_jpeg.npz'!r} or a folder {name!r} in {str(data_root)!r}, found neither"
    )


def load_data(path: Path, *, cache: Path | None = None, size: int = 32) -> ImageData:
    """Read a pack (a file) or a folder of class folders.

    Args:
        path: pack or folder.
        cache: folder where decoded pixels of a pack are kept as ``.npy``; nothing is kept without
            one.
        size: side in pixels to which the images of a folder are resized.

    Raises:
        DataError: the path is missing, or is neither a pack nor a folder of class folders.
    """
    if path.is_dir():
        return load_folder(path, size=size)
    return load_pack(path, cache=cache)


def load_pack(path: Path, *, cache: Path | None = None) -> ImageData:
    """Read a pack of JPEG bytes.

    Args:
        path: the ``.npz`` file.
        cache: folder where decoded pixels are kept as ``.npy``, or None.

    Raises:
        DataError: the file is missing, or is not such a pack.
    """
    try:
        with np.load(path, allow_pickle=False) as pack:
            train = _decoded(pack, "train", path, cache)
            test = _decoded(pack, "test", path, cache)
            train_labels = torch.from_numpy(pack["train_labels"].astype(np.int64))
            test_labels = torch.from_numpy(pack["test_labels"].astype(np.int64))
            classes = tuple(str(name) for name in pack["classes"])
            if "train_attacker_count" in pack.files:
                attacker_count = int(pack["train_attacker_count"])
            else:
                attacker_count = len(train) - int(HELD_OUT_FRACTION * len(train))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise DataError(f"expected a pack of JPEG images at {str(path)!r}, found {err}") from err
    return ImageData(
        name=path.name.removesuffix(".npz").removesuffix("_jpeg"),
        train_images=torch.from_numpy(train),
        train_labels=train_labels,
        test_images=torch.from_numpy(test),
        test_labels=test_labels,
        classes=classes,
        attacker_count=attacker_count,
    )


def pack_jpeg(path: Path, indices: Iterable[int]) -> list[bytes]:
    """Return the JPEG bytes of training images of a pack, as they are stored.

    Raises:
        DataError: the file is missing, or is not such a pack.
    """
    try:
        with np.load(path, allow_pickle=False) as pack:
            jpeg, offsets = pack["train_jpeg"], pack["train_offsets"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise DataError(f"expected a pack of JPEG images at {str(path)!r}, found {err}") from err
    return [jpeg[offsets[i] : offsets[i + 1]].tobytes() for i in indices]


def load_folder(path: Path, *, size: int = 32) -> ImageData:
    """Read a folder with one subfolder of images per class, at any depth below it.

    What is hidden or does not end as an image does is passed over, so that the training images of
    Tiny ImageNet can be read as they are published: ``<class>/images/*.JPEG`` beside a table.
    Labels are the positions of the subfolders in sorted order. Of each class the last tenth, by
    path, is test; of the rest, in an order that interleaves the classes, the last tenth is the
    defender's.

    Args:
        path: the folder.
        size: side in pixels to which every image is resized (bicubic), in colour.

    Raises:
        DataError: fewer than two class folders, an unreadable image, or a class with fewer than 3
            images.
    """
    folders = sorted(e for e in path.iterdir() if e.is_dir() and not e.name.startswith("."))
    if len(folders) < 2:
        raise DataError(
            f"expected one subfolder per class in {str(path)!r}, found {len(folders)} subfolders"
        )
    train: list[tuple[float, int, Path]] = []
    test: list[tuple[float, int, Path]] = []
    for label, folder in enumerate(folders):
        files = _images_below(folder)
        if len(files) < 3:
            raise DataError(
                f"expected at least 3 images in {str(folder)!r}, found {len(files)}, add some"
            )
        n_test = max(1, int(TEST_FRACTION * len(files)))
        n_train = len(files) - n_test
        train += [((i + 0.5) / n_train, label, file) for i, file in enumerate(files[:n_train])]
        test += [(0.0, label, file) for file in files[n_train:]]
    train.sort(key=lambda item: item[:2])
    return ImageData(
        name=path.name,
        train_images=torch.stack([_read_image(file, size) for _, _, file in train]),
        train_labels=torch.tensor([label for _, label, _ in train]),
        test_images=torch.stack([_read_image(file, size) for _, _, file in test]),
        test_labels=torch.tensor([label for _, label, _ in test]),
        classes=tuple(folder.name for folder in folders),
        attacker_count=len(train) - int(HELD_OUT_FRACTION * len(train)),
    )


def _images_below(folder: Path) -> list[Path]:
    """Return the image files of a class at any depth, sorted."""
    suffixes = image_suffixes()
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _read_image(file: Path, size: int) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError) as err:
        raise DataError(f"expected an image at {str(file)!r}, found {err}") from err
    return torch.from_numpy(np.array(pixels).transpose(2, 0, 1).copy())


def _decoded(
    pack: np.lib.npyio.NpzFile, part: str, path: Path, cache: Path | None
) -> NDArray[np.uint8]:
    labels = pack[f"{part}_labels"]
    file = None if cache is None else cache / f"{path.stem}_{path.stat().st_size}_{part}.npy"
    if file is not None and file.exists():
        cached: NDArray[np.uint8] = np.load(file, allow_pickle=False)
        return cached
    jpeg, offsets = pack[f"{part}_jpeg"], pack[f"{part}_offsets"]
    if len(offsets) != len(labels) + 1:
        raise ValueError(f"{len(offsets)} {part} offsets for {len(labels)} labels")
    images = []
    for start, end in pairwise(offsets.tolist()):
        with Image.open(io.BytesIO(jpeg[start:end].tobytes())) as image:
            images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    decoded = np.stack(images)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two trainers may decode at once: each writes its own file, the rename is atomic.
        partial = file.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, decoded)
        partial.replace(file)
        logger.info("kept decoded %s images in %s", part, file)
    return decoded
