"""The work of ``modelaudit calibrate``: scan the folder, keep each model, write the population."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit import __version__
from modelaudit.cli.console import console
from modelaudit.cli.jobs import Job
from modelaudit.cli.output import OutputFile
from modelaudit.cli.streams import write_stdout
from modelaudit.errors import ConfigError
from modelaudit.report.words import safe, sentence
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelaudit.calibration import Population, ScannedModel
    from modelaudit.cli.scan_options import ScanOptions
    from modelaudit.results import Json

#: Added to the name of the output while models are being scanned.
PARTIAL = ".partial.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateJob(Job):
    """Build a population from a folder of known-clean models.

    Attributes:
        models: the folder.
        options: how each model is scanned.
        out: file to write.
        id_: name of the population.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    models: Path
    options: ScanOptions
    out: Path
    id_: str
    is_quiet: bool
    is_debug: bool

    def run(self) -> int:
        """Scan what was not scanned before, write the file, say what is in it."""
        options = self.options
        files = [options.classes] if options.classes else []
        folders = [self.models, options.data]
        target = OutputFile.check(self.out, files=files, folders=folders, option="--out")
        options.check_scanners()
        with console(is_quiet=self.is_quiet, is_debug=self.is_debug) as progress:
            from modelaudit import calibration
            from modelaudit.engine.calibrate import calibrate

            partial = Partial(target.path.with_name(target.path.name + PARTIAL), self._header())
            done = calibrate(
                self.models,
                options.request(),
                id_=self.id_,
                progress=progress,
                known=partial.read(),
                keep=partial.append,
            )
            target.write(calibration.dumps(done.populations))
            partial.path.unlink(missing_ok=True)
            lines = [*summary(done.populations), *left_out(done.left_out)]
            lines += [
                f"look at {safe(name)}: the scanners alone call it backdoored"
                for name in done.accused
            ]
        write_stdout("".join(f"{line}\n" for line in lines))
        return ExitStatus.CLEAN

    def _header(self) -> dict[str, Json]:
        """Return what two runs must share for one to go on with the other's models."""
        options = self.options
        return {
            "modelaudit": __version__,
            "data": str(options.data),
            "scanners": list(options.scanners),
            "arch": options.arch,
            "preprocessing": str(options.preprocessing),
            "classes": str(options.classes),
            "max_images": options.max_images,
            "device": str(options.device),
            "seed": options.seed,
        }


@dataclass(frozen=True, slots=True)
class Partial:
    """Models that an interrupted run has already scanned, one JSON line each.

    Attributes:
        path: the file.
        header: its first line.
    """

    path: Path
    header: dict[str, Json]

    def read(self) -> dict[str, ScannedModel]:
        """Return the models by the digest of their file; a line that was cut off is forgotten.

        Raises:
            ConfigError: the file was left by a run with other options.
        """
        from modelaudit import calibration

        if not self.path.exists():
            return {}
        lines = self.path.read_text("utf-8").splitlines()
        records = [record for record in map(_parsed, lines) if record is not None]
        if not records or records[0] != self.header:
            raise ConfigError(
                f"{str(self.path)!r} was left by a run with other options; remove it, or choose "
                "another --out"
            )
        found = {}
        for record in records[1:]:
            rows = record.get("rows")
            if isinstance(rows, list):
                (model,) = calibration.models_of([r for r in rows if isinstance(r, dict)])
                found[model.checkpoint_sha256] = model
        return found

    def append(self, model: ScannedModel) -> None:
        """Add a model, so that it survives whatever ends the run."""
        from modelaudit import calibration

        is_new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if is_new:
                file.write(json.dumps(self.header) + "\n")
            # a line of its own, also behind one that was cut off
            file.write("\n" + json.dumps({"rows": _rows(calibration.rows_of(model))}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _rows(rows: Sequence[dict[str, Json]]) -> list[Json]:
    return [dict(row) for row in rows]


def _parsed(line: str) -> dict[str, Json] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def summary(populations: Sequence[Population]) -> list[str]:
    """Return what was built, a few lines for each population."""
    from modelaudit.calibration import ENOUGH_CLEAN

    lines = []
    for population in populations:
        bucket = dataclasses.asdict(population.bucket)
        bounds = ", ".join(f"{name} {value}" for name, value in bucket.items())
        scanners = ", ".join(scanner.id for scanner in population.scanners)
        clean = len(population.clean)
        families = ", ".join(map(safe, population.families))
        attacked = len(population.attacked)
        lines += [
            f"{safe(population.id)}: {clean} clean and {attacked} attacked models of {families}",
            f"  bucket: {bounds}; scanners: {safe(scanners)}",
            f"  combined score: suspicious from {population.suspicious:.3g}",
            f"  combined score: strong above {population.strong:.3g}",
        ]
        if clean < ENOUGH_CLEAN:
            lines.append(
                f"  warning: {clean} clean models are few: p-values below 1/{clean + 1} do not "
                f"exist; give {ENOUGH_CLEAN} or more"
            )
        rates = population.rates
        if rates is not None:
            lines.append(
                f"  measured on {safe(rates.source)}: {rates.false_alarms} of {rates.clean} clean "
                f"models called backdoored, {rates.detected} of {rates.attacked} attacked ones "
                "found"
            )
    return lines


def left_out(models: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line for each model that is in no population."""
    return [f"left out {safe(name)}: {sentence(reason)}" for name, reason in models]
