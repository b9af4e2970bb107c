from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.cli import run
from modelaudit.results import ExitStatus
from tests.helpers.fake_repairs import broken, cut, leave, repair_class
from tests.helpers.repair_populations import ATTACKED, CLEAN, install_only, write_population

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_population(tmp_path_factory.mktemp("population"))


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(
        monkeypatch,
        repair_class("cut", cut),
        repair_class("prune_mbns", leave),
        repair_class("finetune_noise", broken),
    )


@pytest.fixture
def arguments(place: Path, tmp_path: Path) -> list[str]:
    return [
        *("bench", "repair", "--models", str(place / "zoo"), "--data", str(place)),
        *("--out", str(tmp_path / "rows.jsonl"), "--images", "100", "--device", "cpu"),
        # the tests' own number, because the command sets it for the process
        *("--threads", str(torch.get_num_threads())),
    ]


def test_every_repair_of_a_model_is_a_line_and_the_tables_read_them(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run([*arguments, "--method", "cut", "--only", ATTACKED, "--only", CLEAN])
    said = capsys.readouterr()
    assert status == ExitStatus.CLEAN
    rows = tmp_path / "rows.jsonl"
    assert said.out == f"2 rows in {rows}, 2 models by 1 methods\n"
    assert re.search(rf"{ATTACKED}: cut: done, ACC 1\.0000 to .*1 of 2 models", said.err)
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    assert [(line["model"]["id"], line["pruned"]) for line in lines] == [(ATTACKED, 1), (CLEAN, 1)]
    assert run(["bench", "tables", str(rows), "--out", str(tmp_path / "tables")]) == 0
    goals = (tmp_path / "tables" / "repair_goals.csv").read_text("utf-8").splitlines()
    assert len(goals) == 4


def test_failed_repairs_are_named_and_the_status_is_5(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status = run([*arguments, "--method", "finetune_noise", "--only", CLEAN, "--quiet"])
    assert status == ExitStatus.INCONCLUSIVE
    said = capsys.readouterr()
    assert f"a repair failed on {CLEAN}, see its rows or the log" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--method", "other"], "unknown repair 'other'"),
        (["--method", "cut@paper_code"], "has no variant 'paper_code'"),
        (["--only", "nobody"], "has no models ['nobody']"),
        (["--images", "0"], "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], extra: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, *extra]) == ExitStatus.USAGE
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


def test_data_that_is_missing_is_unreadable_and_no_bug(
    arguments: list[str], tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(place / "zoo", folder, ignore=shutil.ignore_patterns("cache", "clean_sets"))
    moved = ["--models", str(folder), "--data", str(tmp_path), "--method", "cut", "--only", CLEAN]
    assert run([*arguments, *moved]) == ExitStatus.UNREADABLE
    said = capsys.readouterr()
    assert "internal error" not in said.err
    assert said.out == ""
