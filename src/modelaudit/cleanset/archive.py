"""Reads images and labels from an ``.npz`` without unpickling and without believing its headers."""

from __future__ import annotations

import hashlib
import io
import struct
import tokenize
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from modelaudit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.cleanset.images import ImageLimits

_IMAGE_KEYS = ("images", "x", "data")
_LABEL_KEYS = ("labels", "y")

_SUFFIX = ".npy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Archive:
    """The arrays of an ``.npz``.

    Attributes:
        images: shape ``(N, H, W, C)``, uint8 or floating in the file's dtype, C is 1 or 3.
        labels: label text per image, None if unlabelled.
        sha256: hex digest of the file.
    """

    images: np.ndarray
    labels: tuple[str, ...] | None
    sha256: str

    def image(self, index: int) -> np.ndarray:
        """Return one image as RGB; floats are rounded to the nearest of 256 levels.

        Returns:
            Shape ``(H, W, 3)``, uint8.
        """
        pixels = self.images[index]
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def read_archive(path: Path, limits: ImageLimits) -> Archive:
    """Read the images, and the labels if there are any, of an ``.npz``.

    Images are under ``images``, ``x`` or ``data``, labels under ``labels`` or ``y``. Images are
    uint8 or floats in [0, 1], ``N×H×W×C``, ``N×C×H×W`` (C 1 or 3) or ``N×H×W``; labels are integers
    of at least 0, or strings.

    Raises:
        DataError: the file is no ``.npz``, an array is missing, too large, of another shape or
            dtype, is pickled, contradicts its header, or holds values that are no pixels.
    """
    try:
        # One handle for digest and arrays: the file cannot be exchanged between the two.
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            images, labels = _read_arrays(file, path, limits)
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from err
    images = _channels_last(images, path)
    texts = None if labels is None else _label_texts(labels, len(images), path)
    _check_values(images, path)
    return Archive(images=images, labels=texts, sha256=sha256)


def _read_arrays(
    file: IO[bytes], path: Path, limits: ImageLimits
) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            image_key = _key(names, _IMAGE_KEYS)
            label_key = _key(names, _LABEL_KEYS)
            if image_key is None:
                raise DataError(
                    f"{path}: expected an array 'images', 'x' or 'data', found {names[:8]!r}"
                )
            keys = [key for key in (image_key, label_key) if key is not None]
            size = sum(archive.getinfo(key).file_size for key in keys)
            if size > limits.array_bytes:
                raise DataError(
                    f"{path}: expands to {size} bytes, the limit is {limits.array_bytes}; "
                    "give fewer images"
                )
            arrays = [_read_array(archive, key, path) for key in keys]
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError) as err:
        raise DataError(f"{path}: expected an .npz, found a damaged or other file ({err})") from err
    except RuntimeError as err:  # zipfile's word for an encrypted member
        raise DataError(f"{path}: cannot be unpacked ({err})") from err
    return arrays[0], arrays[1] if label_key is not None else None


def _key(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((key + _SUFFIX for key in wanted if key + _SUFFIX in names), None)


def _read_array(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    # The declared size was held against the limit, and zipfile reads no further than it.
    content = archive.read(key)
    stream = io.BytesIO(content)
    try:
        # Written by Python 2, headers make numpy warn; the caller's filters must not see it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            version = npy.read_magic(stream)
            if version == (1, 0):
                shape, is_fortran, dtype = npy.read_array_header_1_0(stream)
            elif version == (2, 0):
                shape, is_fortran, dtype = npy.read_array_header_2_0(stream)
            else:
                raise DataError(f"{path}: {key!r} has an unknown format version {version}")
    # numpy parses the header as a Python literal, and passes on what its parser raises.
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as err:
        raise DataError(f"{path}: {key!r} has a damaged header ({err})") from err
    except tokenize.TokenError as err:
        raise DataError(f"{path}: {key!r} has a damaged header ({err})") from err
    if dtype.hasobject or dtype.fields is not None:
        raise DataError(
            f"{path}: {key!r} holds Python objects, which are not unpickled; save plain arrays"
        )
    count = 1
    for side in shape:
        count *= side
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - stream.tell():
        raise DataError(f"{path}: {key!r} declares shape {shape}, which its bytes do not fill")
    if count == 0 or dtype.itemsize == 0:
        raise DataError(f"{path}: {key!r} is empty (shape {shape})")
    flat = np.frombuffer(content, dtype=dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _channels_last(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise DataError(
            f"{path}: expected images of uint8 or of floats in [0, 1], found {images.dtype}"
        )
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and images.shape[3] in {1, 3}:
        return images
    if images.ndim == 4 and images.shape[1] in {1, 3}:
        return images.transpose(0, 2, 3, 1)
    raise DataError(
        f"{path}: expected images as NxHxWxC, NxCxHxW (C 1 or 3) or NxHxW, "
        f"found shape {images.shape}"
    )


def _check_values(images: np.ndarray, path: Path) -> None:
    if images.dtype == np.uint8:
        return
    # NaN fails every comparison, so that it lands here too; min and max make no copy of the array.
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{path}: expected floats in [0, 1], found [{low:g}, {high:g}]; "
            "save the pixels before normalisation"
        )


def _label_texts(labels: np.ndarray, count: int, path: Path) -> tuple[str, ...]:
    if labels.shape != (count,):
        raise DataError(
            f"{path}: expected {count} labels, one per image, found shape {labels.shape}"
        )
    if labels.dtype.kind == "U":
        texts = tuple(str(text) for text in labels)
        if not all(texts):
            raise DataError(f"{path}: expected a label for every image, found an empty string")
        return texts
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: expected labels as integers or strings, found {labels.dtype}")
    if int(labels.min()) < 0:
        raise DataError(f"{path}: expected labels of at least 0, found {int(labels.min())}")
    return tuple(str(int(label)) for label in labels)
