"""The work of ``modelaudit repair``: one call of the engine, one file, one report, one status."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from modelaudit.cli.console import console
from modelaudit.cli.outcome import outcome_of
from modelaudit.cli.output import OutputFile
from modelaudit.cli.report_job import ReportJob
from modelaudit.errors import ConfigError, OutputError
from modelaudit.registry import Registry
from modelaudit.repair_results import RepairOutcome, RepairReport
from modelaudit.report.repair_json import dump_repair, prior_scan
from modelaudit.results import CleanSetRecord, ExitStatus, SuspectRecord, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit import engine
    from modelaudit.cli.report_job import Page
    from modelaudit.cli.scan_options import ScanOptions
    from modelaudit.repair_results import PriorScan, WrittenFile

#: The outcomes that say something about the model; the others are explained on stderr.
_ANSWERS = (
    RepairOutcome.REPAIRED,
    RepairOutcome.NOT_NEEDED,
    RepairOutcome.PLANNED,
    RepairOutcome.STILL_BACKDOORED,
    RepairOutcome.INCONCLUSIVE,
    RepairOutcome.NOT_WRITTEN,
)
_MAX_REPORT_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """The options of one repair, parsed; see ``modelaudit repair --help``.

    Attributes:
        scan: the options that a scan has too.
        settings: of repairs and scanners, not yet told apart.
    """

    scan: ScanOptions
    method: str
    out: Path | None = None
    report: Path | None = None
    settings: tuple[tuple[str, str, str], ...] = ()
    max_images: int = 2500
    max_accuracy_drop: float = 0.02
    is_forced: bool = False
    is_dry_run: bool = False
    keeps_format: bool = False

    def check_names(self) -> None:
        """Raise a `ConfigError` for a repair or scanner that nobody registered, before torch."""
        self.scan.check_scanners()
        repairs = Registry("repairs")
        if self.method != "auto":
            repairs.entry(self.method.partition("@")[0])
        for owner, _, _ in self.settings:
            if not self._is_repair(owner):
                Registry("scanners").entry(owner.partition("@")[0])

    def request(self) -> engine.RepairRequest:
        """Return what the engine takes.

        Raises:
            ConfigError: a CUDA device was asked for and there is none, or the report is unusable.
        """
        from modelaudit import engine

        scan = dataclasses.replace(
            self.scan, settings=tuple(s for s in self.settings if not self._is_repair(s[0]))
        )
        return engine.RepairRequest(
            scan=scan.request(),
            method=self.method,
            settings=tuple(s for s in self.settings if self._is_repair(s[0])),
            max_repair_images=self.max_images,
            max_accuracy_drop=self.max_accuracy_drop,
            is_forced=self.is_forced,
            is_dry_run=self.is_dry_run,
            keeps_format=self.keeps_format,
            prior=None if self.report is None else _read_report(self.report),
        )

    @staticmethod
    def _is_repair(owner: str) -> bool:
        return owner.partition("@")[0] in Registry("repairs").ids()


class RepairJob(ReportJob[RepairOptions, RepairReport]):
    """Repair, write the file, deliver the report; what raises before that has written nothing."""

    _request: engine.RepairRequest | None = None
    _written: WrittenFile | None = None

    def run(self) -> int:
        """Repair, write and deliver."""
        options = self._options
        model_file = self._check_outputs()
        options.check_names()
        with console(is_quiet=self._is_quiet, is_debug=self._is_debug) as progress:
            from modelaudit import engine

            self._request = options.request()
            repaired = engine.repair(self._request, progress=progress)
            if repaired.tensors is not None and model_file is not None:
                encoded = repaired.encoded()
                written = repaired.written(encoded, model_file.shown)
                model_file.write_bytes(encoded.data, check=repaired.check)
                repaired, self._written = written, written.report.written
        return self._deliver(repaired.report)

    def _check_outputs(self) -> OutputFile | None:
        options, scan = self._options, self._options.scan
        files = scan.files if options.report is None else (*scan.files, options.report)
        model_file = None
        if options.out is not None:
            model_file = OutputFile.check(
                options.out, files=files, folders=scan.folders, option="--out"
            )
        if self._output is not None:
            self._file = OutputFile.check(self._output, files=files, folders=scan.folders)
        if model_file is not None and self._file is not None and model_file.path == self._file.path:
            raise ConfigError(
                f"--out and --output are both {str(options.out)!r}; give the model and the report "
                "files of their own"
            )
        return model_file

    def _failure_report(self, error: BaseException) -> RepairReport:
        if self._request is not None:
            from modelaudit import engine

            report = engine.repair_failure_report(self._request, error)
            if self._written is None:
                return report
            # It came while the report was delivered.
            return dataclasses.replace(
                report,
                reason=f"{report.reason}; {self._written.path} was written",
                written=self._written,
            )
        outcome = outcome_of(error)
        scan = self._options.scan
        return RepairReport(
            outcome=RepairOutcome(outcome.verdict.value)
            if outcome.verdict is not Verdict.INCONCLUSIVE
            else RepairOutcome.NOT_WRITTEN,
            exit_status=outcome.exit_status,
            reason_code=outcome.code,
            reason=outcome.message,
            method=self._options.method,
            suspect=SuspectRecord(path=str(scan.checkpoint)),
            clean_set=CleanSetRecord(path=str(scan.data)),
            seed=scan.seed,
        )

    def _is_answer(self, report: RepairReport) -> bool:
        return report.outcome in _ANSWERS

    def _complaint(self, report: RepairReport, error: BaseException | None) -> str | None:
        is_told = self._is_answer(report) and (error is None or report.before is not None)
        return None if is_told else report.reason

    def _json(self, report: RepairReport) -> str:
        return dump_repair(report)

    def _page(self, report: RepairReport) -> Page:
        from modelaudit.report.repair_terminal import render_repair

        return partial(render_repair, report)

    def _short(self, report: RepairReport) -> str:
        from modelaudit.report.repair_terminal import short_outcome

        return short_outcome(report)

    def _deliver_unwritten(self, report: RepairReport, failure: OutputError) -> int:
        written = "" if report.written is None else f"; {report.written.path} was written"
        self.explain(failure, f"{failure}{written}", ExitStatus.OUTPUT_FAILED)
        return ExitStatus.OUTPUT_FAILED


def _read_report(path: Path) -> PriorScan:
    """Read the JSON report of a scan.

    Raises:
        ConfigError: there is none at `path`.
    """
    try:
        if path.stat().st_size > _MAX_REPORT_BYTES:
            raise ConfigError(f"--report {str(path)!r} is too large to be a scan's report")
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigError(
            f"--report expects the JSON of modelaudit scan, {str(path)!r} is not readable as JSON "
            f"({err})"
        ) from err
    return prior_scan(document)
