"""Several processes on one machine, each on the next model that nobody works on."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import uuid
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from modelaudit.errors import ModelAuditError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.queues import Queue

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

#: seconds between looks at whether the workers live
_POLL = 1.0


class Work(Protocol[E_co]):
    """What a worker does; it is pickled on its way to the process."""

    def __call__(self, run: str, report: Callable[[E_co], None]) -> tuple[str, ...]:
        """Do everything that nobody else does; return the ids that failed.

        Args:
            run: name of the run, the same for all of its workers.
            report: told of every event.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """The last message of a worker: what failed, or the error that ended it."""

    failed: tuple[str, ...] = ()
    error: ModelAuditError | None = None


def run_workers(
    work: Work[E], *, workers: int, threads: int, report: Callable[[E], None]
) -> tuple[str, ...]:
    """Let processes do the work and pass on what they report.

    With one worker the work is done in this process. Others end as soon as this process does,
    however it ends; a worker that ends without a word is reported by an exception after the others
    are done, and its work is there to be continued.

    Args:
        work: shares the models out by claims.
        workers: how many processes.
        threads: CPU threads of each.
        report: told of every event, in this process.

    Returns:
        The ids that failed, sorted.

    Raises:
        ModelAuditError: a worker raised it.
        RuntimeError: a worker was killed.
    """
    run = uuid.uuid4().hex
    if workers == 1:
        torch.set_num_threads(threads)
        return work(run, report)
    context = multiprocessing.get_context("spawn")
    messages: Queue[E | _Ended] = context.Queue()
    processes = [
        context.Process(target=_worker, args=(work, run, threads, messages), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    failed: set[str] = set()
    errors: list[ModelAuditError] = []
    ended = 0
    while ended < workers:
        try:
            message = messages.get(timeout=_POLL)
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                break
            continue
        if isinstance(message, _Ended):
            ended += 1
            failed |= set(message.failed)
            errors += [] if message.error is None else [message.error]
        else:
            report(message)
    for process in processes:
        process.join()
    if errors:
        raise errors[0]
    if ended < workers:
        codes = [process.exitcode for process in processes if process.exitcode]
        raise RuntimeError(f"{workers - ended} of {workers} workers ended with {codes!r}")
    return tuple(sorted(failed))


def _worker(work: Work[E], run: str, threads: int, messages: Queue[E | _Ended]) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        ended = _Ended(failed=work(run, messages.put))
    except ModelAuditError as err:
        ended = _Ended(error=err)
    messages.put(ended)


def _end_with_parent() -> None:
    """End at once when the parent is gone: a killed command must not train on unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
