from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelaudit.cli import run
from modelaudit.errors import (
    ConfigError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
)
from modelaudit.preprocessing import PRESETS, Preprocessing
from modelaudit.registry import Registry
from modelaudit.results import ExitStatus, Verdict
from tests.helpers.reports import FakeEngine, all_reports, backdoored, clean, failure, inconclusive

if TYPE_CHECKING:
    from modelaudit.progress import Progress
    from modelaudit.results import ScanReport

Capture = pytest.CaptureFixture[str]


def register(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Register these scanner ids and no others."""
    from importlib.metadata import EntryPoint

    points = [EntryPoint(i, "x:Y", "modelaudit.scanners") for i in ids]
    monkeypatch.setattr(
        "modelaudit.cli.scan_options.Registry", lambda group: Registry(group, points)
    )


@pytest.mark.parametrize(
    ("report", "status"), [(clean(), 0), (backdoored(), 1), (inconclusive(), 5)]
)
def test_the_exit_status_is_the_verdicts(
    engine: FakeEngine, inputs: list[str], capsys: Capture, report: ScanReport, status: int
) -> None:
    engine.outcome = report
    assert run(inputs) == status
    out, err = capsys.readouterr()
    assert report.verdict.verdict.upper() in out
    assert err == ""


@pytest.mark.parametrize("report", [clean(), backdoored(), inconclusive()])
def test_stdout_is_one_json_document_and_nothing_else(
    engine: FakeEngine, inputs: list[str], capsys: Capture, report: ScanReport
) -> None:
    engine.outcome = report
    status = run([*inputs, "--format", "json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == status
    assert err == ""


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UnsafeCheckpointError("REFUSED: loading x would call os.system"), 3, "REFUSED: loading"),
        (CorruptCheckpointError("model.pt: no such file"), 4, "model.pt: no such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("oops"), 70, "internal error: RuntimeError: oops; this is a bug"),
        (SystemExit(0), 70, "internal error: SystemExit: 0"),
        (BrokenPipeError("x"), 70, "internal error: BrokenPipeError"),
    ],
)
def test_failures_are_one_sentence_and_with_json_one_document(
    engine: FakeEngine,
    inputs: list[str],
    capsys: Capture,
    error: BaseException,
    status: int,
    sentence: str,
) -> None:
    engine.outcome = error
    assert run(inputs) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"modelaudit: {sentence}")
    assert err.count("\n") == 1
    assert run([*inputs, "--format", "json"]) == status
    out, again = capsys.readouterr()
    assert json.loads(out)["exit_code"] == status
    assert again == err


def test_a_usage_error_of_the_engine_leaves_stdout_empty(
    engine: FakeEngine, inputs: list[str], capsys: Capture, tmp_path: Path
) -> None:
    engine.outcome = ConfigError("ban.epsilon must be above 0, got -1.0")
    target = tmp_path / "report.json"
    assert run([*inputs, "--format", "json", "--output", str(target)]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "modelaudit: ban.epsilon must be above 0, got -1.0\n"
    assert not target.exists()


def test_the_traceback_appears_with_debug_only(
    engine: FakeEngine, inputs: list[str], capsys: Capture
) -> None:
    engine.outcome = RuntimeError("oops")
    assert run([*inputs, "--debug"]) == ExitStatus.BUG
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert err.splitlines()[-1] == (
        "modelaudit: internal error: RuntimeError: oops; "
        "this is a bug in modelaudit, report the trace"
    )


def test_a_hostile_message_stays_on_its_line(
    engine: FakeEngine, inputs: list[str], capsys: Capture
) -> None:
    engine.outcome = CorruptCheckpointError("no key '\x1b[2J\nmodelaudit: clean'")
    run(inputs)
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verdict", [Verdict.CLEAN, Verdict.INCONCLUSIVE, Verdict.REFUSED])
def test_a_verdict_that_contradicts_its_status_is_a_bug(
    engine: FakeEngine, inputs: list[str], capsys: Capture, verdict: Verdict
) -> None:
    engine.outcome = failure(verdict, ExitStatus.BACKDOORED)
    assert run([*inputs, "--format", "json"]) == ExitStatus.BUG
    assert json.loads(capsys.readouterr().out)["verdict"] == "error"


def test_a_failure_report_that_fails_is_a_bug_too(
    engine: FakeEngine, inputs: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object, error: BaseException) -> None:
        raise ValueError("again")

    engine.outcome = RuntimeError("oops")
    monkeypatch.setattr(engine, "failure_report", broken)
    assert run(inputs) == ExitStatus.BUG
    assert capsys.readouterr() == ("", "modelaudit: internal error: ValueError: again\n")


def test_all_options_reach_the_engine(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "ban", "dde")
    text = (
        "scan m.pt --data d --scanner ban@paper_code --scanner dde --set ban.epsilon=0.2 "
        "--set dde.name=a.b=c --weights ema "
        "--arch resnet18 --mean 0.5,0.4,0.3 --std 0.2,0.2,0.2 --input-size 32 "
        "--classes names.txt --max-images 100 --mixture mix --calibration a.json "
        "--calibration b.json --budget 30 --device cpu --seed 7 "
        "--alpha 0.01 --quiet"
    )
    assert run(text.split()) == 0
    (request,) = engine.requests
    assert vars(request) == {
        "checkpoint": Path("m.pt"),
        "data": Path("d"),
        "scanners": ("ban@paper_code", "dde"),
        "settings": (("ban", "epsilon", "0.2"), ("dde", "name", "a.b=c")),
        "weights": "ema",
        "arch": "resnet18",
        "preprocessing": Preprocessing(id="custom", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
        "input_size": 32,
        "classes": Path("names.txt"),
        "max_images": 100,
        "mixture": Path("mix"),
        "calibrations": (Path("a.json"), Path("b.json")),
        "budget_seconds": 30.0,
        "device": "cpu",
        "seed": 7,
        "alpha": 0.01,
    }


def test_defaults_leave_everything_to_the_engine(engine: FakeEngine, inputs: list[str]) -> None:
    run(inputs)
    (request,) = engine.requests
    assert request.scanners == ()
    assert request.settings == ()
    assert request.preprocessing is None
    assert request.weights is None
    assert request.arch is None
    assert request.max_images == 500
    assert request.budget_seconds == 120.0
    assert request.alpha == 0.05


def test_a_preset_is_chosen_by_name(engine: FakeEngine, inputs: list[str]) -> None:
    run([*inputs, "--preprocess", "half"])
    assert engine.requests[0].preprocessing == next(p for p in PRESETS if p.id == "half")


def test_an_infinite_budget_is_none(engine: FakeEngine, inputs: list[str]) -> None:
    run([*inputs, "--budget", "inf"])
    assert engine.requests[0].budget_seconds is None


@pytest.mark.parametrize(
    ("device", "is_available", "expected", "budget"),
    [
        ("auto", True, "cuda", None),
        ("auto", False, "cpu", 120.0),
        ("cuda", True, "cuda", None),
        ("cpu", True, "cpu", 120.0),
    ],
)
def test_the_device_is_resolved_and_decides_the_default_budget(
    engine: FakeEngine,
    inputs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    is_available: bool,
    expected: str,
    budget: float | None,
) -> None:
    fake_torch(monkeypatch, is_available=is_available)
    run([*inputs, "--device", device])
    (request,) = engine.requests
    assert (request.device, request.budget_seconds) == (expected, budget)


def fake_torch(monkeypatch: pytest.MonkeyPatch, *, is_available: bool) -> None:
    """Put a torch in place that has a CUDA device or has not."""
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: is_available)  # type: ignore[attr-defined] # a fake
    monkeypatch.setitem(sys.modules, "torch", torch)


def test_cuda_without_a_device_is_a_usage_error(
    engine: FakeEngine, inputs: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(monkeypatch, is_available=False)
    assert run([*inputs, "--device", "cuda", "--format", "json"]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("modelaudit: --device cuda: no CUDA device is available")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-images", "0"], "invalid value for '--max-images'"),
        (["--max-images", "many"], "invalid value for '--max-images'"),
        (["--seed", "-1"], "invalid value for '--seed'"),
        (["--alpha", "0"], "--alpha must lie above 0 and below 1, got 0.0"),
        (["--alpha", "nan"], "--alpha must lie above 0 and below 1, got nan"),
        (["--budget", "0"], "--budget expects seconds above 0 or inf, got 0.0"),
        (["--budget", "nan"], "--budget expects seconds above 0 or inf, got nan"),
        (["--mean", "0.5"], "--mean and --std belong together"),
        (["--std", "0.5"], "--mean and --std belong together"),
        (["--mean", "0.5", "--std", "a"], "--std expects numbers separated by commas"),
        (["--mean", "inf", "--std", "1"], "--mean expects finite numbers, got 'inf'"),
        (["--mean", "0", "--std", "0"], "preprocessing std must be positive"),
        (["--mean", "0", "--std", "1,1"], "preprocessing needs as many means as stds"),
        (["--preprocess", "half", "--mean", "0"], "--preprocess and --mean/--std exclude"),
        (["--preprocess", "cifar"], "--preprocess expects one of none, cifar10_0.2023"),
        (["--set", "ban"], "--set expects ID.FIELD=VALUE such as 'ban.epsilon=0.2', got 'ban'"),
        (["--set", "epsilon=3"], "--set expects ID.FIELD=VALUE"),
        (["--scanner", "bam"], "unknown scanner 'bam', registered are ban; did you mean 'ban'?"),
        (["--set", "bam.x=1"], "unknown scanner 'bam'"),
        (["--format", "xml"], "invalid value for '--format'"),
        (["--device", "tpu"], "invalid value for '--device'"),
        (["--unknown"], "no such option: --unknown"),
        (["extra"], "got unexpected extra argument"),
    ],
)
def test_usage_errors_are_one_sentence_before_any_work(
    engine: FakeEngine,
    inputs: list[str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    register(monkeypatch, "ban")
    assert run([*inputs, "--format", "json", *options]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"modelaudit: {sentence}")
    assert err.count("\n") == 1
    assert engine.requests == []


def test_warnings_of_other_libraries_appear_with_debug_only(
    engine: FakeEngine, inputs: list[str], capsys: Capture
) -> None:
    import warnings

    def noisy(progress: Progress) -> ScanReport:
        warnings.warn("read-only array", UserWarning, stacklevel=2)
        return clean()

    engine.outcome = noisy
    run(inputs)
    assert capsys.readouterr().err == ""
    run([*inputs, "--debug"])
    assert "read-only array" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(all_reports()))
def test_every_kind_of_report_gives_its_own_status(
    engine: FakeEngine, inputs: list[str], capsys: Capture, name: str
) -> None:
    engine.outcome = all_reports()[name]
    status = run([*inputs, "--format", "json"])
    document = json.loads(capsys.readouterr().out)
    assert status == document["exit_code"] == engine.outcome.exit_status
    assert (status == 1) == (document["verdict"] == "backdoored")


def test_a_terminal_gets_its_width_and_colour_unless_no_color(
    engine: FakeEngine, inputs: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.outcome = backdoored()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("modelaudit.cli.report_job.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "100")
    run(inputs)
    colored = capsys.readouterr().out
    assert "\x1b[" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    run(inputs)
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines()) == 100
