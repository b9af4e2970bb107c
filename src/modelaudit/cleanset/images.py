"""Decodes one picture within limits."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modelaudit.errors import ConfigError, DataError

#: Formats that Pillow does not decode by itself: EPS starts Ghostscript, the rest are stubs for
#: handlers that an application has to bring.
_FOREIGN_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

#: Pillow's ``L`` conversion of ITU-R 601-2 luma in 16-bit fixed point, as training pipelines apply
#: it.
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What reading a clean set may cost.

    Attributes:
        pixels: largest width times height of one picture.
        file_bytes: largest size of one picture's file.
        files: largest number of directory entries, and of rows of ``labels.csv``.
        array_bytes: largest uncompressed size of an ``.npz``'s images and labels together.
        shorter_side: pictures whose shorter side is longer are shrunk to it when they are decoded,
            so that 500 photographs fit into memory; pixels.
    """

    pixels: int = 50_000_000
    file_bytes: int = 64 * 2**20
    files: int = 2_000_000
    array_bytes: int = 2 * 2**30
    shorter_side: int = 384

    def __post_init__(self) -> None:
        for name in ("pixels", "file_bytes", "files", "array_bytes", "shorter_side"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"limit {name} must be at least 1, got {value!r}")


def image_suffixes() -> frozenset[str]:
    """Return the file name suffixes, lower-case with their dot, that stand for a picture."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _FOREIGN_FORMATS
    )


def decode_image(content: bytes, limits: ImageLimits) -> np.ndarray:
    """Decode a picture to 8-bit RGB.

    The first frame of an animation counts; transparency is dropped and a palette looked up, as the
    usual training pipelines do by converting to RGB; 16-bit greys keep their upper 8 bits; the EXIF
    orientation is ignored, as it is in training.

    Args:
        content: the file's bytes, in any format that Pillow decodes by itself.
        limits: bounds on pixels; `ImageLimits.shorter_side` shrinks.

    Returns:
        Shape ``(H, W, 3)``, uint8, contiguous.

    Raises:
        DataError: the bytes are no picture, a damaged one, one over the limit, or one whose values
            have no agreed 8-bit meaning (32-bit integers and floats).
    """
    Image.init()
    formats = sorted(set(Image.OPEN) - _FOREIGN_FORMATS)
    # A folder's contents must not reach the caller's warning filters: Pillow warns about large
    # pictures before it lets anyone look at their size, and about damaged metadata. The filters are
    # restored on leaving.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=formats) as image:
                _check_size(image.size, limits)
                pixels = _to_rgb(_shrink(image, limits.shorter_side))
        except DataError:
            raise
        except Image.DecompressionBombError as err:
            raise DataError(f"a picture exceeds the limit of {limits.pixels} pixels") from err
        except MemoryError as err:
            raise DataError("a picture needs more memory than there is") from err
        # Pillow's decoders raise nearly every built-in class on damaged input.
        except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError) as err:
            raise DataError(f"expected a picture, found damaged or unknown data ({err})") from err
        except (AttributeError, NotImplementedError, RuntimeError, EOFError) as err:
            raise DataError(
                f"expected a picture, found data that Pillow cannot decode ({err})"
            ) from err
    return np.ascontiguousarray(pixels)


def is_grey(pixels: np.ndarray) -> bool:
    """Say whether the three colours of ``(H, W, 3)`` pixels are equal everywhere."""
    red = pixels[..., 0]
    return bool((red == pixels[..., 1]).all() and (red == pixels[..., 2]).all())


def luma(pixels: np.ndarray) -> np.ndarray:
    """Convert 8-bit RGB ``(..., 3)`` to 8-bit grey ``(...)``, as Pillow's ``convert("L")`` does."""
    weighted = pixels.astype(np.uint32) @ _LUMA
    return ((weighted + 0x8000) >> 16).astype(np.uint8)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise DataError(
            f"a picture of {width}x{height} pixels exceeds the limit of {limits.pixels} pixels"
        )


def _shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    width, height = image.size
    if min(width, height) <= shorter_side or image.mode.startswith("I;16"):
        return image
    scale = shorter_side / min(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Palette indices and single bits cannot be averaged.
    colour = image if image.mode in {"RGB", "L"} else _colour(image)
    return colour.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _colour(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"}:
        raise DataError(
            f"expected 8- or 16-bit pixels, found mode {image.mode!r}; convert the picture"
        )
    return image.convert("RGB")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(_colour(image), dtype=np.uint8)
