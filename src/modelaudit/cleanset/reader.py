"""Chooses which images of a folder or ``.npz`` to use, and decodes only those."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelaudit.cleanset.archive import read_archive
from modelaudit.cleanset.clean_set import CleanSet, seeded_rank
from modelaudit.cleanset.images import ImageLimits, decode_image, is_grey
from modelaudit.cleanset.listing import list_folder, natural_key, one_class_error, read_limited
from modelaudit.errors import ConfigError, DataError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)


def read_clean_set(
    path: str | os.PathLike[str],
    *,
    max_images: int | None = 500,
    seed: int = 0,
    limits: ImageLimits = ImageLimits(),  # noqa: B008 - frozen
) -> CleanSet:
    """Read clean images, labels and class names.

    Accepts one folder per class, a flat folder with ``labels.csv``, a flat folder of unlabelled
    pictures, or an ``.npz`` (docs/clean-set.md). Of more than `max_images` it takes one per class
    in turn, as many of each class as possible. Which ones follows from a hash of `seed` and file
    name. A chosen file that turns out damaged is skipped, counted and replaced by the next of its
    class.

    Args:
        path: the folder or ``.npz``.
        max_images: how many images to use at most; None for all.
        seed: seed of the choice.
        limits: what reading may cost.

    Returns:
        The decoded images. There may be few of them, and few per class: `CleanSet.class_counts`
        says so.

    Raises:
        DataError: there is nothing usable at `path`, or it has one class only.
        ConfigError: `max_images` is less than 1.
    """
    if max_images is not None and max_images < 1:
        raise ConfigError(f"max_images must be at least 1, got {max_images!r}")
    root = Path(path)
    try:
        is_folder, is_file = root.is_dir(), root.is_file()
        exists = is_folder or is_file or root.exists()
    except (OSError, ValueError) as err:
        raise DataError(f"{root}: cannot be opened ({err})") from err
    if not exists:
        raise DataError(f"{root}: no such folder or .npz file")
    if is_folder:
        return _read_folder(root, max_images, seed, limits)
    if is_file and root.suffix.lower() == ".npz":
        return _read_npz(root, max_images, seed, limits)
    raise DataError(f"{root} is a file; expected a folder of pictures or an .npz")


def _read_folder(root: Path, max_images: int | None, seed: int, limits: ImageLimits) -> CleanSet:
    listing = list_folder(root, limits)
    digests = [hashlib.sha256(content).hexdigest() for content in listing.extra]
    reasons: list[str] = []

    def load(index: int) -> np.ndarray | None:
        item = listing.items[index]
        try:
            content = read_limited(item.path, limits.file_bytes)
            pixels = decode_image(content, limits)
        except DataError as err:
            _log.debug("%r skipped: %s", item.name, err)
            reasons.append(str(err))
            return None
        digests.append(hashlib.sha256(content).hexdigest())
        return pixels

    names = tuple(item.name for item in listing.items)
    groups = [item.folder for item in listing.items]
    chosen, images, broken = _choose(names, groups, load, max_images, seed)
    if not images:
        raise DataError(f"{root}: none of its {len(names)} pictures can be used ({reasons[0]})")
    folders, labels = _labels([groups[i] for i in chosen], groups, broken, listing.folders)
    if listing.folders and len(folders) < 2:
        raise one_class_error(str(root), folders[0])
    return CleanSet(
        path=str(root),
        images=images,
        labels=labels,
        folders=folders,
        names=tuple(names[i] for i in chosen),
        available=len(names) - len(broken),
        skipped_files=listing.skipped_files + len(broken),
        sha256=_combined(digests),
        is_grey=all(is_grey(image) for image in images),
    )


def _read_npz(root: Path, max_images: int | None, seed: int, limits: ImageLimits) -> CleanSet:
    archive = read_archive(root, limits)
    count = len(archive.images)
    folders: tuple[str, ...] = ()
    groups = [0] * count
    if archive.labels is not None:
        folders = tuple(sorted(set(archive.labels), key=natural_key))
        if len(folders) == 1:
            raise one_class_error(str(root), folders[0])
        index = {folder: i for i, folder in enumerate(folders)}
        groups = [index[label] for label in archive.labels]
    names = tuple(f"images[{i}]" for i in range(count))
    chosen, images, broken = _choose(names, groups, archive.image, max_images, seed)
    _, labels = _labels([groups[i] for i in chosen], groups, broken, folders)
    return CleanSet(
        path=str(root),
        images=images,
        labels=labels,
        folders=folders,
        names=tuple(names[i] for i in chosen),
        available=count,
        skipped_files=0,
        sha256=_combined([archive.sha256]),
        is_grey=all(is_grey(image) for image in images),
    )


def _choose(
    names: Sequence[str],
    groups: Sequence[int],
    load: Callable[[int], np.ndarray | None],
    max_images: int | None,
    seed: int,
) -> tuple[list[int], tuple[np.ndarray, ...], set[int]]:
    """Take one image per group in turn; return indices, images, and the indices that failed."""
    queues: dict[int, deque[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: seeded_rank(seed, "choose", names[i])):
        queues.setdefault(groups[i], deque()).append(i)
    limit = len(names) if max_images is None else max_images
    taken: dict[int, np.ndarray] = {}
    broken: set[int] = set()
    turn = deque(queues[group] for group in sorted(queues))
    while turn and len(taken) < limit:
        queue = turn.popleft()
        while queue:
            i = queue.popleft()
            pixels = load(i)
            if pixels is not None:
                taken[i] = pixels
                turn.append(queue)
                break
            broken.add(i)
    order = sorted(taken)
    return order, tuple(taken[i] for i in order), broken


def _labels(
    chosen: Sequence[int], groups: Sequence[int], broken: set[int], folders: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Drop the folders all of whose pictures are broken, and number the others anew."""
    if not folders:
        return (), None
    usable = sorted({group for i, group in enumerate(groups) if i not in broken})
    index = {group: new for new, group in enumerate(usable)}
    labels = np.array([index[group] for group in chosen], dtype=np.int64)
    return tuple(folders[group] for group in usable), labels


def _combined(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(sorted(digests)).encode("ascii")).hexdigest()
