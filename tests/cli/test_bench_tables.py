from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelaudit.cli import run
from modelaudit.results import ExitStatus
from tests.helpers.bench_rows import facts, found, nothing, scan_rows, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    bad = scan_rows(facts("bad", attack="badnets", target=1), found(1))
    return write(tmp_path / "rows.jsonl", [*bad, *scan_rows(facts("clean"), nothing())])


def test_the_files_are_written_and_named(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status = run(["bench", "tables", str(rows), "--out", str(out), "--quiet"])

    assert status == ExitStatus.CLEAN
    written = {path.name for path in out.iterdir()}
    assert {"tables.md", "models.md", "detection_B.csv", "ranking.csv", "cost.csv"} <= written
    assert capsys.readouterr().out.splitlines() == [str(out / name) for name in sorted(written)]
    assert "| cifar10 | cifar_resnet18 w16 | badnets | 1 |" in (out / "tables.md").read_text(
        "utf-8"
    )


def test_a_second_run_writes_the_same_bytes(tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "tables", str(rows), "--out", str(out)]
    assert run(arguments) == ExitStatus.CLEAN
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(arguments) == ExitStatus.CLEAN

    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_plots_are_drawn_on_demand(tmp_path: Path, rows: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"

    assert run(["bench", "tables", str(rows), "--out", str(out), "--plots"]) == ExitStatus.CLEAN
    assert {"roc_B.svg", "scores_B.png"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--cards", "nowhere"], "expected model cards in"),
        (["--calibration", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_usage_errors(
    tmp_path: Path,
    rows: Path,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = run(["bench", "tables", str(rows), "--out", str(tmp_path / "out"), *extra])

    assert status == ExitStatus.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_empty_files_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(["bench", "tables", str(write(tmp_path / "r", [])), "--out", str(tmp_path / "o")])

    assert status == ExitStatus.USAGE
    assert "the files hold no row" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_an_output_error(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(["bench", "tables", str(rows), "--out", str(rows)])

    assert status == ExitStatus.OUTPUT_FAILED
    assert "choose another --out" in capsys.readouterr().err
