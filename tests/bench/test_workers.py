from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.bench.workers import run_workers
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARENT = """
import sys
from tests.bench import test_workers as here
from modelaudit.bench.workers import run_workers
if __name__ == "__main__":
    run_workers(here.wait_for_ever, workers=2, threads=1, report=lambda pid: print(pid, flush=True))
"""


def share(run: str, report: Callable[[str], None]) -> tuple[str, ...]:
    report(run)
    return ("b", "a")


def refuse(run: str, report: Callable[[str], None]) -> tuple[str, ...]:
    raise ConfigError("no such thing")


def die(run: str, report: Callable[[str], None]) -> tuple[str, ...]:
    os.kill(os.getpid(), signal.SIGKILL)
    return ()


def wait_for_ever(run: str, report: Callable[[int], None]) -> tuple[str, ...]:
    report(os.getpid())
    time.sleep(600)
    return ()


def test_one_worker_is_this_process_with_its_threads() -> None:
    said: list[str] = []
    threads = torch.get_num_threads()
    assert run_workers(share, workers=1, threads=threads, report=said.append) == ("b", "a")
    assert run_workers(share, workers=1, threads=threads, report=said.append) == ("b", "a")
    assert len(set(said)) == 2  # every run has a name of its own


@pytest.mark.slow
def test_workers_share_a_name_and_their_failures_are_joined() -> None:
    said: list[str] = []
    assert run_workers(share, workers=2, threads=1, report=said.append) == ("a", "b")
    assert len(said) == 2
    assert len(set(said)) == 1


@pytest.mark.slow
def test_error_of_a_worker_is_raised() -> None:
    with pytest.raises(ConfigError, match="no such thing"):
        run_workers(refuse, workers=2, threads=1, report=lambda _: None)


@pytest.mark.slow
def test_worker_that_is_killed_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="2 of 2 workers ended with"):
        run_workers(die, workers=2, threads=1, report=lambda _: None)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])},
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    # the pipe ends when none of those who inherited it lives any more
    assert parent.stdout.read() == ""
    parent.stdout.close()
    assert len(set(workers)) == 2
