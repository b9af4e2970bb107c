"""Files that are there whole or not at all, however the process ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a name of its own, sync it, and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def remove_partials(folder: Path, stem: str) -> None:
    """Remove what killed processes left of the files ``stem.*`` in a folder.

    Only whoever holds the claim on these files may call this: a living process's partial file would
    go too.
    """
    for partial in folder.glob(f"{stem}.*.partial"):
        partial.unlink(missing_ok=True)
