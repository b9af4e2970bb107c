"""The options that the commands of ``modelaudit bench`` share."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modelaudit.errors import ConfigError


class Population(StrEnum):
    """``--population``."""

    A = "A"
    B = "B"


Plan = Annotated[str, typer.Option(help="A plan file, or a plan's name.", metavar="FILE|NAME")]
Folder = Annotated[Path, typer.Option("--out", help="Folder of the population.", metavar="DIR")]
Models = Annotated[Path, typer.Option(help="Folder that 'bench train' wrote.", metavar="DIR")]
Rows = Annotated[Path, typer.Option("--out", help="JSON Lines file to append to.", metavar="FILE")]
Data = Annotated[
    Path,
    typer.Option(
        help="Folder with the data: packs NAME_jpeg.npz, or folders NAME of class folders.",
        metavar="DIR",
    ),
]
Only = Annotated[list[str] | None, typer.Option(help="Only this model (repeatable).", metavar="ID")]
OnlyPopulation = Annotated[
    Population | None, typer.Option("--population", help="Only models of this population.")
]
OnlyPlan = Annotated[
    str | None,
    typer.Option(
        "--plan", help="Only the models of this plan.", metavar="FILE|NAME", show_default="all"
    ),
]
Workers = Annotated[int, typer.Option(help="Processes side by side.", metavar="N", min=1)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads of each process.",
        metavar="N",
        min=1,
        show_default="processors by workers",
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same rows.", metavar="N", min=0)]


def threads_of(threads: int | None, workers: int) -> int:
    """Return the threads of each process; the processors shared out where nothing is said."""
    return threads or max(1, (os.cpu_count() or 1) // workers)


def shard_of(text: str) -> tuple[int, int]:
    """Return I and N of ``I/N``.

    Raises:
        ConfigError: not two whole numbers with 0 <= I < N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard expects I/N with 0 <= I < N, got {text!r}")
    return int(match[1]), int(match[2])
