"""The other tests of the command line use a fake engine; these hold it to the real one."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from modelaudit import engine
from modelaudit.cli import run
from modelaudit.cli.outcome import Terminated, outcome_of
from modelaudit.errors import ConfigError, OutputError, PluginError
from modelaudit.results import ExitStatus
from tests.helpers.reports import FakeEngine, FakeRequest, clean

Capture = pytest.CaptureFixture[str]


def test_the_fake_request_has_the_real_ones_fields_and_defaults() -> None:
    real = {f.name: f.default for f in dataclasses.fields(engine.ScanRequest)}
    assert {f.name: f.default for f in dataclasses.fields(FakeRequest)} == real


@pytest.mark.parametrize("name", ["scan", "failure_report", "list_components"])
def test_the_fake_functions_take_what_the_real_ones_take(name: str) -> None:
    fake = inspect.signature(getattr(FakeEngine(clean()), name))
    assert list(fake.parameters) == list(inspect.signature(getattr(engine, name)).parameters)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("x"),
        PluginError("x"),
        OutputError("x"),
        KeyboardInterrupt(),
        RuntimeError("x"),
    ],
)
def test_engine_and_command_line_agree_on_what_both_may_meet(error: BaseException) -> None:
    request = engine.ScanRequest(checkpoint=Path("m.pt"), data=Path("clean"))
    report = engine.failure_report(request, error)
    outcome = outcome_of(error)
    assert report.verdict.verdict is outcome.verdict
    assert report.verdict.reason_code == outcome.code
    assert report.verdict.reason == outcome.message
    assert report.exit_status == outcome.exit_status


def test_a_termination_is_an_interruption_to_the_engine() -> None:
    request = engine.ScanRequest(checkpoint=Path("m.pt"), data=Path("clean"))
    assert engine.failure_report(request, Terminated()).exit_status == ExitStatus.INTERRUPTED


def test_a_missing_checkpoint_is_one_sentence_and_one_document(
    tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "model.pt"
    arguments = ["scan", str(path), "--data", str(tmp_path), "--device", "cpu"]
    assert run([*arguments, "--format", "json"]) == ExitStatus.UNREADABLE
    out, err = capsys.readouterr()
    assert err == f"modelaudit: {path}: no such file\n"
    assert json.loads(out)["verdict"] == "unreadable"


def test_the_real_list_is_json_and_text(capsys: Capture) -> None:
    assert run(["list", "--format", "json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["scanners", "repairs", "attacks"]
    assert run(["list"]) == 0
    assert capsys.readouterr().out.startswith("scanners\n")
