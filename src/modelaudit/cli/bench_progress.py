"""What stderr shows while a population is trained or scanned: a bar, or a line per event."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from modelaudit.cli.console import console
from modelaudit.cli.streams import is_terminal, write_stderr
from modelaudit.report.words import safe, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Status(Protocol):
    """What is shown; see `modelaudit.bench.tracker.Status`."""

    @property
    def done(self) -> int:
        """Finished units."""

    @property
    def total(self) -> int:
        """All units."""

    @property
    def models(self) -> int:
        """Finished models."""

    @property
    def all_models(self) -> int:
        """All models."""

    @property
    def remaining(self) -> str:
        """What is left, in words."""

    @property
    def said(self) -> str:
        """What happened last."""

    @property
    def line(self) -> str:
        """All of it in one line."""


@contextmanager
def display(*, is_quiet: bool, is_debug: bool) -> Generator[Callable[[Status], None]]:
    """Show how far a long run is, as long as the context lasts.

    On a terminal it is a bar with the models that are done and the time that is left; elsewhere a
    line per event, so that a log of a night's run can be read.

    Args:
        is_quiet: whether the user asked for silence.
        is_debug: whether the user asked for everything.

    Yields:
        What to call with each status.
    """
    is_live = is_terminal(sys.stderr) and not os.environ.get("CI")
    with console(is_quiet=True, is_debug=is_debug):
        if is_quiet:
            yield lambda _: None
        elif is_live:
            with _bar() as show:
                yield show
        else:
            yield _write_line


def _write_line(status: Status) -> None:
    write_stderr(f"{time.strftime('%H:%M:%S')} {sentence(status.line)}\n")


@contextmanager
def _bar() -> Generator[Callable[[Status], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    bars = Progress(
        TextColumn("{task.fields[models]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[remaining]}"),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        refresh_per_second=5,
    )
    with bars:
        task = bars.add_task("", total=None, models="", remaining="")

        def show(status: Status) -> None:
            bars.update(
                task,
                completed=status.done,
                total=status.total,
                description=escape(safe(status.said, 60)),
                models=f"{status.models}/{status.all_models} models",
                remaining=f"{status.remaining} left" if status.remaining else "",
                refresh=True,
            )

        yield show
