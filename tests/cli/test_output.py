from __future__ import annotations

import errno
import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from modelaudit.cli import run
from modelaudit.errors import CorruptCheckpointError
from modelaudit.results import ExitStatus
from tests.helpers.reports import FakeEngine, backdoored

Capture = pytest.CaptureFixture[str]


def full_disk(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullStream(io.StringIO):
    """A stdout that leads to a full disk."""

    def flush(self) -> None:
        full_disk()


def everything_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.mark.parametrize("form", ["terminal", "json"])
def test_the_file_gets_the_report_and_stdout_the_short_verdict(
    engine: FakeEngine, inputs: list[str], folder: Path, capsys: Capture, form: str
) -> None:
    engine.outcome = backdoored()
    target = folder / "report"
    assert run([*inputs, "--format", form, "--output", str(target)]) == ExitStatus.BACKDOORED
    out, err = capsys.readouterr()
    assert out.startswith("backdoored: a backdoor leads from every class to label 3 (cat)\n")
    assert out.count("\n") == 3
    assert err == ""
    text = target.read_text(encoding="utf-8")
    assert "\x1b" not in text
    if form == "json":
        assert json.loads(text)["verdict"] == "backdoored"
    else:
        assert "BACKDOORED" in text
    assert everything_in(folder) == {"report"}


def test_a_failed_scan_writes_its_report_too(
    engine: FakeEngine, inputs: list[str], folder: Path, capsys: Capture
) -> None:
    engine.outcome = CorruptCheckpointError("model.pt is empty (0 bytes)")
    target = folder / "report.json"
    target.write_text("an older report")
    assert run([*inputs, "--format", "json", "--output", str(target)]) == ExitStatus.UNREADABLE
    out, err = capsys.readouterr()
    assert out.startswith("unreadable: ")
    assert err == "modelaudit: model.pt is empty (0 bytes)\n"
    assert json.loads(target.read_text(encoding="utf-8"))["exit_code"] == ExitStatus.UNREADABLE


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing/report", "cannot be written: No such file or directory"),
        ("model.pt/report", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
        ("out", "is a directory, expected a file name"),
        ("null", "is a device or a pipe"),
        ("circle", "is a symbolic link to itself"),
        ("model.pt", "would overwrite an input"),
        ("link", "would overwrite an input"),
        ("clean/x", "lies in a folder that is read"),
    ],
)
def test_unusable_paths_are_refused_before_any_work(
    engine: FakeEngine,
    inputs: list[str],
    folder: Path,
    capsys: Capture,
    place: str,
    reason: str,
) -> None:
    base = folder.parent
    (base / "null").symlink_to(os.devnull)
    (base / "circle").symlink_to(base / "circle")
    os.link(base / "model.pt", base / "link")
    before = everything_in(base) | everything_in(base / "clean")
    status = run([*inputs, "--format", "json", "--output", str(base / place)])
    assert status == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("modelaudit: --output ")
    assert reason in err
    assert err.count("\n") == 1
    assert engine.requests == []
    assert everything_in(base) | everything_in(base / "clean") == before
    assert (base / "model.pt").read_bytes() == b"weights"


def test_a_folder_without_write_permission_is_refused_before_any_work(
    engine: FakeEngine,
    inputs: list[str],
    folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("modelaudit.cli.output.os.open", denied)
    assert run([*inputs, "--output", str(folder / "report")]) == ExitStatus.USAGE
    monkeypatch.undo()
    assert "cannot be written: Permission denied; choose another" in capsys.readouterr().err
    assert engine.requests == []


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("form", ["terminal", "json"])
def test_a_full_disk_leaves_the_older_file_and_nothing_half_written(
    engine: FakeEngine,
    inputs: list[str],
    folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    form: str,
) -> None:
    engine.outcome = backdoored()
    target = folder / "report"
    target.write_text("an older report")
    monkeypatch.setattr(f"modelaudit.cli.output.os.{call}", full_disk)
    status = run([*inputs, "--format", form, "--output", str(target)])
    monkeypatch.undo()
    assert status == ExitStatus.OUTPUT_FAILED
    out, err = capsys.readouterr()
    assert "No space left on device; nothing was written; the verdict was backdoored" in err
    assert err.count("\n") == 1
    assert target.read_text() == "an older report"
    assert everything_in(folder) == {"report"}
    if form == "json":
        document = json.loads(out)
        assert document["verdict"] == "error"
        assert document["exit_code"] == ExitStatus.OUTPUT_FAILED
        assert document["target_labels"] == [3]
        assert document["scanners"]
    else:
        assert out.startswith("error: ")


def test_a_folder_that_vanished_during_the_scan_is_an_output_failure(
    engine: FakeEngine, inputs: list[str], folder: Path
) -> None:
    def scan(progress: object) -> object:
        folder.rmdir()
        return backdoored()

    engine.outcome = scan  # type: ignore[assignment] # a function of the progress
    assert run([*inputs, "--output", str(folder / "r")]) == ExitStatus.OUTPUT_FAILED


def test_a_full_stdout_is_an_output_failure_without_a_traceback(
    engine: FakeEngine, inputs: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.outcome = backdoored()
    monkeypatch.setattr(sys, "stdout", FullStream())
    assert run(inputs) == ExitStatus.OUTPUT_FAILED
    err = capsys.readouterr().err
    assert "could not be written to stdout: No space left on device" in err
    assert "the verdict was backdoored" in err


def test_file_and_stdout_both_full_is_still_status_6(
    engine: FakeEngine,
    inputs: list[str],
    folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.outcome = backdoored()
    monkeypatch.setattr("modelaudit.cli.output.os.fsync", full_disk)
    monkeypatch.setattr(sys, "stdout", FullStream())
    assert run([*inputs, "--output", str(folder / "r")]) == ExitStatus.OUTPUT_FAILED
    assert capsys.readouterr().err.count("\n") == 2
    assert everything_in(folder) == set()


def test_a_link_to_a_file_is_followed_not_replaced(
    engine: FakeEngine, inputs: list[str], folder: Path
) -> None:
    real = folder / "real"
    real.write_text("an older report")
    link = folder / "link"
    link.symlink_to(real)
    run([*inputs, "--output", str(link)])
    assert link.is_symlink()
    assert "CLEAN" in real.read_text(encoding="utf-8")


def test_the_umask_decides_who_may_read_the_report(
    engine: FakeEngine, inputs: list[str], folder: Path
) -> None:
    old = os.umask(0o027)
    try:
        run([*inputs, "--output", str(folder / "r")])
    finally:
        os.umask(old)
    assert stat.S_IMODE((folder / "r").stat().st_mode) == 0o640
