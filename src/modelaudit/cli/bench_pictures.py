"""``modelaudit bench pictures``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelaudit.cli.bench_job import BenchJob
from modelaudit.cli.bench_options import Data
from modelaudit.cli.console import console
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug, Quiet
from modelaudit.cli.streams import write_stdout
from modelaudit.errors import ConfigError
from modelaudit.results import ExitStatus


class Shown(StrEnum):
    """``--show``."""

    TEST = "test"
    TRAINING = "training"
    COVER = "cover"


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturesJob(BenchJob):
    """Draw contact sheets.

    Attributes:
        out: folder of the sheets.
        data: folder of the data.
        attacks: ids; every registered one if empty.
        dataset: whose images are triggered.
        shown: which trigger.
        plan: whose models are drawn instead of attacks with their defaults.
        models: folder of that population.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    out: Path
    data: Path
    attacks: tuple[str, ...]
    dataset: str
    shown: Shown
    plan: str | None
    models: Path | None
    is_quiet: bool
    is_debug: bool

    def run(self) -> int:
        """Draw, and say which file shows what."""
        if (self.plan is None) != (self.models is None):
            raise ConfigError("--plan and --models belong together; give both or neither")
        with console(is_quiet=self.is_quiet, is_debug=self.is_debug):
            from modelaudit.bench.pictures import draw_attacks, draw_population

            if self.plan is not None and self.models is not None:
                drawn = list(
                    draw_population(
                        self.plan,
                        models=self.models,
                        data_root=self.data,
                        out=self.out,
                        shown=self.shown.value,
                    )
                )
            else:
                drawn = list(
                    draw_attacks(
                        self.attacks,
                        dataset=self.dataset,
                        data_root=self.data,
                        out=self.out,
                        shown=self.shown.value,
                    )
                )
        lines = [
            f"{one.name}: {one.path if one.path is not None else 'no picture: ' + one.reason}\n"
            for one in drawn
        ]
        write_stdout("".join(lines))
        return ExitStatus.CLEAN


def pictures(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the pictures.", metavar="DIR")],
    attack: Annotated[
        list[str] | None,
        typer.Option(help="Draw this attack only (repeatable).", metavar="ID", show_default="all"),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="Data set whose images are triggered.", metavar="NAME")
    ] = "cifar10",
    shown: Annotated[
        Shown,
        typer.Option(
            "--show",
            help="The trigger of test time, that of training on poisoned images, or what images "
            "carry that keep their label.",
        ),
    ] = Shown.TEST,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Draw the trained models of this plan instead; with --models.",
            metavar="FILE|NAME",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="Folder that 'bench train' wrote.", metavar="DIR", show_default=False),
    ] = None,
    is_quiet: Quiet = False,
    is_debug: Debug = False,
) -> Job:
    """Draw triggers: clean images, the same triggered, and ten times the difference."""
    return PicturesJob(
        out=out,
        data=data,
        attacks=tuple(attack or ()),
        dataset=dataset,
        shown=shown,
        plan=plan,
        models=models,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )
