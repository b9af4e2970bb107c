from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import modelaudit
from modelaudit.cli import run
from modelaudit.cli.outcome import Terminated, outcome_of
from modelaudit.errors import DataError
from modelaudit.results import ExitStatus, Verdict

ROOT = Path(__file__).parents[2]
MAIN = "from modelaudit.cli import main; main()"
#: A process whose engine says that it is ready and then waits for a signal.
WAITING = """
import signal, sys
import modelaudit
from tests.helpers.reports import FakeEngine

def wait(progress):
    print("ready", file=sys.stderr, flush=True)
    signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
modelaudit.engine = sys.modules["modelaudit.engine"] = FakeEngine(wait)
from modelaudit.cli import main
main()
"""
#: A process whose engine answers at once.
ANSWERING = """
import sys
import modelaudit
from tests.helpers.reports import FakeEngine, backdoored

modelaudit.engine = sys.modules["modelaudit.engine"] = FakeEngine(backdoored())
from modelaudit.cli import main
main()
"""
SCAN = ["scan", "model.pt", "--data", "clean", "--device", "cpu"]


def environment() -> dict[str, str]:
    paths = [str(Path(modelaudit.__file__).parents[1]), str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80"}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment(),
        check=False,
        timeout=60,
    )


def test_help_and_usage_errors_need_neither_torch_nor_rich() -> None:
    code = """
import sys
from modelaudit.cli import run
for text in ("--help", "scan --help", "list --help", "--version", "scan x --data d --alpha 7"):
    run(text.split())
print(sorted({"torch", "torchvision", "numpy", "rich"} & set(sys.modules)))
"""
    assert python(code).stdout.splitlines()[-1] == "[]"


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    # wall time would measure whatever else the machine does
    def spent() -> float:
        times = os.times()
        return times.children_user + times.children_system

    python(MAIN, "--help")
    before = spent()
    assert python(MAIN, "--help").returncode == 0
    assert spent() - before < 0.5


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"modelaudit {modelaudit.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], 'missing command; see "modelaudit --help"'),
        (["scan"], "missing argument 'CHECKPOINT'; see \"modelaudit scan --help\""),
        (["scan", "x"], "missing option '--data'; see \"modelaudit scan --help\""),
        (["frob\x1b"], "no such command 'frob\\x1b'"),
        (["list", "--format", "x"], "invalid value for '--format'"),
    ],
)
def test_arguments_that_cannot_be_parsed_exit_2_with_an_empty_stdout(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(arguments) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"modelaudit: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals are sent to a process of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_scan_gives_one_line_and_an_interrupted_document(
    tmp_path: Path, number: int, status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *SCAN, "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert err == "modelaudit: interrupted\n"
    document = json.loads(out)
    assert document["verdict"] == "interrupted"
    assert document["exit_code"] == status


@pytest.mark.skipif(os.name == "nt", reason="the pipe is one of POSIX")
@pytest.mark.parametrize(
    ("code", "arguments", "status"), [(ANSWERING, SCAN, 1), (MAIN, ["--help"], 0)]
)
def test_a_reader_that_closes_the_pipe_changes_nothing(
    tmp_path: Path, code: str, arguments: list[str], status: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert result.stderr == ""
    assert result.returncode == status


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_stdout_exits_6_and_never_120(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", ANSWERING, *SCAN],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
    assert result.returncode == ExitStatus.OUTPUT_FAILED
    assert result.stderr.count("\n") == 1
    assert "No space left on device; the verdict was backdoored" in result.stderr


@pytest.mark.parametrize(
    ("error", "verdict", "status"),
    [
        (KeyboardInterrupt(), Verdict.INTERRUPTED, 130),
        (Terminated(), Verdict.INTERRUPTED, 143),
        (SystemExit(1), Verdict.ERROR, 70),
        (DataError("the engine would have said it"), Verdict.ERROR, 70),
        (ValueError("x"), Verdict.ERROR, 70),
    ],
)
def test_no_exception_ends_with_status_1(
    error: BaseException, verdict: Verdict, status: int
) -> None:
    outcome = outcome_of(error)
    assert (outcome.verdict, outcome.exit_status) == (verdict, status)


def test_an_interruption_before_the_engine_is_there_is_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelaudit.cli.scan_options.ScanOptions.check_scanners", interrupted)
    assert run([*SCAN, "--format", "json"]) == ExitStatus.INTERRUPTED
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "interrupted"
    assert err == "modelaudit: interrupted\n"


def test_debug_shows_the_trace_of_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SCAN, "--debug", "--alpha", "7"]) == ExitStatus.USAGE
    assert "Traceback" in capsys.readouterr().err
