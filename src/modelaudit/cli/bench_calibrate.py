"""``modelaudit bench calibrate``: reference populations from the rows of ``bench scan``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelaudit.cli.calibrate_job import left_out, summary
from modelaudit.cli.console import console
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug, PopulationName
from modelaudit.cli.output import OutputFile
from modelaudit.cli.streams import write_stdout
from modelaudit.errors import ConfigError
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.results import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCalibrateJob(Job):
    """Build populations from rows.

    Attributes:
        rows: JSON Lines files of ``bench scan``.
        population: the plan's population that they are built from.
        measured: the one whose verdicts give their rates; None for no rates.
        out: file to write.
        id_: name of the population.
        notes: sentences for its readers.
        is_debug: whether a failure shows its traceback.
    """

    rows: tuple[Path, ...]
    population: str
    measured: str | None
    out: Path
    id_: str
    notes: tuple[str, ...]
    is_debug: bool

    def run(self) -> int:
        """Build, measure, write, and say what is in the file."""
        target = OutputFile.check(self.out, files=self.rows, folders=(), option="--out")
        with console(is_quiet=True, is_debug=self.is_debug):
            from modelaudit import calibration

            rows = read_rows(self.rows)
            models = calibration.models_of(rows, population=self.population)
            built = calibration.build(models, id_=self.id_, notes=self.notes)
            populations = built.populations
            if self.measured is not None:
                others = calibration.models_of(rows, population=self.measured)
                source = f"population {self.measured} of the same plan"
                populations = tuple(
                    dataclasses.replace(p, rates=calibration.measure(others, p, source=source))
                    for p in populations
                )
            target.write(calibration.dumps(populations))
            lines = [*summary(populations), *left_out(built.left_out)]
        write_stdout("".join(f"{line}\n" for line in lines))
        return ExitStatus.CLEAN


def read_rows(paths: Sequence[Path]) -> list[dict[str, Json]]:
    """Return the rows of several JSON Lines files.

    Raises:
        ConfigError: a file cannot be read, or a line is no JSON object.
    """
    rows = []
    for path in paths:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(
                f"expected rows of `modelaudit bench scan` in {str(path)!r}: {type(err).__name__}"
            ) from err
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as err:
                raise ConfigError(f"{str(path)!r}, line {number}: no JSON ({err})") from err
            if not isinstance(row, dict):
                raise ConfigError(f"{str(path)!r}, line {number}: expected an object")
            rows.append(row)
    return rows


def calibrate(
    rows: Annotated[
        list[Path],
        typer.Argument(
            help="JSON Lines files that 'bench scan' wrote.", metavar="ROWS", show_default=False
        ),
    ],
    population: Annotated[
        str, typer.Option(help="Build from this population of the plan.", metavar="NAME")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    id_: PopulationName = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Measure the verdict's rates on this population, which must not be the same.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(
            help="Sentence for the file's readers (repeatable).", metavar="TEXT", show_default=False
        ),
    ] = None,
    is_debug: Debug = False,
) -> Job:
    """Build a reference population from scanned models, and measure what verdicts it makes."""
    if measure == population:
        raise ConfigError(
            f"--measure must name another population than --population, got {measure!r} for both"
        )
    return BenchCalibrateJob(
        rows=tuple(rows),
        population=population,
        measured=measure,
        out=out,
        id_=id_ or out.stem,
        notes=tuple(note or ()),
        is_debug=is_debug,
    )
