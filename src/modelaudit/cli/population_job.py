"""What ``modelaudit bench scan`` and ``bench repair`` have in common: rows of a population."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from modelaudit.cli.bench_job import BenchJob
from modelaudit.cli.bench_progress import display
from modelaudit.cli.streams import write_stdout
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.selection import Selection
    from modelaudit.bench.workers import Work
    from modelaudit.cli.bench_options import Population
    from modelaudit.cli.bench_progress import Status
    from modelaudit.cli.device import Device

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class Tracker(Protocol[E_contra]):
    """Follows the work; see `modelaudit.bench.tracker.ScanTracker`."""

    def update(self, event: E_contra) -> Status:
        """Take in an event and return how far the run is."""

    def status(self, said: str = "") -> Status:
        """Return how far the run is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Generic[E]):
    """What a population is put through.

    Attributes:
        work: what the workers do.
        tracker: how far they are.
        scope: what the rows are about, in words.
    """

    work: Work[E]
    tracker: Tracker[E]
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationJob(BenchJob, Generic[E]):
    """Put every model of a population through something that adds rows to a file.

    Attributes:
        models: folder of the population.
        data: folder of the data.
        out: JSON Lines file.
        has_paper_code: whether the authors' procedures run too.
        only: ids of models; all if empty.
        population: A or B; both if None.
        plan: only the models of this plan; None for all.
        is_with_failed: whether models that failed the gate take part too.
        workers: processes.
        threads: of each.
        device: not yet resolved.
        seed: of the run.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    #: what may fail on a model
    unit: ClassVar[str]

    models: Path
    data: Path
    out: Path
    has_paper_code: bool
    only: tuple[str, ...]
    population: Population | None
    plan: str | None
    is_with_failed: bool
    workers: int
    threads: int
    device: Device
    seed: int
    is_quiet: bool
    is_debug: bool

    def run(self) -> int:
        """Add the rows that are missing and say how many there are."""
        with display(is_quiet=self.is_quiet, is_debug=self.is_debug) as show:
            from modelaudit.bench.rows import read_keys
            from modelaudit.bench.workers import run_workers

            task = self._task()
            show(task.tracker.status("starting"))
            failed = run_workers(
                task.work,
                workers=self.workers,
                threads=self.threads,
                report=lambda event: show(task.tracker.update(event)),
            )
            rows = len(read_keys(self.out))
        lines = [f"{rows} rows in {self.out}, {task.scope}"]
        lines += [f"a {self.unit} failed on {id_}, see its rows or the log" for id_ in failed]
        write_stdout("".join(f"{line}\n" for line in lines))
        return ExitStatus.INCONCLUSIVE if failed else ExitStatus.CLEAN

    def _selection(self) -> Selection:
        """Return the models that are meant."""
        from modelaudit.bench.selection import Selection

        return Selection(
            folder=self.models,
            data_root=self.data,
            only=self.only,
            population=self.population,
            plan=self.plan,
            is_with_failed=self.is_with_failed,
        )

    @abstractmethod
    def _task(self) -> Task[E]:
        """Return what the models are put through."""
