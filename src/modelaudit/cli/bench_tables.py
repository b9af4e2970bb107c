"""``modelaudit bench tables``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelaudit.cli.console import console
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug, Quiet
from modelaudit.cli.streams import write_stdout
from modelaudit.errors import ConfigError, OutputError
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from modelaudit.bench.cards import ModelCard
    from modelaudit.calibration import Population


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTablesJob(Job):
    """Write the tables.

    Attributes:
        rows: JSON Lines files.
        out: folder to write into.
        cards: folder of model cards, if any.
        calibration: files of reference populations; the shipped ones if empty.
        has_plots: whether pictures are drawn too.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    rows: tuple[Path, ...]
    out: Path
    cards: Path | None
    calibration: tuple[Path, ...]
    has_plots: bool
    is_quiet: bool
    is_debug: bool

    def run(self) -> int:
        """Write the files and say which."""
        with console(is_quiet=self.is_quiet, is_debug=self.is_debug):
            from modelaudit.bench.plots import draw
            from modelaudit.bench.tables import build, read_rows

            scans, repairs = read_rows(self.rows)
            if not scans and not repairs:
                raise ConfigError(
                    "the files hold no row; give what 'bench scan' or 'bench repair' wrote"
                )
            report = build(scans, repairs, cards=self._cards(), populations=self._populations())
            files = {name: text.encode("utf-8") for name, text in report.files().items()}
            if self.has_plots:
                files |= draw(report.blocks, report.detectors)
            self._write(files)
        write_stdout("".join(f"{self.out / name}\n" for name in sorted(files)))
        return ExitStatus.CLEAN

    def _cards(self) -> dict[str, ModelCard]:
        from modelaudit.bench.cards import read_card

        if self.cards is None:
            return {}
        paths = sorted(self.cards.glob("*.json"))
        if not paths:
            raise ConfigError(f"expected model cards in {str(self.cards)!r}, found none")
        return {card.id: card for card in map(read_card, paths)}

    def _populations(self) -> tuple[Population, ...]:
        from modelaudit.calibration import read_populations, shipped_populations

        if not self.calibration:
            return shipped_populations()
        return tuple(found for path in self.calibration for found in read_populations(path))

    def _write(self, files: dict[str, bytes]) -> None:
        from modelaudit.bench.files import write_whole

        try:
            for name, content in files.items():
                write_whole(self.out / name, content)
        except OSError as err:
            raise OutputError(
                f"{str(self.out)!r} could not be written: {err.strerror}; choose another --out"
            ) from err


def tables(
    rows: Annotated[
        list[Path],
        typer.Argument(
            help="JSON Lines of 'bench scan' and 'bench repair'.",
            metavar="ROWS",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.", metavar="DIR")],
    cards: Annotated[
        Path | None,
        typer.Option(
            help="Folder of model cards: adds models without rows, and why the gate failed.",
            metavar="DIR",
            show_default="none",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of reference populations that verdicts rest on (repeatable).",
            metavar="FILE",
            show_default="the shipped ones",
        ),
    ] = None,
    has_plots: Annotated[
        bool,
        typer.Option("--plots", help="Draw score distributions and ROC curves (needs matplotlib)."),
    ] = False,
    is_quiet: Quiet = False,
    is_debug: Debug = False,
) -> Job:
    """Write Markdown and CSV tables of scanned and repaired models, beside the papers' figures."""
    return BenchTablesJob(
        rows=tuple(rows),
        out=out,
        cards=cards,
        calibration=tuple(calibration or ()),
        has_plots=has_plots,
        is_quiet=is_quiet,
        is_debug=is_debug,
    )
