"""Which output of the model belongs to which class folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelaudit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A folder's majority prediction counts from this share on.
_MAJORITY = 0.5

#: A folder with fewer images does not contradict the chosen map.
_MIN_CONTRADICTION_IMAGES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMap:
    """Output index per folder.

    Attributes:
        rule: how it came about, in words for the report.
        outputs: output of each folder; injective.
        is_given: whether the user gave it.
        has_names: whether the folders' names name the classes.
    """

    rule: str
    outputs: tuple[int, ...]
    is_given: bool = False
    has_names: bool = True

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Translate folder indices ``(N,)`` into outputs ``(N,)``, int64."""
        return np.take(np.array(self.outputs, dtype=np.int64), labels)


def given_map(folders: Sequence[str], classes: Sequence[str], num_classes: int) -> LabelMap:
    """Return the map of a class file: line i names output i.

    Raises:
        DataError: the file has another number of lines than the model outputs, names a class twice,
            or lacks a folder.
    """
    if len(classes) != num_classes:
        raise DataError(
            f"the model has {num_classes} outputs, the class file {len(classes)} names; "
            "give one per output"
        )
    index = {name: i for i, name in enumerate(classes)}
    if len(index) != len(classes):
        twice = next(name for i, name in enumerate(classes) if index[name] != i)
        raise DataError(f"the class file names {twice!r} twice; give each output its own name")
    missing = [name for name in folders if name not in index]
    if missing:
        raise DataError(
            f"the class file lacks the clean folder's class {missing[0]!r}; name every folder in it"
        )
    return LabelMap(
        rule="class file", outputs=tuple(index[name] for name in folders), is_given=True
    )


def integer_map(folders: Sequence[str], num_classes: int) -> LabelMap | None:
    """Return the map of folders whose names are numbers: the output, or the output plus one.

    The names count from one if the largest possible one is there and zero is not. Returns None if a
    name is no number or out of range.

    Raises:
        DataError: two names are the same number.
    """
    if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in folders):
        return None
    numbers = [int(name) for name in folders]
    if len(set(numbers)) != len(numbers):
        raise DataError(
            f"two folders among {sorted(folders)[:6]!r} mean the same output; merge them"
        )
    if max(numbers) < num_classes:
        return LabelMap(
            rule="folder names are the outputs", outputs=tuple(numbers), has_names=False
        )
    if max(numbers) == num_classes and min(numbers) >= 1:
        return LabelMap(
            rule="folder names are the outputs counted from one",
            outputs=tuple(n - 1 for n in numbers),
            has_names=False,
        )
    return None


def sorted_maps(folders: Sequence[str]) -> tuple[LabelMap, ...]:
    """Return the maps by sorted names: by code points, as training loaders sort, and naturally."""
    ranked = sorted(folders)
    by_code = LabelMap(
        rule="sorted folder names", outputs=tuple(ranked.index(name) for name in folders)
    )
    natural = LabelMap(
        rule="folder names in natural order", outputs=tuple(range(len(folders)))
    )  # `CleanSet.folders` come in it
    return (by_code,) if by_code.outputs == natural.outputs else (by_code, natural)


def majority_map(outputs: np.ndarray, labels: np.ndarray, num_folders: int) -> LabelMap | None:
    """Return the map that takes each folder to the output that most of its images lead to.

    Args:
        outputs: predicted output per image. Shape ``(N,)``, int64.
        labels: folder per image. Shape ``(N,)``, int64.
        num_folders: how many folders there are.

    Returns:
        None if a folder has no image, its majority is less than half, or two folders share an
        output.
    """
    found: list[int] = []
    for folder in range(num_folders):
        members = outputs[labels == folder]
        if not members.size:
            return None
        counts = np.bincount(members)
        best = int(counts.argmax())
        if counts[best] < _MAJORITY * members.size or best in found:
            return None
        found.append(best)
    return LabelMap(rule="each folder's majority prediction", outputs=tuple(found))


def distinct_agreement(outputs: np.ndarray, labels: np.ndarray) -> int:
    """Count the images that agree with a majority which no other folder shares.

    A cheap stand-in for the accuracy while the map is unknown: a constant prediction scores one
    folder at most.
    """
    best: dict[int, int] = {}
    for folder in np.unique(labels):
        counts = np.bincount(outputs[labels == folder])
        top = int(counts.argmax())
        best[top] = max(best.get(top, 0), int(counts[top]))
    return sum(best.values())


def most_agreement(outputs: np.ndarray, labels: np.ndarray) -> int:
    """Return a count of images that no injective map of folders to outputs can exceed.

    Each folder gives at most its majority, and each output takes at most its largest folder. A
    constant prediction reaches one folder's images.
    """
    counts = np.zeros((int(labels.max()) + 1, int(outputs.max()) + 1), dtype=np.int64)
    np.add.at(counts, (labels, outputs), 1)
    return int(min(counts.max(axis=1).sum(), counts.max(axis=0).sum()))


def contradictions(
    label_map: LabelMap, outputs: np.ndarray, labels: np.ndarray, folders: Sequence[str]
) -> tuple[str, ...]:
    """Name the folders most of whose images lead to another output than the map says."""
    notes: list[str] = []
    for folder, expected in enumerate(label_map.outputs):
        members = outputs[labels == folder]
        if members.size < _MIN_CONTRADICTION_IMAGES:
            continue
        counts = np.bincount(members)
        top = int(counts.argmax())
        share = float(counts[top] / members.size)
        if top != expected and share > _MAJORITY:
            notes.append(
                f"{share:.0%} of the images in {folders[folder]!r} lead to output {top}, "
                f"not to {expected}; check the folder's label"
            )
    return tuple(notes)
