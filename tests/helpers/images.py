"""Small pictures with a learnable label, in memory and on disk."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from modelaudit.cleanset import CleanSet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def picture(label: int, index: int, *, size: int = 16, width: int | None = None) -> np.ndarray:
    """A noisy picture whose colour and stripes tell `label`: (size, width or size, 3) uint8."""
    generator = np.random.default_rng((label, index))
    columns = width or size
    grid = np.arange(columns) * (1 + label % 3) + np.arange(size)[:, None] * (label // 3)
    stripes = np.sin(grid * 0.7)[..., None] * 40
    colour = np.random.default_rng(1000 + label).uniform(60, 200, size=3)
    noise = generator.normal(0, 25, size=(size, columns, 3)) + generator.normal(0, 20)
    pixels: np.ndarray = np.clip(colour + stripes + noise, 0, 255)
    return pixels.astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture's file content."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def write_folders(
    root: Path, folders: Sequence[str], *, per_folder: int = 3, size: int = 16
) -> Path:
    """One folder of PNG files per class."""
    for label, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for index in range(per_folder):
            content = encoded(picture(label, index, size=size))
            (root / folder / f"{index}.png").write_bytes(content)
    return root


def clean_set(
    folders: Sequence[str],
    *,
    per_folder: int = 20,
    size: int = 16,
    is_labelled: bool = True,
    pictures: Sequence[int] | None = None,
) -> CleanSet:
    """A clean set in memory; folder i shows picture kind i, or `pictures[i]`."""
    kinds = list(pictures) if pictures is not None else list(range(len(folders)))
    images = [picture(kind, i, size=size) for kind in kinds for i in range(per_folder)]
    labels = np.repeat(np.arange(len(kinds)), per_folder)
    return CleanSet(
        path="memory",
        images=tuple(images),
        labels=labels if is_labelled else None,
        folders=tuple(folders) if is_labelled else (),
        names=tuple(f"{label}/{i}" for i, label in enumerate(labels)),
        available=len(images),
        skipped_files=0,
        sha256="0" * 64,
        is_grey=False,
    )
