from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from modelaudit.cli.streams import complain, is_terminal, silence, write_stdout
from modelaudit.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path


def test_what_the_encoding_cannot_hold_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_stdout("naïve\n")
    assert raw.getvalue() == b"na\\xefve\n"


def test_a_closed_stdout_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="stdout is closed; use --output FILE"):
        write_stdout("report\n")


def test_a_closed_stderr_is_nobody_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    complain("no such file")


def test_a_broken_stderr_is_nobody_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    complain("no such file")


def test_a_reader_that_left_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    write_stdout("report\n")


def test_a_silenced_stream_swallows_what_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="utf-8") as stream:
        silence(stream)
        stream.write("lost")
    assert path.read_text(encoding="utf-8") == ""


def test_a_missing_stream_is_no_terminal() -> None:
    assert not is_terminal(None)
    assert not is_terminal(io.StringIO())
