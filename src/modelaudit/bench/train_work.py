"""The work of one process of ``bench train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.bench.plan import find_plan
from modelaudit.bench.runner import Population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelaudit.bench.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWork:
    """Trains the chosen models of a plan, as a worker process does; all fields can be pickled.

    Attributes:
        plan: name or file, see `find_plan`.
        folder: of the population.
        data_root: folder of the data packs.
        device: name of the device.
        only: see `Population.choose`.
        population: see `Population.choose`.
        shard: see `Population.choose`.
    """

    plan: str
    folder: Path
    data_root: Path
    device: str = "cpu"
    only: tuple[str, ...] = ()
    population: str | None = None
    shard: tuple[int, int] = (0, 1)

    def models(self, report: Callable[[Event], None] = lambda _: None) -> Population:
        """Return the population, its reports led to `report`."""
        return Population(
            find_plan(self.plan),
            folder=self.folder,
            data_root=self.data_root,
            device=torch.device(self.device),
            report=report,
        )

    def __call__(self, run: str, report: Callable[[Event], None]) -> tuple[str, ...]:
        """Train what nobody else trains; return the ids that failed."""
        return self.models(report).train(
            only=self.only, population=self.population, shard=self.shard, run=run
        )
