"""``modelaudit bench scan``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli.bench_job import BenchJob
from modelaudit.cli.bench_options import (
    Data,
    Debug,
    Only,
    OnlyPopulation,
    Population,
    Quiet,
    Threads,
    Workers,
    threads_of,
)
from modelaudit.cli.bench_progress import display
from modelaudit.cli.jobs import Job
from modelaudit.cli.scan_job import Device, resolve_device
from modelaudit.cli.streams import write_stdout
from modelaudit.results import ExitStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPopulationJob(BenchJob):
    """Scan a population.

    Attributes:
        models: folder of the population.
        data: folder of the data.
        out: JSON Lines file.
        scanners: ids; all if empty.
        has_paper_code: whether the authors' procedures run too.
        images: size of the clean sets.
        only: ids of models; all if empty.
        population: A or B; both if None.
        plan: only the models of this plan; None for all.
        is_with_failed: whether models that failed the gate are scanned too.
        degradation: what is done to the clean images; None for nothing.
        workers: processes.
        threads: of each.
        device: not yet resolved.
        seed: of the scans.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    models: Path
    data: Path
    out: Path
    scanners: tuple[str, ...]
    has_paper_code: bool
    images: int
    only: tuple[str, ...]
    population: Population | None
    plan: str | None
    is_with_failed: bool
    degradation: str | None
    workers: int
    threads: int
    device: Device
    seed: int
    is_quiet: bool
    is_debug: bool

    def run(self) -> int:
        """Scan what has no row yet and say how many there are."""
        with display(is_quiet=self.is_quiet, is_debug=self.is_debug) as show:
            from modelaudit.bench.rows import read_keys
            from modelaudit.bench.scan import ScanWork
            from modelaudit.bench.tracker import ScanTracker
            from modelaudit.bench.workers import run_workers

            work = ScanWork(
                folder=self.models,
                data_root=self.data,
                out=self.out,
                scanners=self.scanners,
                has_paper_code=self.has_paper_code,
                images=self.images,
                seed=self.seed,
                device=resolve_device(self.device),
                only=self.only,
                population=self.population,
                plan=self.plan,
                is_with_failed=self.is_with_failed,
                degradation=self.degradation,
            )
            cards = work.cards()
            tracker = ScanTracker(cards, workers=self.workers)
            show(tracker.status("starting"))
            failed = run_workers(
                work,
                workers=self.workers,
                threads=self.threads,
                report=lambda event: show(tracker.update(event)),
            )
            rows = len(read_keys(self.out))
        lines = [f"{rows} rows in {self.out}, {len(cards)} models are to be scanned"]
        lines += [f"a scanner failed on {id_}, see its rows" for id_ in failed]
        write_stdout("".join(f"{line}\n" for line in lines))
        return ExitStatus.INCONCLUSIVE if failed else ExitStatus.CLEAN


def scan(
    models: Annotated[Path, typer.Option(help="Folder that 'bench train' wrote.", metavar="DIR")],
    data: Data,
    out: Annotated[Path, typer.Option(help="JSON Lines file to append to.", metavar="FILE")],
    scanner: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this scanner only (repeatable), with a variant as in ban@paper_code.",
            metavar="ID",
            show_default="all",
        ),
    ] = None,
    has_paper_code: Annotated[
        bool, typer.Option("--paper-code", help="Run each scanner's paper_code variant too.")
    ] = False,
    images: Annotated[
        int, typer.Option(help="Clean images that the scans are given.", metavar="N", min=1)
    ] = 500,
    only: Only = None,
    population: OnlyPopulation = None,
    plan: Annotated[
        str | None,
        typer.Option(help="Only the models of this plan.", metavar="FILE|NAME", show_default="all"),
    ] = None,
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
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.AUTO,
    seed: Annotated[int, typer.Option(help="Same seed, same rows.", metavar="N", min=0)] = 0,
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
