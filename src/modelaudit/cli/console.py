"""What stderr shows while a command works: progress and logs for a person, nothing for a pipe."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from modelaudit.cli.streams import is_terminal, write_stderr
from modelaudit.progress import NoProgress
from modelaudit.report.words import safe, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TextIO

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from modelaudit.progress import Progress, Task


@contextmanager
def console(*, is_quiet: bool, is_debug: bool) -> Generator[Progress]:
    """Show progress and logs on stderr as long as the context lasts.

    Bars and warnings appear only on a terminal, and neither with `is_quiet` nor where ``CI`` is
    set. With `is_debug` all logs and the warnings of other libraries appear wherever stderr leads.
    Handlers, filters and bars are gone afterwards.

    Args:
        is_quiet: whether the user asked for silence.
        is_debug: whether the user asked for everything.

    Yields:
        The progress to pass on.
    """
    is_live = is_terminal(sys.stderr) and not is_quiet and not os.environ.get("CI")
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("default")
        hook: Callable[..., None] = _show_warning if is_debug else _drop_warning
        warnings.showwarning = hook
        progress: Progress = NoProgress()
        if is_live:
            bars = _bars()
            stack.enter_context(bars)
            progress = RichProgress(bars)
        stack.enter_context(_logs(is_live=is_live, is_debug=is_debug))
        yield progress


class RichProgress:
    """One bar per piece of work, with the time that it still needs.

    Args:
        bars: Rich's display, already started by whoever made it.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextmanager
    def task(self, name: str, total: int) -> Generator[Task]:
        """Show a bar called `name` until the context ends; without a `total` it only moves."""
        from rich.markup import escape

        identity = self._bars.add_task(escape(safe(name, 60)), total=total or None)
        try:
            yield _RichTask(self._bars, identity)
        finally:
            self._bars.remove_task(identity)


class _RichTask:
    def __init__(self, bars: Bars, identity: TaskID) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, amount: int = 1) -> None:
        """Move the bar by `amount` units."""
        self._bars.advance(self._identity, amount)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        refresh_per_second=5,
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - the hook's signature
    line: str | None = None,  # noqa: ARG001 - the hook's signature
) -> None:
    write_stderr(f"{sentence(f'{filename}:{lineno}: {category.__name__}: {message}')}\n")


def _drop_warning(*details: object) -> None:
    """Swallow another library's warning: it means nothing to whoever scans a model."""


class _SafeFormatter(logging.Formatter):
    """One escaped line per record: a logged key or class name cannot write to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        return sentence(super().formatMessage(record))


@contextmanager
def _logs(*, is_live: bool, is_debug: bool) -> Generator[None]:
    """Lead log records to stderr or nowhere; without a handler Python would print some itself."""
    root = logging.getLogger()
    ours = logging.getLogger("modelaudit")
    handler: logging.Handler = logging.NullHandler()
    if is_live or is_debug:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_SafeFormatter("%(levelname)s %(name)s: %(message)s"))
        handler.setLevel(logging.DEBUG if is_debug else logging.WARNING)
    level = ours.level
    root.addHandler(handler)
    if is_debug:
        ours.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
