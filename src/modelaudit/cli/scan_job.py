"""The work of ``modelaudit scan``: one call of the engine, one report, one exit status."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from modelaudit.cli.console import console
from modelaudit.cli.formats import Format
from modelaudit.cli.jobs import Job
from modelaudit.cli.outcome import TERMINATED_STATUS, Terminated, outcome_of
from modelaudit.cli.output import OutputFile
from modelaudit.cli.streams import is_terminal, write_stdout
from modelaudit.errors import ConfigError, OutputError
from modelaudit.registry import Registry
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
    from pathlib import Path

    from modelaudit import engine
    from modelaudit.preprocessing import Preprocessing

#: Time for the scanners on a CPU, in seconds, unless the user says otherwise.
CPU_BUDGET_SECONDS = 120.0

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


class Device(StrEnum):
    """``--device``."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """The options of one scan, parsed; see ``modelaudit scan --help``.

    Attributes:
        budget_seconds: None where the device decides, infinity for no limit.
        device: not yet resolved, because that takes torch.
    """

    checkpoint: Path
    data: Path
    scanners: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    arch: str | None = None
    preprocessing: Preprocessing | None = None
    input_size: int | None = None
    classes: Path | None = None
    max_images: int = 500
    mixture: Path | None = None
    calibrations: tuple[Path, ...] = ()
    budget_seconds: float | None = None
    device: Device = Device.AUTO
    seed: int = 0
    alpha: float = 0.05

    def check_scanners(self) -> None:
        """Raise a `ConfigError` for a scanner that nobody registered, before torch is imported."""
        registry = Registry("scanners")
        for name in (*self.scanners, *(scanner for scanner, _, _ in self.settings)):
            registry.entry(name.partition("@")[0])

    def request(self) -> engine.ScanRequest:
        """Return what the engine takes, with the device resolved.

        Raises:
            ConfigError: a CUDA device was asked for and there is none.
        """
        from modelaudit import engine

        device = resolve_device(self.device)
        budget = self.budget_seconds
        if budget is None and device == "cpu":
            budget = CPU_BUDGET_SECONDS
        elif budget is not None and math.isinf(budget):
            budget = None
        return engine.ScanRequest(
            checkpoint=self.checkpoint,
            data=self.data,
            scanners=self.scanners,
            settings=self.settings,
            arch=self.arch,
            preprocessing=self.preprocessing,
            input_size=self.input_size,
            classes=self.classes,
            max_images=self.max_images,
            mixture=self.mixture,
            calibrations=self.calibrations,
            budget_seconds=budget,
            device=device,
            seed=self.seed,
            alpha=self.alpha,
        )


class ScanJob(Job):
    """Scan, then deliver the report.

    Args:
        options: what to scan and how.
        form: format of the report.
        output: file for the report; stdout if None.
        is_quiet: whether stderr carries error sentences only.
        is_debug: whether a failure shows its traceback.
    """

    def __init__(
        self,
        options: ScanOptions,
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
        self._request: engine.ScanRequest | None = None

    @property
    def is_debug(self) -> bool:
        """Whether a failure shows its traceback."""
        return self._is_debug

    def run(self) -> int:
        """Scan and deliver."""
        options = self._options
        if self._output is not None:
            files = [
                options.checkpoint,
                options.data,
                *([options.classes] if options.classes else []),
                *options.calibrations,
            ]
            folders = [options.data, *([options.mixture] if options.mixture else [])]
            self._file = OutputFile.check(self._output, files=files, folders=folders)
        options.check_scanners()
        with console(is_quiet=self._is_quiet, is_debug=self._is_debug) as progress:
            from modelaudit import engine

            self._request = options.request()
            report = engine.scan(self._request, progress=progress)
        return self._deliver(report)

    def fail(self, error: BaseException) -> int:
        """Deliver the report of a scan that raised."""
        report = self._failure_report(error)
        if isinstance(error, Terminated):
            report = dataclasses.replace(report, exit_status=TERMINATED_STATUS)
        return self._deliver(report, error)

    def _failure_report(self, error: BaseException) -> ScanReport:
        """Return the engine's report of the failure, or a bare one if it was not reached."""
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

    def _deliver(self, report: ScanReport, error: BaseException | None = None) -> int:
        """Explain a failure, write the report where it belongs, and return the exit status."""
        verdict = report.verdict.verdict
        if report.exit_status not in _STATUSES[verdict]:
            raise RuntimeError(f"verdict {verdict} with exit status {report.exit_status}")
        if verdict not in _ANSWERS:
            self.explain(error, report.verdict.reason, report.exit_status)
        if verdict is Verdict.USAGE:
            return report.exit_status
        try:
            if self._file is not None:
                self._file.write(self._format(report, is_for_file=True))
                write_stdout(short_verdict(report))
            elif verdict in _ANSWERS or self._form is Format.JSON:
                write_stdout(self._format(report, is_for_file=False))
        except OutputError as failure:
            return self._deliver_unwritten(report, failure)
        return report.exit_status

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

    def _format(self, report: ScanReport, *, is_for_file: bool) -> str:
        if self._form is Format.JSON:
            return dumps(report)
        from modelaudit.report.terminal import render

        if is_for_file or not is_terminal(sys.stdout):
            encoding = "utf-8" if is_for_file or sys.stdout is None else sys.stdout.encoding
            return render(report, encoding=encoding or "utf-8")
        return render(
            report,
            width=shutil.get_terminal_size().columns,
            has_color="NO_COLOR" not in os.environ,
            encoding=sys.stdout.encoding or "utf-8",
        )


def resolve_device(device: Device) -> str:
    """Return the device that ``--device`` means.

    Raises:
        ConfigError: a CUDA device was asked for and there is none.
    """
    if device is Device.CPU:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device is Device.CUDA:
        raise ConfigError(
            "--device cuda: no CUDA device is available to this installation of torch; "
            "use --device cpu or auto"
        )
    return "cpu"
