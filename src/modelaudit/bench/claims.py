"""Claims of processes that work in one folder; the kernel frees them when a process ends."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def claim(folder: Path, name: str, *, wait: bool = False) -> Generator[bool]:
    """Claim a name until the context ends and say whether it is ours.

    Args:
        folder: the population's folder; the claim is a locked file in its ``locks``.
        name: what is claimed.
        wait: wait until whoever holds it is done.
    """
    path = folder / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
