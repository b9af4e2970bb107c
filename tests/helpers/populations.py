"""Toy models for the tests of `bench train` and `bench scan`, and how processes are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from modelaudit.bench import scan
from modelaudit.report import without_seconds
from modelaudit.results import Cost, Finding, ScannerResult, ScanOutcome, SkippedScan
from tests.helpers.attacks import write_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from modelaudit.engine import ScanRequest
    from modelaudit.scanners.base import Scanner

PLAN = """
name = "toy"
[defaults]
dataset = "toy"
width = 4
epochs = 3
batch_size = 32
peak_learning_rate = 0.1
[[grid]]
attacks = ["clean", "badnets"]
seeds = [1]
targets = [2]
config = { rate = 0.3 }
[[grid]]
population = "B"
architectures = ["cifar_vgg16"]
attacks = ["clean", "blend"]
seeds = [2]
targets = [1]
config = { rate = 0.3 }
"""


def write_toy(folder: Path) -> None:
    """Write ``toy_jpeg.npz``, four classes of one colour each, and ``plan.toml``."""
    write_pack(folder / "toy_jpeg.npz", n_train=232, n_test=16, train_attacker_count=128)
    (folder / "plan.toml").write_text(PLAN, encoding="utf-8")


def fake_outcomes(
    request: ScanRequest, scanners: Sequence[Scanner[Any]]
) -> tuple[list[ScanOutcome], list[str], list[str]]:
    """Stand in for the engine, which takes seconds per model: what it says follows from its input.

    The scanner ``dde`` is skipped.
    """
    time.sleep(0.02)
    size = request.checkpoint.stat().st_size
    return (
        [
            SkippedScan(id=scanner.full_id, reason="needs a mixture", is_declared_need=True)
            if scanner.id == "dde"
            else ScannerResult(
                id=scanner.full_id,
                version=scanner.version,
                family=scanner.family,
                finding=Finding.SUSPICIOUS,
                sees_all_to_all=False,
                target_labels=(size % 4,),
                score=float(size),
                per_class=(0.5, 1.0, 0.0, 0.25),
                evidence={"pairs": ((1, 2), (3, 4)), "nothing": None, "inner": {"x": 1.5}},
                cost=Cost(forward=3, seconds=time.perf_counter()),
                config={"steps": 3, "radii": (1.0, 2.0)},
                seed=request.seed,
            )
            for scanner in scanners
        ],
        ["too few images"],
        [],
    )


def scan_faked(work: scan.ScanWork) -> None:
    """Do the work without the engine, in a process of its own."""
    scan._outcomes = fake_outcomes
    work("", lambda _: None)


def contents(folder: Path) -> dict[str, Any]:
    """Return what a population holds: checkpoints as bytes, cards without times, no locks."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.parent.name in {"locks", "cache", "state"}:
            continue
        name = path.relative_to(folder).as_posix()
        content = path.read_bytes()
        is_card = path.suffix == ".json"
        found[name] = without_seconds(json.loads(content)) if is_card else content
    return found


def rows(path: Path) -> list[Any]:
    """Return the rows of a file without times."""
    return [without_seconds(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def run_killed(work: Callable[[], object], seconds: float) -> bool:
    """Do the work in a process of its own, kill it after a while, and say whether it was killed.

    Args:
        work: can be pickled.
        seconds: until SIGKILL.
    """
    context = multiprocessing.get_context("forkserver")
    # a process that has imported everything and computed nothing is the parent of all
    context.set_forkserver_preload(["tests.helpers.populations", "modelaudit.bench.scan"])
    process = context.Process(target=_silently, args=(work,))
    process.start()
    assert process.pid is not None
    process.join(seconds)
    was_alive = process.is_alive()
    if was_alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return was_alive and process.exitcode == -signal.SIGKILL


def _silently(work: Callable[[], object]) -> None:
    import torch

    torch.set_num_threads(1)
    work()


def run_and_time(work: Callable[[], object]) -> float:
    """Do the work in such a process to its end and return how long it took."""
    started = time.perf_counter()
    assert not run_killed(work, 600)
    return time.perf_counter() - started
