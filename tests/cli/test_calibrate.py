from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import modelaudit.engine
from modelaudit.calibration import build, read_populations
from modelaudit.cli import run
from modelaudit.cli.calibrate_job import PARTIAL
from modelaudit.engine.calibrate import Calibrated
from modelaudit.registry import Registry
from tests.helpers.calibration import clean_models

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelaudit.calibration import ScannedModel
    from modelaudit.engine import ScanRequest
    from modelaudit.progress import Progress

Capture = pytest.CaptureFixture[str]


class FakeCalibrate(types.ModuleType):
    """Scans as many models as it is told, and stops where it is told."""

    def __init__(self, models: list[ScannedModel]) -> None:
        super().__init__("modelaudit.engine.calibrate")
        self.models = models
        self.stop_before: int | None = None
        self.scanned: list[str] = []
        self.templates: list[ScanRequest] = []

    def calibrate(
        self,
        folder: Path,
        template: ScanRequest,
        *,
        id_: str,
        progress: Progress,
        known: Mapping[str, ScannedModel],
        keep: Callable[[ScannedModel], None],
    ) -> Calibrated:
        """Go through the models as the real one does."""
        self.templates.append(template)
        for index, model in enumerate(self.models):
            if model.checkpoint_sha256 in known:
                assert known[model.checkpoint_sha256] == model
                continue
            if index == self.stop_before:
                raise KeyboardInterrupt
            self.scanned.append(model.id)
            keep(model)
        built = build(self.models, id_=id_)
        return Calibrated(
            populations=built.populations,
            left_out=(("bad\x1b.pt", "bad.pt is empty (0 bytes)"),),
            accused=("clean_03",),
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCalibrate:
    module = FakeCalibrate(clean_models(6))
    monkeypatch.setitem(sys.modules, "modelaudit.engine.calibrate", module)
    monkeypatch.setattr(modelaudit.engine, "calibrate", module, raising=False)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for name in ("models", "clean"):
        (tmp_path / name).mkdir()
    return [
        "calibrate",
        f"--clean-models={tmp_path / 'models'}",
        f"--data={tmp_path / 'clean'}",
        f"--out={tmp_path / 'mine.json'}",
        "--device=cpu",
    ]


def test_the_population_is_written_and_told(
    fake: FakeCalibrate, arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert run(arguments) == 0
    (population,) = read_populations(tmp_path / "mine.json")
    assert (population.id, len(population.clean)) == ("mine", 6)
    out, err = capsys.readouterr()
    assert err == ""
    assert "mine: 6 clean and 0 attacked models of cifar_resnet" in out
    assert "warning: 6 clean models are few: p-values below 1/7 do not exist; give 20" in out
    assert "left out bad\\x1b.pt: bad.pt is empty (0 bytes)" in out
    assert "look at clean_03: the scanners alone call it backdoored" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "mine.json", "models"]


def test_twenty_models_are_no_warning(
    fake: FakeCalibrate, arguments: list[str], capsys: Capture
) -> None:
    fake.models = clean_models(20)
    assert run(arguments) == 0
    assert "warning" not in capsys.readouterr().out


def test_an_interrupted_run_goes_on_where_it_stopped(
    fake: FakeCalibrate, arguments: list[str], tmp_path: Path
) -> None:
    fake.stop_before = 4
    assert run(arguments) == 130
    partial = tmp_path / f"mine.json{PARTIAL}"
    assert len(fake.scanned) == 4
    assert not (tmp_path / "mine.json").exists()
    with partial.open("a") as file:
        file.write('{"rows": [{"key"')
    fake.stop_before = 5
    assert run(arguments) == 130
    assert fake.scanned[4:] == ["clean_04"]
    fake.stop_before = None
    assert run(arguments) == 0
    assert fake.scanned[5:] == ["clean_05"]
    assert not partial.exists()
    interrupted = (tmp_path / "mine.json").read_bytes()
    assert run(arguments) == 0
    assert (tmp_path / "mine.json").read_bytes() == interrupted


def test_another_runs_partial_file_is_not_mixed_in(
    fake: FakeCalibrate, arguments: list[str], capsys: Capture
) -> None:
    fake.stop_before = 2
    run(arguments)
    capsys.readouterr()
    assert run([*arguments, "--seed=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "was left by a run with other options; remove it" in err


def test_options_reach_the_engine(
    fake: FakeCalibrate, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "modelaudit.cli.scan_options.Registry",
        lambda group: Registry(group, [_point("ban"), _point("mbns")]),
    )
    more = "--scanner ban --scanner mbns --max-images 200 --seed 5 --preprocess half --id zoo"
    assert run([*arguments, *more.split(), "--classes", str(tmp_path / "names.txt")]) == 0
    (template,) = fake.templates
    assert template.scanners == ("ban", "mbns")
    assert (template.max_images, template.seed, template.budget_seconds) == (200, 5, None)
    assert template.preprocessing is not None
    assert template.preprocessing.id == "half"
    assert read_populations(tmp_path / "mine.json")[0].id == "zoo"


def _point(name: str) -> Any:
    from importlib.metadata import EntryPoint

    return EntryPoint(name, "x:Y", "modelaudit.scanners")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("models/x.json", "lies in a folder that is read"),
        ("models", "is a directory"),
        ("none/x.json", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_used_is_a_usage_error_before_any_work(
    fake: FakeCalibrate,
    arguments: list[str],
    tmp_path: Path,
    capsys: Capture,
    out: str,
    said: str,
) -> None:
    assert run([*arguments, f"--out={tmp_path / out}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("modelaudit: --out ")
    assert said in err
    assert fake.templates == []


def test_too_few_models_are_one_sentence(
    fake: FakeCalibrate, arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    fake.models = clean_models(3)
    assert run(arguments) == 2
    assert "a population needs 5 clean models of one kind" in capsys.readouterr().err
    assert not (tmp_path / "mine.json").exists()


def bench_rows(path: Path) -> None:
    """Write rows of a population A of six models and a B of two."""
    from modelaudit.calibration import rows_of
    from tests.helpers.calibration import attacked_model

    groups = {
        "A": [*clean_models(20), attacked_model()],
        "B": [
            *(replace(m, id=f"b{m.id}", checkpoint_sha256=f"b{m.id}") for m in clean_models(3)),
            attacked_model("hit", checkpoint_sha256="hit"),
        ],
    }
    lines = []
    for name, models in groups.items():
        for model in models:
            for row in rows_of(model):
                part = row["model"]
                assert isinstance(part, dict)
                lines.append(json.dumps({**row, "model": {**part, "population": name}}))
    path.write_text("".join(f"{line}\n" for line in lines))


def test_bench_calibrate_builds_from_one_population_and_measures_on_another(
    tmp_path: Path, capsys: Capture
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "zoo.json"
    bench_rows(rows)
    command = ["bench", "calibrate", str(rows), "--population", "A", "--out", str(out)]
    assert run([*command, "--note", "a note"]) == 0
    (population,) = read_populations(out)
    assert (population.id, len(population.clean), population.rates) == ("zoo", 20, None)
    assert population.notes == ("a note",)
    assert run([*command, "--measure", "B", "--id", "zoo-1"]) == 0
    (measured,) = read_populations(out)
    assert measured.id == "zoo-1"
    assert measured.rates is not None
    assert (measured.rates.clean, measured.rates.false_alarms) == (3, 0)
    assert (measured.rates.attacked, measured.rates.detected) == (1, 1)
    assert (measured.suspicious, measured.models) == (population.suspicious, population.models)
    assert "0 of 3 clean models called backdoored, 1 of 1 attacked" in capsys.readouterr().out


def test_bench_calibrate_does_not_measure_on_what_it_was_built_from(
    tmp_path: Path, capsys: Capture
) -> None:
    rows = tmp_path / "rows.jsonl"
    bench_rows(rows)
    command = f"bench calibrate {rows} --population A --measure A --out {tmp_path / 'x.json'}"
    assert run(command.split()) == 2
    assert "--measure must name another population" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: no JSON"),
        ("3\n", "line 1: expected an object"),
        ("{}\n", "row 1 is no row of `modelaudit bench scan`"),
        ("", "a population needs 5 clean models of one kind"),
    ],
)
def test_bench_calibrate_says_what_is_wrong_with_the_rows(
    tmp_path: Path, capsys: Capture, content: str, said: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(content)
    command = f"bench calibrate {rows} --population A --out {tmp_path / 'x.json'}"
    assert run(command.split()) == 2
    assert said in capsys.readouterr().err
    assert run(f"bench calibrate {tmp_path}/no --population A --out {tmp_path}/x".split()) == 2
