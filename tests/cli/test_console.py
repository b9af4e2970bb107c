from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest
from rich.progress import Progress as Bars

from modelaudit.cli.console import RichProgress, console
from modelaudit.progress import NoProgress

LOG = logging.getLogger("modelaudit.test")


class Terminal(io.StringIO):
    """A stderr at which a person looks."""

    def isatty(self) -> bool:
        return True


def put_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Lead stderr to a terminal; not a fixture, because pytest sets stderr again after those."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_a_terminal_shows_a_bar_per_task_with_the_remaining_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = put_terminal(monkeypatch)
    with (
        console(is_quiet=False, is_debug=False) as progress,
        progress.task("ban [3/4]\x1b[2J", total=4) as task,
    ):
        task.advance()
    text = terminal.getvalue()
    assert "ban [3/4]\\x1b" in text
    assert "-:--:--" in text


def test_a_task_advances_and_is_gone_at_its_end() -> None:
    bars = Bars(auto_refresh=False, disable=True)
    progress = RichProgress(bars)
    with progress.task("ban", total=4) as task:
        task.advance()
        task.advance(2)
        (shown,) = bars.tasks
        assert (shown.completed, shown.total) == (3, 4)
    assert bars.tasks == []


def test_a_task_of_unknown_length_has_no_end() -> None:
    bars = Bars(auto_refresh=False, disable=True)
    with RichProgress(bars).task("fit", total=0):
        assert bars.tasks[0].total is None


@pytest.mark.parametrize("reason", ["quiet", "CI", "pipe"])
def test_no_bars_and_no_logs_when_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    terminal = put_terminal(monkeypatch)
    if reason == "CI":
        monkeypatch.setenv("CI", "true")
    if reason == "pipe":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
    with console(is_quiet=reason == "quiet", is_debug=False) as progress:
        assert isinstance(progress, NoProgress)
        with progress.task("ban", total=4) as task:
            task.advance()
        LOG.warning("a layer was left out")
    assert terminal.getvalue() == ""


def test_a_terminal_shows_warnings_but_no_details(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = put_terminal(monkeypatch)
    with console(is_quiet=False, is_debug=False):
        LOG.info("a phase")
        LOG.warning("key %s\x1b[2J", "x\n")
    text = terminal.getvalue()
    assert "WARNING modelaudit.test: key x\\n\\x1b[2J" in text
    assert "a phase" not in text


def test_debug_logs_details_wherever_stderr_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = put_terminal(monkeypatch)
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with console(is_quiet=False, is_debug=True):
        LOG.debug("a step")
    assert "DEBUG modelaudit.test: a step\n" in terminal.getvalue()


def test_handlers_levels_and_warning_hooks_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_terminal(monkeypatch)
    root, ours = logging.getLogger(), logging.getLogger("modelaudit")
    before = (list(root.handlers), ours.level, warnings.showwarning)
    with pytest.raises(RuntimeError), console(is_quiet=False, is_debug=True):
        raise RuntimeError
    assert (list(root.handlers), ours.level, warnings.showwarning) == before
