from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from modelaudit.bench.events import Event
from modelaudit.bench.tracker import Status
from modelaudit.cli import bench_progress, bench_train, run
from modelaudit.cli.bench_options import threads_of
from modelaudit.results import ExitStatus
from tests.helpers.populations import write_toy

if TYPE_CHECKING:
    from pathlib import Path

ONLY = ["--only", "clean_toy_resnet18w4_s1", "--only", "badnets_toy_resnet18w4_s1_t2"]


@pytest.fixture
def place(tmp_path: Path) -> list[str]:
    """Arguments of a training whose data and plan exist."""
    write_toy(tmp_path)
    plan = str(tmp_path / "plan.toml")
    return ["--plan", plan, "--data", str(tmp_path), "--out", str(tmp_path / "zoo")]


def threads() -> list[str]:
    import torch

    # the tests' own number, because the command sets it for the process
    return ["--threads", str(torch.get_num_threads()), "--device", "cpu"]


def test_training_says_what_the_population_holds(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "train", *place, *ONLY, *threads()]) == ExitStatus.CLEAN
    said = capsys.readouterr()
    assert said.out.startswith("2 of 2 models are trained, 1 of them clean\n")
    assert re.search(r"^\d\d:\d\d:\d\d starting \(0 of 2 models\)$", said.err, re.M)
    assert re.search(
        r"clean_toy_resnet18w4_s1: epoch 3 of 3, \d+ s \(0 of 2 models, \d+ s left\)", said.err
    )
    card = json.loads(
        (tmp_path / "zoo" / "cards" / "badnets_toy_resnet18w4_s1_t2.json").read_text()
    )
    assert card["twin"] == "clean_toy_resnet18w4_s1"
    assert run(["bench", "judge", *place, "--quiet"]) == ExitStatus.CLEAN
    said = capsys.readouterr()
    assert said.out.startswith("2 of 4 models are trained")
    assert said.err == ""


def test_failed_models_are_named_and_the_status_is_5(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(plan.read_text().replace("batch_size = 32", "batch_size = 3200"))
    assert run(["bench", "train", *place, *ONLY[:2], *threads()]) == ExitStatus.INCONCLUSIVE
    said = capsys.readouterr()
    assert "failed: clean_toy_resnet18w4_s1, see failed/clean_toy_resnet18w4_s1.json" in said.out
    assert "batch_size must be at most" in said.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bench"], "missing command"),
        (["bench", "train"], "missing option"),
        (["bench", "train", "--plan", "x", "--out", "o", "--data", "d"], "expected a plan file or"),
        (
            ["bench", "train", "--plan", "cpu", "--out", "o", "--data", "nowhere"],
            "expected 'cifar10_jpeg.npz'",
        ),
        (
            ["bench", "train", "--plan", "cpu", "--out", "o", "--data", "d", "--shard", "2/2"],
            "--shard expects I/N",
        ),
        (
            ["bench", "train", "--plan", "cpu", "--out", "o", "--data", "d", "--population", "C"],
            "is not one of",
        ),
        (
            ["bench", "scan", "--models", "nowhere", "--data", "d", "--out", "o"],
            "expected model cards",
        ),
        (
            ["bench", "scan", "--models", "m", "--data", "d", "--out", "o", "--images", "0"],
            "should be greater than or equal to 1",
        ),
        (["bench", "pictures", "--data", "d", "--out", "o", "--plan", "cpu"], "belong together"),
        (["bench", "pictures", "--data", "d", "--out", "o", "--attack", "x"], "unknown attack 'x'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    is_data = sentence.startswith("expected 'cifar10")
    assert run(arguments) == (ExitStatus.UNREADABLE if is_data else ExitStatus.USAGE)
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_shard_out_of_range_is_a_usage_error(
    place: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "train", *place, f"--shard={text}"]) == ExitStatus.USAGE
    assert "--shard expects I/N" in capsys.readouterr().err


def test_help_of_the_group_answers_without_torch() -> None:
    code = (
        "import sys; from modelaudit.cli import run\n"
        "for c in ('train', 'judge', 'scan', 'pictures'): assert run(['bench', c, '--help']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_threads_share_the_processors_out() -> None:
    assert threads_of(3, 8) == 3
    assert threads_of(None, 10_000) == 1


def test_terminal_shows_a_bar_and_a_log_shows_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = Status(
        done=3, total=10, models=1, all_models=4, remaining="3 h 20 min", said="a\x1b: epoch 1"
    )
    with bench_progress.display(is_quiet=False, is_debug=False) as show:
        show(status)
    line = capsys.readouterr().err
    assert line.endswith("epoch 1 (1 of 4 models, 3 h 20 min left)\n")
    assert "\x1b" not in line
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(bench_progress, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with bench_progress.display(is_quiet=False, is_debug=False) as show:
        show(status)
    bar = capsys.readouterr().err
    assert "1/4 models" in bar
    assert "30 %" in bar
    assert "3 h 20 min left" in bar


def test_interruption_is_said_and_ends_with_130(
    place: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelaudit.bench.workers.run_workers", interrupted)
    assert run(["bench", "train", *place, *threads()]) == ExitStatus.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_summary_tells_why_an_attack_failed_the_gate() -> None:
    class Card:
        id, attack, gate_passed, gate_reasons = "b", "blend", False, ("weak", "dull")

    text = bench_train._summary(3, [Card()], ())  # type: ignore[list-item]  # a fake
    assert text == (
        "1 of 3 models are trained, 0 of them clean\n"
        "0 of 1 attacks pass the gate\n"
        "gate: b: weak; dull\n"
    )


def test_pictures_of_attacks_and_of_trained_models(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures"
    common = ["bench", "pictures", "--data", str(tmp_path), "--out", str(out)]
    assert run([*common, "--dataset", "toy", "--attack", "badnets"]) == ExitStatus.CLEAN
    assert capsys.readouterr().out == f"badnets: {out / 'badnets.png'}\n"
    assert (out / "badnets.png").read_bytes().startswith(b"\x89PNG")
    run(["bench", "train", *place, *ONLY[2:], *threads(), "--quiet"])
    capsys.readouterr()
    population = ["--plan", str(tmp_path / "plan.toml"), "--models", str(tmp_path / "zoo")]
    assert run([*common, *population]) == ExitStatus.CLEAN
    assert "badnets_toy_resnet18w4_s1_t2.png" in capsys.readouterr().out
    assert (out / "badnets_toy_resnet18w4_s1_t2.png").is_file()


@pytest.mark.slow
def test_workers_share_the_models_out(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = "from modelaudit.cli import main; main()"
    command = ["bench", "train", *place, "--workers", "2", "--threads", "1", "--device", "cpu"]
    result = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 of 4 models are trained, 2 of them clean\n")
    trained = re.findall(r"(\w+): trained", result.stderr)
    assert len(trained) == len(set(trained)) == 4


def test_event_can_be_sent_to_another_process() -> None:
    import pickle

    event = Event(kind="trained", id="a", epochs=3, text="ACC 0.5")
    assert pickle.loads(pickle.dumps(event)) == event
