"""JSON Lines files of results: appended to by several processes, and whole after any kill."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

from modelaudit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from io import BufferedRandom
    from pathlib import Path


def key_of(row: Mapping[str, Any]) -> str:
    """Return a row's ``key`` as text that can be compared."""
    return json.dumps(row["key"], sort_keys=True)


def read_keys(path: Path) -> set[str]:
    """Return the keys of the whole lines of a file; none if there is no file.

    Raises:
        DataError: a whole line is no row.
    """
    if not path.exists():
        return set()
    with path.open("rb") as file:
        return _keys(file.read(), path)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Append the rows whose keys the file lacks, in one write, and sync it; return how many.

    A last line that a kill left torn is cut off first. Other processes may append too.

    Raises:
        DataError: a whole line of the file is no row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = _cut(file)
        there = _keys(content, path)
        lines = []
        for row in rows:
            key = key_of(row)
            if key not in there:
                there.add(key)
                lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        file.write("".join(lines).encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    return len(lines)


def _cut(file: BufferedRandom) -> bytes:
    """Cut a torn last line off and return what is left."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
        file.seek(whole)
    return content[:whole]


def _keys(content: bytes, path: Path) -> set[str]:
    keys = set()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            keys.add(key_of(json.loads(line)))
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(
                f"expected a result in line {number} of {str(path)!r}, found {err!r}; "
                "remove the line or choose another file"
            ) from err
    return keys
