"""The work of ``modelaudit scan``: one call of the engine, one report, one exit status."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from modelaudit.cli.console import console
from modelaudit.cli.formats import Format
from modelaudit.cli.outcome import TERMINATED_STATUS, outcome_of
from modelaudit.cli.output import OutputFile
from modelaudit.cli.report_job import ReportJob
from modelaudit.cli.scan_options import ScanOptions
from modelaudit.cli.streams import write_stdout
from modelaudit.errors import OutputError
from modelaudit.report import dumps, short_verdict
from modelaudit.results import (
    CleanSetRecord,
    ExitStatus,
    ScanReport,
    SuspectRecord,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from modelaudit import engine
    from modelaudit.cli.report_job import Page

#: The exit statuses that each verdict may have: nothing but a backdoor ends with 1.
_STATUSES = {
    Verdict.CLEAN: {ExitStatus.CLEAN},
    Verdict.BACKDOORED: {ExitStatus.BACKDOORED},
    Verdict.USAGE: {ExitStatus.USAGE},
    Verdict.REFUSED: {ExitStatus.REFUSED},
    Verdict.UNREADABLE: {ExitStatus.UNREADABLE},
    Verdict.INCONCLUSIVE: {ExitStatus.INCONCLUSIVE},
    Verdict.ERROR: {ExitStatus.OUTPUT_FAILED, ExitStatus.BUG},
    Verdict.INTERRUPTED: {ExitStatus.INTERRUPTED, TERMINATED_STATUS},
}
#: The verdicts that say something about the model; the others are explained on stderr.
_ANSWERS = (Verdict.CLEAN, Verdict.BACKDOORED, Verdict.INCONCLUSIVE)


class ScanJob(ReportJob[ScanOptions, ScanReport]):
    """Scan, then deliver the report."""

    _request: engine.ScanRequest | None = None

    def run(self) -> int:
        """Scan and deliver."""
        options = self._options
        if self._output is not None:
            self._file = OutputFile.check(
                self._output, files=options.files, folders=options.folders
            )
        options.check_scanners()
        with console(is_quiet=self._is_quiet, is_debug=self._is_debug) as progress:
            from modelaudit import engine

            self._request = options.request()
            report = engine.scan(self._request, progress=progress)
        return self._deliver(report)

    def _failure_report(self, error: BaseException) -> ScanReport:
        if self._request is not None:
            from modelaudit import engine

            return engine.failure_report(self._request, error)
        outcome = outcome_of(error)
        return ScanReport(
            verdict=VerdictRecord(
                verdict=outcome.verdict, reason_code=outcome.code, reason=outcome.message
            ),
            exit_status=outcome.exit_status,
            suspect=SuspectRecord(path=str(self._options.checkpoint)),
            clean_set=CleanSetRecord(path=str(self._options.data)),
            alpha=self._options.alpha,
            seed=self._options.seed,
        )

    def _is_answer(self, report: ScanReport) -> bool:
        return report.verdict.verdict in _ANSWERS

    def _complaint(self, report: ScanReport, error: BaseException | None) -> str | None:
        del error
        return None if self._is_answer(report) else report.verdict.reason

    def _json(self, report: ScanReport) -> str:
        return dumps(report)

    def _page(self, report: ScanReport) -> Page:
        from modelaudit.report.terminal import render

        return partial(render, report)

    def _short(self, report: ScanReport) -> str:
        return short_verdict(report)

    def _deliver(self, report: ScanReport, error: BaseException | None = None) -> int:
        verdict = report.verdict.verdict
        if report.exit_status not in _STATUSES[verdict]:
            raise RuntimeError(f"verdict {verdict} with exit status {report.exit_status}")
        return super()._deliver(report, error)

    def _deliver_unwritten(self, report: ScanReport, failure: OutputError) -> int:
        """Keep what was found on stdout although the file could not take it."""
        found = report.verdict
        reason = f"{failure}; the verdict was {found.verdict}"
        report = dataclasses.replace(
            report,
            verdict=dataclasses.replace(
                found, verdict=Verdict.ERROR, reason_code=failure.code, reason=reason, next_step=""
            ),
            exit_status=ExitStatus.OUTPUT_FAILED,
        )
        self.explain(failure, reason, report.exit_status)
        if self._file is not None:
            is_json = self._form is Format.JSON
            try:
                write_stdout(dumps(report) if is_json else short_verdict(report))
            except OutputError as second:
                self.explain(second, str(second), report.exit_status)
        return report.exit_status
