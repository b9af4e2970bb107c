"""``modelaudit bench repair``."""

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
from modelaudit.cli.options import Debug, DeviceOption, Quiet
from modelaudit.cli.population_job import PopulationJob, Task

if TYPE_CHECKING:
    from modelaudit.bench.repair import RepairEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPopulationJob(PopulationJob["RepairEvent"]):
    """Repair a population.

    Attributes, beside those of `PopulationJob`:
        methods: ids; all and `auto` if empty.
        images: size of the clean sets; None for the methods' own.
    """

    unit: ClassVar[str] = "repair"

    methods: tuple[str, ...]
    images: int | None

    def _task(self) -> Task[RepairEvent]:
        from modelaudit.bench.repair import RepairWork
        from modelaudit.bench.repair_tracker import RepairTracker

        models = self._selection()
        work = RepairWork(
            models=models,
            out=self.out,
            methods=self.methods,
            has_paper_code=self.has_paper_code,
            images=self.images,
            seed=self.seed,
            device=resolve_device(self.device),
        )
        cards, methods = models.cards(), work.built()
        return Task(
            work=work,
            tracker=RepairTracker(cards, methods, workers=self.workers),
            scope=f"{len(cards)} models by {len(methods)} methods",
        )


def repair(
    models: Models,
    data: Data,
    out: Rows,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Repair by this method only (repeatable): a repair, with a variant as in "
            "nad@paper_code, or auto.",
            metavar="ID",
            show_default="all",
        ),
    ] = None,
    has_paper_code: Annotated[
        bool, typer.Option("--paper-code", help="Run each repair's paper_code variant too.")
    ] = False,
    images: Annotated[
        int | None,
        typer.Option(
            help="Clean images that the repairs are given, those of the proof among them.",
            metavar="N",
            min=1,
            show_default="500 to prune, 2500 to train and for auto",
        ),
    ] = None,
    only: Only = None,
    population: OnlyPopulation = None,
    plan: OnlyPlan = None,
    is_with_failed: Annotated[
        bool, typer.Option("--with-failed", help="Repair models that failed the gate too.")
    ] = False,
    workers: Workers = 1,
    threads: Threads = None,
    device: DeviceOption = Device.AUTO,
    seed: Seed = 0,
    is_quiet: Quiet = False,
    is_debug: Debug = False,
) -> Job:
    """Repair every model of a population by every method; one JSON line per model and method."""
    return RepairPopulationJob(
        models=models,
        data=data,
        out=out,
        methods=tuple(method or ()),
        has_paper_code=has_paper_code,
        images=images,
        only=tuple(only or ()),
        population=population,
        plan=plan,
        is_with_failed=is_with_failed,
        workers=workers,
        threads=threads_of(threads, workers),
        device=device,
        seed=seed,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )
