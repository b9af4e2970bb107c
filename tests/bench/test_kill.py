"""SIGKILL at random moments: nothing lost, nothing double, the result as without a kill."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.bench.scan import ScanWork
from modelaudit.bench.selection import Selection
from modelaudit.bench.train_work import TrainWork
from tests.helpers.populations import (
    contents,
    rows,
    run_and_time,
    run_killed,
    scan_faked,
    write_toy,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def do(work: TrainWork | ScanWork) -> None:
    work("", lambda _: None)


def kill(work: Callable[[], None], *, kills: int, seconds: float, out: Path) -> None:
    """Start the work until it was killed so many times, then let it end.

    Args:
        work: can be pickled.
        kills: how many.
        seconds: what all of it takes without a kill.
        out: what it writes; where it ends too early for so many kills, all begins again, faster.
    """
    generator = torch.Generator().manual_seed(kills)
    hits = 0
    while hits < kills:
        moment = float(torch.rand((), generator=generator))
        if run_killed(work, 0.8 * seconds / kills * moment):
            hits += 1
            continue
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        hits, seconds = 0, 0.7 * seconds
        assert seconds > 0.05
    assert not run_killed(work, 600)


def train(folder: Path, *, kills: int, only: tuple[str, ...]) -> None:
    write_toy(folder)
    whole = TrainWork(
        plan=str(folder / "plan.toml"), folder=folder / "whole", data_root=folder, only=only
    )
    killed = replace(whole, folder=folder / "killed")
    seconds = run_and_time(partial(do, whole))
    kill(partial(do, killed), kills=kills, seconds=seconds, out=killed.folder)
    assert contents(killed.folder) == contents(whole.folder)
    assert not list(killed.folder.rglob("*.partial"))


def scan(folder: Path, *, kills: int, scanners: tuple[str, ...], is_faked: bool) -> None:
    write_toy(folder)
    do(TrainWork(plan=str(folder / "plan.toml"), folder=folder / "zoo", data_root=folder))
    whole = ScanWork(
        models=Selection(folder=folder / "zoo", data_root=folder, is_with_failed=True),
        out=folder / "whole.jsonl",
        scanners=scanners,
        images=100,
    )
    killed = replace(whole, out=folder / "killed.jsonl")
    act = scan_faked if is_faked else do
    seconds = run_and_time(partial(act, whole))
    kill(partial(act, killed), kills=kills, seconds=seconds, out=killed.out)
    assert len(rows(whole.out)) == 4 * len(scanners)
    assert rows(killed.out) == rows(whole.out)


def test_training_that_was_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    train(tmp_path, kills=2, only=("badnets_toy_resnet18w4_s1_t2",))


def test_scan_that_was_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    scan(tmp_path, kills=2, scanners=("mbns", "dde"), is_faked=True)


@pytest.mark.slow
def test_training_that_was_killed_ten_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    train(tmp_path, kills=10, only=())


@pytest.mark.slow
def test_scan_that_was_killed_ten_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    scan(tmp_path, kills=10, scanners=("mbns", "dde", "mm_bd", "ban"), is_faked=False)
