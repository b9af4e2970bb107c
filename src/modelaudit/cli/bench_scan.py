"""``modelaudit bench scan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from modelaudit.cli.bench_options import (
    Data,
    Models,
    Only,
    OnlyPlan,
    OnlyPopulation,
    Rows,
    Seed,
    Threads,
    Workers,
    threads_of,
)
from modelaudit.cli.device import Device, resolve_device
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug, DeviceOption, Quiet, ScannerIds
from modelaudit.cli.population_job import PopulationJob, Task

if TYPE_CHECKING:
    from modelaudit.bench.scan import ScanEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPopulationJob(PopulationJob["ScanEvent"]):
    """Scan a population.

    Attributes, beside those of `PopulationJob`:
        scanners: ids; all if empty.
        images: size of the clean sets.
        degradation: what is done to the clean images; None for nothing.
    """

    unit: ClassVar[str] = "scanner"

    scanners: tuple[str, ...]
    images: int
    degradation: str | None

    def _task(self) -> Task[ScanEvent]:
        from modelaudit.bench.scan import ScanWork
        from modelaudit.bench.tracker import ScanTracker

        models = self._selection()
        work = ScanWork(
            models=models,
            out=self.out,
            scanners=self.scanners,
            has_paper_code=self.has_paper_code,
            images=self.images,
            seed=self.seed,
            device=resolve_device(self.device),
            degradation=self.degradation,
        )
        cards = models.cards()
        return Task(
            work=work,
            tracker=ScanTracker(cards, workers=self.workers),
            scope=f"{len(cards)} models are to be scanned",
        )


def scan(
    models: Models,
    data: Data,
    out: Rows,
    scanner: ScannerIds = None,
    has_paper_code: Annotated[
        bool, typer.Option("--paper-code", help="Run each scanner's paper_code variant too.")
    ] = False,
    images: Annotated[
        int, typer.Option(help="Clean images that the scans are given.", metavar="N", min=1)
    ] = 500,
    only: Only = None,
    population: OnlyPopulation = None,
    plan: OnlyPlan = None,
    is_with_failed: Annotated[
        bool, typer.Option("--with-failed", help="Scan models that failed the gate too.")
    ] = False,
    degrade: Annotated[
        str | None,
        typer.Option(
            help="Degrade the clean images first: color_jitter, salt_and_pepper, polar_warp or "
            "snow (a tenth of them), jpeg_quality_50, wrong_label_order.",
            metavar="NAME",
            show_default="leave them",
        ),
    ] = None,
    workers: Workers = 1,
    threads: Threads = None,
    device: DeviceOption = Device.AUTO,
    seed: Seed = 0,
    is_quiet: Quiet = False,
    is_debug: Debug = False,
) -> Job:
    """Scan every model of a population; one JSON line per model and scanner."""
    return ScanPopulationJob(
        models=models,
        data=data,
        out=out,
        scanners=tuple(scanner or ()),
        has_paper_code=has_paper_code,
        images=images,
        only=tuple(only or ()),
        population=population,
        plan=plan,
        is_with_failed=is_with_failed,
        degradation=degrade,
        workers=workers,
        threads=threads_of(threads, workers),
        device=device,
        seed=seed,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )
