"""Progress is an object that is passed in; the default does nothing: libraries show no spinner."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int = 1) -> None:
        """Report that `amount` of the task's units are done."""


class Progress(Protocol):
    """Whoever wants to show progress implements this."""

    @contextmanager
    def task(self, name: str, total: int) -> Generator[Task]:
        """Open a task of `total` units called `name`; it ends with the context."""
        ...  # a protocol has no body


class _SilentTask:
    def advance(self, amount: int = 1) -> None:
        """Say nothing."""


class NoProgress:
    """Shows nothing."""

    @contextmanager
    def task(self, name: str, total: int) -> Generator[Task]:  # noqa: ARG002 - the protocol's signature
        """Open a task that nobody watches."""
        yield _SilentTask()
