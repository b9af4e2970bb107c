"""``modelaudit bench train`` and ``judge``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from modelaudit.cli.bench_job import BenchJob
from modelaudit.cli.bench_options import (
    Data,
    Folder,
    Only,
    OnlyPopulation,
    Plan,
    Population,
    Threads,
    Workers,
    shard_of,
    threads_of,
)
from modelaudit.cli.bench_progress import display
from modelaudit.cli.device import Device, resolve_device
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug, DeviceOption, Quiet
from modelaudit.cli.streams import write_stdout
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from modelaudit.bench.cards import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob(BenchJob):
    """Train a population, or with `is_judging` complete its cards.

    Attributes:
        plan: name or file.
        folder: of the population.
        data: folder of the data.
        only: ids; all if empty.
        population: A or B; both if None.
        shard: (i, n).
        workers: processes.
        threads: of each.
        device: not yet resolved.
        is_judging: whether nothing is trained.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    plan: str
    folder: Path
    data: Path
    only: tuple[str, ...] = ()
    population: Population | None = None
    shard: tuple[int, int] = (0, 1)
    workers: int = 1
    threads: int = 1
    device: Device = Device.CPU
    is_judging: bool = False
    is_quiet: bool = False
    is_debug: bool = False

    def run(self) -> int:
        """Train, judge, and say what the population holds."""
        with display(is_quiet=self.is_quiet, is_debug=self.is_debug) as show:
            from modelaudit.bench.tracker import TrainTracker
            from modelaudit.bench.train_work import TrainWork
            from modelaudit.bench.workers import run_workers

            work = TrainWork(
                plan=self.plan,
                folder=self.folder,
                data_root=self.data,
                device=resolve_device(self.device),
                only=self.only,
                population=self.population,
                shard=self.shard,
            )
            models = work.models()
            chosen = models.choose(only=self.only, population=self.population, shard=self.shard)
            models.check(chosen)
            cards = {m.id: card for m in chosen if (card := models.card(m)) is not None}
            tracker = TrainTracker(chosen, cards, workers=self.workers)
            failed: tuple[str, ...] = ()
            if not self.is_judging:
                show(tracker.status("starting"))
                failed = run_workers(
                    work,
                    workers=self.workers,
                    threads=self.threads,
                    report=lambda event: show(tracker.update(event)),
                )
            chosen_ids = {model.id for model in chosen}
            cards_now = [card for card in models.judge() if card.id in chosen_ids]
        write_stdout(_summary(len(chosen), cards_now, failed))
        return ExitStatus.INCONCLUSIVE if failed else ExitStatus.CLEAN


def train(
    plan: Plan,
    out: Folder,
    data: Data,
    only: Only = None,
    population: OnlyPopulation = None,
    shard: Annotated[
        str, typer.Option(help="Every N-th of the models, from the I-th.", metavar="I/N")
    ] = "0/1",
    workers: Workers = 1,
    threads: Threads = None,
    device: DeviceOption = Device.AUTO,
    is_quiet: Quiet = False,
    is_debug: Debug = False,
) -> Job:
    """Train what a population lacks, and judge the attacks."""
    return TrainJob(
        plan=plan,
        folder=out,
        data=data,
        only=tuple(only or ()),
        population=population,
        shard=shard_of(shard),
        workers=workers,
        threads=threads_of(threads, workers),
        device=device,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )


def judge(
    plan: Plan, out: Folder, data: Data, is_quiet: Quiet = False, is_debug: Debug = False
) -> Job:
    """Judge attacks whose clean twin is trained by now, without training."""
    return TrainJob(
        plan=plan,
        folder=out,
        data=data,
        is_judging=True,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )


def _summary(count: int, cards: Iterable[ModelCard], failed: tuple[str, ...]) -> str:
    cards = list(cards)
    attacked = [card for card in cards if card.attack is not None]
    passed = [card for card in attacked if card.gate_passed]
    clean = len(cards) - len(attacked)
    lines = [
        f"{len(cards)} of {count} models are trained, {clean} of them clean",
        f"{len(passed)} of {len(attacked)} attacks pass the gate",
    ]
    lines += [
        f"gate: {card.id}: {'; '.join(card.gate_reasons)}"
        for card in attacked
        if card.gate_passed is False
    ]
    lines += [f"failed: {id_}, see failed/{id_}.json" for id_ in failed]
    return "".join(f"{line}\n" for line in lines)
