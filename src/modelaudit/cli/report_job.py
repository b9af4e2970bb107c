"""A command whose work ends in a report: delivered on every end, in one form, with one status."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from modelaudit.cli.formats import Format
from modelaudit.cli.jobs import Job
from modelaudit.cli.outcome import TERMINATED_STATUS, Terminated
from modelaudit.cli.streams import is_terminal, write_stdout
from modelaudit.errors import OutputError
from modelaudit.repair_results import RepairReport
from modelaudit.results import ExitStatus, ScanReport

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.cli.output import OutputFile

OptionsT = TypeVar("OptionsT")
ReportT = TypeVar("ReportT", ScanReport, RepairReport)


class Page(Protocol):
    """Sets one report as text; see `modelaudit.report.terminal.render`."""

    def __call__(self, *, width: int = 80, has_color: bool = False, encoding: str = "utf-8") -> str:
        """Return the text."""


class ReportJob(Job, Generic[OptionsT, ReportT]):
    """Call the engine once, then deliver its report, or one of what kept it from answering.

    Args:
        options: what to do, and how.
        form: format of the report.
        output: file for the report; stdout if None.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    def __init__(
        self,
        options: OptionsT,
        *,
        form: Format,
        output: Path | None,
        is_quiet: bool,
        is_debug: bool,
    ) -> None:
        self._options = options
        self._form = form
        self._output = output
        self._is_quiet = is_quiet
        self._is_debug = is_debug
        self._file: OutputFile | None = None

    @property
    def is_debug(self) -> bool:
        """Whether a failure shows its traceback."""
        return self._is_debug

    def fail(self, error: BaseException) -> int:
        """Deliver the report of work that raised."""
        report = self._failure_report(error)
        if isinstance(error, Terminated):
            report = dataclasses.replace(report, exit_status=TERMINATED_STATUS)
        return self._deliver(report, error)

    @abstractmethod
    def _failure_report(self, error: BaseException) -> ReportT:
        """Return the engine's report of the failure, or a bare one if it was not reached."""

    @abstractmethod
    def _is_answer(self, report: ReportT) -> bool:
        """Return whether the report says something about the model."""

    @abstractmethod
    def _complaint(self, report: ReportT, error: BaseException | None) -> str | None:
        """Return the sentence for stderr, or None where the report is enough."""

    @abstractmethod
    def _json(self, report: ReportT) -> str:
        """Return the report as JSON."""

    @abstractmethod
    def _page(self, report: ReportT) -> Page:
        """Return what sets the report for a reader."""

    @abstractmethod
    def _short(self, report: ReportT) -> str:
        """Return the outcome for stdout when the report goes to a file."""

    @abstractmethod
    def _deliver_unwritten(self, report: ReportT, failure: OutputError) -> int:
        """Say that the report could not be written, and return the exit status."""

    def _deliver(self, report: ReportT, error: BaseException | None = None) -> int:
        """Explain a failure, write the report where it belongs, and return the exit status."""
        complaint = self._complaint(report, error)
        if complaint is not None:
            self.explain(error, complaint, report.exit_status)
        if report.exit_status == ExitStatus.USAGE:
            return report.exit_status
        try:
            if self._file is not None:
                self._file.write(self._format(report, is_for_file=True))
                write_stdout(self._short(report))
            elif self._is_answer(report) or self._form is Format.JSON:
                write_stdout(self._format(report, is_for_file=False))
        except OutputError as failure:
            return self._deliver_unwritten(report, failure)
        return report.exit_status

    def _format(self, report: ReportT, *, is_for_file: bool) -> str:
        if self._form is Format.JSON:
            return self._json(report)
        page = self._page(report)
        if is_for_file or not is_terminal(sys.stdout):
            encoding = "utf-8" if is_for_file or sys.stdout is None else sys.stdout.encoding
            return page(encoding=encoding or "utf-8")
        return page(
            width=shutil.get_terminal_size().columns,
            has_color="NO_COLOR" not in os.environ,
            encoding=sys.stdout.encoding or "utf-8",
        )
