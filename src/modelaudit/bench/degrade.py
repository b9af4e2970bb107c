"""Clean sets as bad as users may have them, to see how a verdict suffers.

A tenth of the images distorted as in the low-quality study of [DDE22], every image through JPEG of
quality 50, or the labels in wrong order. Fewer images are asked for where the set is drawn.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from modelaudit import cleanset, seeds
from modelaudit.bench.distort import DISTORTIONS
from modelaudit.bench.files import write_whole
from modelaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

JPEG = "jpeg_quality_50"
WRONG_ORDER = "wrong_label_order"

#: what `degraded` can do
DEGRADATIONS: tuple[str, ...] = (*DISTORTIONS, JPEG, WRONG_ORDER)

_FRACTION = 0.1
_QUALITY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded:
    """A degraded clean set.

    Attributes:
        images: ``(H, W, 3)`` uint8 each.
        labels: ``(N,)`` int64.
        changed: indices of the images whose pixels were worked on, ascending.
    """

    images: tuple[np.ndarray, ...]
    labels: np.ndarray
    changed: tuple[int, ...]


def degraded(
    images: Sequence[np.ndarray], labels: np.ndarray, degradation: str, *, seed: int = 0
) -> Degraded:
    """Degrade images or labels; the same arguments give the same result.

    Args:
        images: ``(H, W, 3)`` uint8 each, of any sizes.
        labels: ``(N,)`` int64.
        degradation: one of `DEGRADATIONS`. A distortion takes a tenth of the images, rounded, and
            leaves the others as they are; a wrong order gives every image the next label that
            occurs, and the last one the first.
        seed: of the choice of images and of what is done to them.

    Raises:
        ConfigError: an unknown degradation.
    """
    require_known(degradation)
    kept = [np.array(image) for image in images]
    if degradation == WRONG_ORDER:
        return Degraded(images=tuple(kept), labels=in_wrong_order(labels), changed=())
    if degradation == JPEG:
        kept = [_through_jpeg(image) for image in kept]
        return Degraded(images=tuple(kept), labels=labels, changed=tuple(range(len(kept))))
    draws = seeds.generator(seed, "degrade", degradation)
    order = torch.randperm(len(kept), generator=draws)
    chosen = order[: round(_FRACTION * len(kept))].sort().values.tolist()
    for index in chosen:
        pixels = torch.from_numpy(kept[index]).permute(2, 0, 1).float() / 255
        out = DISTORTIONS[degradation](pixels, draws)
        kept[index] = (out * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Degraded(images=tuple(kept), labels=labels, changed=tuple(chosen))


def require_known(degradation: str) -> None:
    """Raise unless `degraded` knows the name.

    Raises:
        ConfigError: it does not.
    """
    if degradation not in DEGRADATIONS:
        raise ConfigError(
            f"expected a degradation among {', '.join(DEGRADATIONS)}, got {degradation!r}"
        )


def in_wrong_order(labels: np.ndarray) -> np.ndarray:
    """Return the labels with each one replaced by the next that occurs, the last by the first."""
    values, places = np.unique(labels, return_inverse=True)
    shifted: np.ndarray = values[(places + 1) % len(values)] if len(values) else labels
    return shifted


def write_degraded(
    source: Path, out: Path, degradation: str, *, images: int | None = None, seed: int = 0
) -> Degraded:
    """Write a degraded copy of a user's clean set as class folders.

    Args:
        source: folder of class folders, or ``.npz``.
        out: folder to write, which must not be there or be empty.
        degradation: see `degraded`.
        images: how many images to take, chosen as a scan would; all if None.
        seed: of everything that is drawn.

    Raises:
        ConfigError: an unknown degradation.
        DataError: the images are unlabelled or unreadable, or `out` holds something.
    """
    require_known(degradation)
    clean = cleanset.read_clean_set(source, max_images=images, seed=seed)
    if clean.labels is None:
        raise DataError(f"{source}: expected class folders, found unlabelled images")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected an empty or new folder; choose another one")
    made = degraded(clean.images, clean.labels, degradation, seed=seed)
    for index, (pixels, label) in enumerate(zip(made.images, made.labels, strict=True)):
        write_whole(out / clean.folders[int(label)] / f"{index:05d}.png", _encoded(pixels, "PNG"))
    return made


def _through_jpeg(image: np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(_encoded(image, "JPEG", quality=_QUALITY))) as decoded:
        return np.asarray(decoded.convert("RGB")).copy()


def _encoded(image: np.ndarray, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format=kind, **options)
    return stream.getvalue()
