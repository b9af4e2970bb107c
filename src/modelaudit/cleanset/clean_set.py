"""The clean images as every later step sees them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from modelaudit.cleanset.images import luma
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

#: Share of the images that methods may search on; the rest judge (issue "Clean set").
_SEARCH_FRACTION = 0.6

#: Longer pictures lose their ends before they are scaled: a strip of one pixel's height would
#: otherwise grow to any size, and no square cut from the centre ever shows them.
_MAX_ASPECT = 4


def seeded_rank(seed: int, purpose: str, name: str) -> bytes:
    """Return a sort key that shuffles names, independently of other seeds and purposes."""
    text = f"{seed}|{purpose}|{name}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Two disjoint parts of a clean set that cover it.

    Attributes:
        search: indices of the images that methods may optimise and choose on. Shape ``(S,)``,
            int64, ascending.
        judge: indices of the images that results are reported on. Shape ``(E,)``, int64, ascending.
    """

    search: np.ndarray
    judge: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CleanSet:
    """Decoded images of a folder or an ``.npz``.

    Attributes:
        path: as the user gave it.
        images: one array per image. Shape ``(H, W, 3)``, uint8, RGB; greys have three equal
            colours.
        labels: index into `folders` per image. Shape ``(N,)``, int64; None if the images are
            unlabelled.
        folders: names of the class folders (or of the labels in ``labels.csv`` or the ``.npz``) in
            natural order (``"2"`` before ``"10"``); empty if unlabelled. A folder may have no image
            among `images` when the maximum was smaller than the number of folders.
        names: file name relative to `path` per image, with ``/``.
        available: how many images there were to choose from.
        skipped_files: how many other, unreadable or missing files were passed over.
        sha256: digest over the sorted digests of the files that were read.
        is_grey: whether all images are without colour.
    """

    path: str
    images: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    folders: tuple[str, ...]
    names: tuple[str, ...]
    available: int
    skipped_files: int
    sha256: str
    is_grey: bool
    _cache: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many images each of `folders` has; empty if unlabelled."""
        if self.labels is None:
            return ()
        counts = np.bincount(self.labels, minlength=len(self.folders))
        return tuple(int(count) for count in counts)

    @property
    def native_size(self) -> int | None:
        """Side in pixels when all images are squares of one size, else None."""
        sizes = {image.shape[:2] for image in self.images}
        height, width = next(iter(sizes))
        return int(height) if len(sizes) == 1 and height == width else None

    def tensor(
        self, size: int, channels: int, indices: np.ndarray | Sequence[int] | None = None
    ) -> Tensor:
        """Return images as a model of `size` pixels and `channels` channels takes them, in [0, 1].

        Squares of `size` pixels are divided by 255 exactly. Others have their shorter side scaled
        to `size` (bilinear with antialiasing) and the centre cut out. One channel is made by
        Pillow's luma formula. The tensor over all images is kept until another size is asked for:
        do not write into it.

        Args:
            size: side of the square, pixels, at least 1.
            channels: 1 or 3.
            indices: which images, in which order; all if None.

        Returns:
            Shape ``(N, channels, size, size)``, float32, CPU, in [0, 1].

        Raises:
            ConfigError: `size` or `channels` is out of range.
        """
        if size < 1 or channels not in {1, 3}:
            raise ConfigError(
                f"expected a size of at least 1 and 1 or 3 channels, got {size} and {channels}"
            )
        key = (size, channels)
        if indices is None:
            if key not in self._cache:
                self._cache.clear()
                self._cache[key] = _to_tensor(self.images, size, channels)
            return self._cache[key]
        if key in self._cache:
            return self._cache[key][torch.as_tensor(np.asarray(indices, dtype=np.int64))]
        return _to_tensor([self.images[int(i)] for i in indices], size, channels)

    def split(self, seed: int) -> Split:
        """Divide the images into 60 % to search on and 40 % to judge on, stratified by folder.

        Each image's side follows from a hash of seed and file name, and of how many images its
        folder and those before it have; no random generator is drawn from.

        Args:
            seed: any integer.

        Returns:
            Two disjoint parts; both are non-empty from two images on.
        """
        order = sorted(
            range(len(self.images)), key=lambda i: seeded_rank(seed, "split", self.names[i])
        )
        groups: list[list[int]] = [[] for _ in range(max(1, len(self.folders)))]
        for i in order:
            groups[0 if self.labels is None else int(self.labels[i])].append(i)
        search: list[int] = []
        judge: list[int] = []
        seen = 0
        for group in groups:
            # Rounding the running total keeps 60 % overall even where each folder has one or two
            # images.
            before = int(_SEARCH_FRACTION * seen + 0.5)
            seen += len(group)
            taken = int(_SEARCH_FRACTION * seen + 0.5) - before
            search += group[:taken]
            judge += group[taken:]
        return Split(search=_indices(search), judge=_indices(judge))

    def stratified(self, indices: np.ndarray, count: int) -> np.ndarray:
        """Return up to `count` of `indices`, taking one per folder in turn.

        Args:
            indices: image indices. Shape ``(M,)``, int64.
            count: how many are wanted.

        Returns:
            Shape ``(min(M, count),)``, int64, ascending.
        """
        turns: dict[int, int] = {}
        keyed: list[tuple[bytes, int]] = sorted(
            (seeded_rank(0, "stratified", self.names[int(i)]), int(i)) for i in indices
        )
        ranked: list[tuple[int, int]] = []
        for place, (_, i) in enumerate(keyed):
            folder = 0 if self.labels is None else int(self.labels[i])
            turn = turns.get(folder, 0)
            turns[folder] = turn + 1
            ranked.append((turn * len(keyed) + place, i))
        return _indices(i for _, i in sorted(ranked)[:count])


def _indices(values: Iterable[int]) -> np.ndarray:
    return np.array(sorted(values), dtype=np.int64)


def _to_tensor(images: Sequence[np.ndarray], size: int, channels: int) -> Tensor:
    result = torch.empty(len(images), channels, size, size)
    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        by_shape.setdefault(image.shape[:2], []).append(i)
    for members in by_shape.values():
        stack = np.stack([images[i] for i in members])
        pixels = luma(stack)[..., None] if channels == 1 else stack
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        result[members] = _fit_square(batch.to(torch.float32) / 255, size)
    return result


def _fit_square(batch: Tensor, size: int) -> Tensor:
    height, width = batch.shape[-2:]
    if height == width == size:
        return batch
    shorter = min(height, width)
    if max(height, width) > _MAX_ASPECT * shorter:
        batch = _centre(
            batch, (min(height, _MAX_ASPECT * shorter), min(width, _MAX_ASPECT * shorter))
        )
        height, width = batch.shape[-2:]
    target = [max(size, int(size * side / shorter)) for side in (height, width)]
    scaled = interpolate(batch, size=target, mode="bilinear", antialias=True, align_corners=False)
    # Antialiasing may overshoot by rounding; algorithms are promised [0, 1].
    return _centre(scaled, (size, size)).clamp(0, 1)


def _centre(batch: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((batch.shape[d] - side) // 2 for d, side in zip((-2, -1), size, strict=True))
    return batch[..., top : top + size[0], left : left + size[1]]
