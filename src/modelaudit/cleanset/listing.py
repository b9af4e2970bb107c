"""Finds a folder's pictures and their labels without opening them."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelaudit.cleanset.images import ImageLimits, image_suffixes
from modelaudit.errors import DataError

#: File that labels a flat folder.
LABELS_FILE = "labels.csv"

_HEADER = ["filename", "label"]

#: Largest ``labels.csv``, in bytes.
_LABELS_BYTES = 256 * 2**20

#: Names of a dataset's parts, which are no classes.
_PARTS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One picture's file.

    Attributes:
        name: path relative to the folder, with ``/``.
        path: where to open it.
        folder: index into `Listing.folders`, 0 if unlabelled.
    """

    name: str
    path: Path
    folder: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a folder offers.

    Attributes:
        items: the pictures.
        folders: class names in natural order; empty if unlabelled.
        skipped_files: files that are no pictures, are hidden, or are named by no or by a missing
            row.
        extra: contents of further files that were read (``labels.csv``).
    """

    items: tuple[Item, ...]
    folders: tuple[str, ...]
    skipped_files: int
    extra: tuple[bytes, ...] = ()


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts ``"class2"`` before ``"class10"``."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    # The text itself last keeps "1" and "01" apart, so that the order never depends on the file
    # system.
    return (
        *((0, int(p[:400]), "") if p[0] in "0123456789" else (1, 0, p) for p in parts),
        (-1, 0, text),
    )


def list_folder(root: Path, limits: ImageLimits) -> Listing:
    """List class folders, a folder with ``labels.csv``, or a folder of unlabelled pictures.

    Pictures lie directly in a class folder or one folder deeper. Names that start with a dot are
    skipped. Symbolic links in class folders are followed; rows of ``labels.csv`` may not leave the
    folder.

    Raises:
        DataError: the folder cannot be read, holds no picture, only one class, a dataset's parts
            instead of classes, more files than the limit, or a ``labels.csv`` that is not what it
            should be.
    """
    suffixes = image_suffixes()
    scan = _Scan(limits.files)
    files, directories = scan.entries(root)
    if any(entry.name == LABELS_FILE for entry in files):
        return _list_rows(root, files, limits)
    flat = [entry for entry in files if _is_picture(entry, suffixes)]
    found: dict[str, list[tuple[str, Path]]] = {}
    for directory in directories:
        inner, deeper = scan.entries(Path(directory.path))
        members = [(f"{directory.name}/{e.name}", e) for e in inner]
        for sub in deeper:
            lowest, unseen = scan.entries(Path(sub.path))
            members += [(f"{directory.name}/{sub.name}/{e.name}", e) for e in lowest]
            scan.skipped += len(unseen)
        pictures = [(name, Path(e.path)) for name, e in members if _is_picture(e, suffixes)]
        scan.skipped += len(members) - len(pictures)
        if pictures:
            found[directory.name] = pictures
    if not found:
        scan.skipped += len(files) - len(flat)
        if not flat:
            raise DataError(
                f"{root}: expected class folders with pictures, found none "
                f"({scan.skipped} other files); give one folder per class, or a folder of pictures"
            )
        items = tuple(Item(name=e.name, path=Path(e.path), folder=0) for e in flat)
        return Listing(items=items, folders=(), skipped_files=scan.skipped)
    folders = tuple(sorted(found, key=natural_key))
    if all(name.lower() in _PARTS for name in folders):
        raise DataError(
            f"{root}: expected one folder per class, found a dataset's parts {list(folders)!r}; "
            "give one of them"
        )
    if len(folders) == 1:
        raise one_class_error(str(root), folders[0])
    items = tuple(
        Item(name=name, path=path, folder=index)
        for index, folder in enumerate(folders)
        for name, path in found[folder]
    )
    return Listing(items=items, folders=folders, skipped_files=scan.skipped + len(files))


def one_class_error(path: str, name: str) -> DataError:
    """Return the error for a clean set whose pictures all have one label."""
    return DataError(
        f"{path}: expected pictures of at least 2 classes, found 1 ({name!r}); "
        "add the other classes, or give a folder of pictures alone if they are unlabelled"
    )


class _Scan:
    """Lists directories and counts what it saw."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen = 0
        self.skipped = 0

    def entries(self, folder: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """Return a folder's regular files and its directories, by name; skip hidden ones."""
        files: list[os.DirEntry[str]] = []
        directories: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self.seen += 1
                    if self.seen > self.limit:
                        raise DataError(
                            f"{folder}: more than {self.limit} files; give a smaller folder"
                        )
                    if entry.name.startswith("."):
                        self.skipped += 1
                    elif entry.is_dir():
                        directories.append(entry)
                    elif entry.is_file():
                        files.append(entry)
                    else:
                        self.skipped += 1
        except OSError as err:
            raise DataError(f"{folder}: cannot be listed ({err.strerror or err})") from err
        return sorted(files, key=lambda e: e.name), sorted(directories, key=lambda e: e.name)


def _is_picture(entry: os.DirEntry[str], suffixes: frozenset[str]) -> bool:
    return Path(entry.name).suffix.lower() in suffixes


def _list_rows(root: Path, files: list[os.DirEntry[str]], limits: ImageLimits) -> Listing:
    content = read_limited(root / LABELS_FILE, _LABELS_BYTES)
    rows = _rows(root, content, limits)
    base = Path(os.path.realpath(root))
    labels = tuple(sorted(set(rows.values()), key=natural_key))
    index = {label: i for i, label in enumerate(labels)}
    items: list[Item] = []
    for name, label in rows.items():
        target = Path(os.path.realpath(base / name))
        if not target.is_relative_to(base):
            raise DataError(
                f"{root / LABELS_FILE}: {name!r} leads out of the folder; name files inside it"
            )
        if target.is_file():
            items.append(Item(name=name, path=target, folder=index[label]))
    if not items:
        raise DataError(
            f"{root / LABELS_FILE}: none of its {len(rows)} files exists; "
            "check the column 'filename'"
        )
    present = {item.folder for item in items}
    if len(present) == 1:
        raise one_class_error(str(root), labels[present.pop()])
    listed = {item.name for item in items}
    unlisted = sum(entry.name not in listed and entry.name != LABELS_FILE for entry in files)
    return Listing(
        items=tuple(items),
        folders=labels,
        skipped_files=len(rows) - len(items) + unlisted,
        extra=(content,),
    )


def _rows(root: Path, content: bytes, limits: ImageLimits) -> dict[str, str]:
    where = root / LABELS_FILE
    rows: dict[str, str] = {}
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [cell.strip() for cell in next(reader, [])]
        if header != _HEADER:
            raise DataError(
                f"{where}: expected the header 'filename,label', found {','.join(header)[:80]!r}"
            )
        for row in reader:
            if not row:
                continue
            line = reader.line_num
            if len(row) != len(_HEADER) or not row[0].strip() or not row[1].strip():
                raise DataError(
                    f"{where} line {line}: expected 'filename,label', found {row[:4]!r}"
                )
            name = _relative_name(row[0].strip(), f"{where} line {line}")
            if name in rows:
                raise DataError(f"{where} line {line}: {name!r} is labelled twice; remove one row")
            if len(rows) >= limits.files:
                raise DataError(f"{where}: more than {limits.files} rows; give a smaller folder")
            rows[name] = row[1].strip()
    except UnicodeDecodeError as err:
        raise DataError(f"{where}: expected UTF-8 text, found other bytes at {err.start}") from err
    except csv.Error as err:
        raise DataError(f"{where} line {reader.line_num}: not a CSV file ({err})") from err
    if not rows:
        raise DataError(f"{where}: expected rows 'filename,label', found none")
    return rows


def _relative_name(name: str, where: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]:
        raise DataError(f"{where}: {name!r} leads out of the folder; name files inside it")
    return str(path)


def read_limited(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes.

    Raises:
        DataError: the file cannot be read, is a device or pipe, or is larger than `limit` bytes.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: expected a regular file, found a folder, device or pipe")
            content = file.read(limit + 1)
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror or err})") from err
    if len(content) > limit:
        raise DataError(f"{path}: larger than the limit of {limit} bytes")
    return content
