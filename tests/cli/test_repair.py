from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

import modelaudit
from modelaudit.cli import run
from modelaudit.errors import CorruptCheckpointError, OutputError, UnsafeCheckpointError
from modelaudit.report import dumps
from modelaudit.report.repair_json import dump_repair
from tests.helpers.repair_reports import FakeRepairEngine, all_repair_reports, repaired
from tests.helpers.reports import backdoored

if TYPE_CHECKING:
    from pathlib import Path

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeRepairEngine:
    fake = FakeRepairEngine(repaired())
    monkeypatch.setitem(sys.modules, "modelaudit.engine", fake)
    monkeypatch.setattr(modelaudit, "engine", fake, raising=False)
    return fake


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Arguments of a repair whose files exist, without --out."""
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"suspect")
    (tmp_path / "clean").mkdir()
    data = str(tmp_path / "clean")
    return ["repair", "auto", str(checkpoint), "--data", data, "--device", "cpu"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "repaired.safetensors"


@pytest.mark.parametrize("name", ["repaired", "still_backdoored", "inconclusive"])
def test_what_was_accepted_is_written(
    engine: FakeRepairEngine, inputs: list[str], out: Path, capsys: Capture, name: str
) -> None:
    engine.repair_outcome = all_repair_reports()[name]
    status = run([*inputs, "--out", str(out)])
    text, err = capsys.readouterr()
    assert status == all_repair_reports()[name].exit_status
    assert out.read_bytes() == b"weights"
    assert name.upper().replace("_", " ") in text
    assert err == ""


@pytest.mark.parametrize("name", ["not_needed", "planned", "not_written"])
def test_what_was_not_accepted_is_not_written(
    engine: FakeRepairEngine, inputs: list[str], out: Path, name: str
) -> None:
    engine.repair_outcome = all_repair_reports()[name]
    assert run([*inputs, "--out", str(out)]) == all_repair_reports()[name].exit_status
    assert not out.exists()


def test_json_names_the_file(
    engine: FakeRepairEngine, inputs: list[str], out: Path, capsys: Capture
) -> None:
    assert run([*inputs, "--out", str(out), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["outcome"] == "repaired"
    assert document["written"]["path"] == str(out)
    assert document["written"]["size"] == 7


def test_an_interruption_behind_the_file_says_that_there_is_one(
    engine: FakeRepairEngine,
    inputs: list[str],
    out: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[object] = []

    def interrupted(*arguments: object, **_: object) -> str:
        if not said:
            said.append(arguments)
            raise KeyboardInterrupt
        return dump_repair(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("modelaudit.cli.repair_job.dump_repair", interrupted)
    assert run([*inputs, "--out", str(out), "--format", "json"]) == 130
    text, err = capsys.readouterr()
    assert out.exists()
    assert f"{out} was written" in err
    document = json.loads(text)
    assert f"{out} was written" in document["reason"]["message"]
    assert (document["outcome"], document["written"]["path"]) == ("interrupted", str(out))


def test_the_report_can_go_to_a_file_of_its_own(
    engine: FakeRepairEngine, inputs: list[str], out: Path, tmp_path: Path, capsys: Capture
) -> None:
    report = tmp_path / "report.json"
    arguments = [*inputs, "--out", str(out), "--format", "json", "--output", str(report)]
    assert run(arguments) == 0
    assert json.loads(report.read_text("utf-8"))["exit_code"] == 0
    assert capsys.readouterr().out.startswith("REPAIRED: ")


def test_the_options_reach_the_engine(
    engine: FakeRepairEngine, inputs: list[str], out: Path
) -> None:
    inputs[1] = "prune_mbns"
    options = ["--max-accuracy-drop", "0.05", "--force", "--keep-format", "--max-images", "800"]
    assert run([*inputs, "--out", str(out), *options, "--set", "mbns.suspicious=30"]) == 0
    request = engine.requests[0]
    assert request.method == "prune_mbns"
    assert request.max_accuracy_drop == 0.05
    assert request.is_forced
    assert request.keeps_format
    assert request.max_repair_images == 800
    assert request.scan.max_images == 500
    assert request.scan.settings == (("mbns", "suspicious", "30"),)
    assert request.settings == ()
    assert request.prior is None


def test_settings_go_to_whom_they_name(
    engine: FakeRepairEngine, inputs: list[str], out: Path
) -> None:
    arguments = ["--set", "finetune.epochs=2", "--set", "ban.steps=3"]
    assert run([*inputs, "--out", str(out), *arguments]) == 0
    assert engine.requests[0].settings == (("finetune", "epochs", "2"),)
    assert engine.requests[0].scan.settings == (("ban", "steps", "3"),)


def test_a_report_replaces_the_scan(
    engine: FakeRepairEngine, inputs: list[str], out: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "scan.json"
    path.write_text(dumps(backdoored()), "utf-8")
    assert run([*inputs, "--out", str(out), "--report", str(path)]) == 0
    assert engine.requests[0].prior.checkpoint_sha256 == backdoored().suspect.sha256
    path.write_text("{", "utf-8")
    assert run([*inputs, "--out", str(out), "--report", str(path)]) == 2
    assert "--report expects the JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--out expects the file to write"),
        (["--out", "{model}"], "would overwrite an input"),
        (["--out", "{folder}"], "is a directory"),
        (["--out", "{data}/x.safetensors"], "lies in a folder that is read"),
        (["--out", "{folder}/a", "--output", "{folder}/a"], "are both"),
        (["--out", "{folder}/none/a"], "cannot be written"),
        (["--out", "{folder}/a", "--max-accuracy-drop", "2"], "must lie in 0 to 1"),
        (["--out", "{folder}/a", "--set", "nobody.x=1"], "unknown scanner 'nobody'"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    engine: FakeRepairEngine,
    inputs: list[str],
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    sentence: str,
) -> None:
    places = {"model": inputs[2], "folder": str(tmp_path), "data": str(tmp_path / "clean")}
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert run([*inputs, *(a.format(**places) for a in arguments)]) == 2
    text, err = capsys.readouterr()
    assert text == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert engine.requests == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_an_unknown_method_names_the_nearest(
    engine: FakeRepairEngine, inputs: list[str], out: Path, capsys: Capture
) -> None:
    inputs[1] = "finetun"
    assert run([*inputs, "--out", str(out)]) == 2
    assert "did you mean 'finetune'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsafeCheckpointError("REFUSED: loading x would call os.system"), 3),
        (CorruptCheckpointError("model.pt: no such file"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("oops"), 70),
    ],
)
def test_a_failure_leaves_nothing_behind(
    engine: FakeRepairEngine,
    inputs: list[str],
    out: Path,
    tmp_path: Path,
    capsys: Capture,
    error: BaseException,
    status: int,
) -> None:
    engine.repair_outcome = error
    assert run([*inputs, "--out", str(out)]) == status
    text, err = capsys.readouterr()
    assert text == ""
    assert err.startswith("modelaudit: ")
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "model.pt"]


def test_a_file_that_does_not_read_back_is_not_kept(
    engine: FakeRepairEngine, inputs: list[str], out: Path, tmp_path: Path, capsys: Capture
) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == b"weights"
        raise OutputError("the written file does not give the repaired model's logits")

    out.write_bytes(b"older")
    engine.check = refuse
    assert run([*inputs, "--out", str(out)]) == 6
    assert out.read_bytes() == b"older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "model.pt", out.name]
    assert "does not give the repaired" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(
    engine: FakeRepairEngine,
    inputs: list[str],
    out: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_descriptor: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelaudit.cli.output._write_all", full)
    assert run([*inputs, "--out", str(out)]) == 6
    assert "No space left on device; nothing was written" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "model.pt"]
