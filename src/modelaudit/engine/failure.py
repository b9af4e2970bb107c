"""Turns what stopped a scan or a repair into a report: every path ends in one document."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.engine.versions import versions
from modelaudit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FitError,
    ModelAuditError,
    OutputError,
    PluginError,
    RepairError,
    TooFewImagesError,
    UnknownArchitectureError,
    UnsafeCheckpointError,
)
from modelaudit.repair_results import RepairOutcome, RepairReport
from modelaudit.results import (
    CleanSetRecord,
    ExitStatus,
    ScanReport,
    SuspectRecord,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.engine.request import RepairRequest, ScanRequest

#: error class to verdict, exit status and next step; the first that fits decides.
_BY_ERROR: tuple[tuple[type[BaseException], Verdict, int, str], ...] = (
    (
        UnsafeCheckpointError,
        Verdict.REFUSED,
        ExitStatus.REFUSED,
        "do not load this file; ask its sender for a plain state dict or safetensors",
    ),
    (
        CheckpointError,
        Verdict.UNREADABLE,
        ExitStatus.UNREADABLE,
        "give a readable checkpoint of a supported architecture, or name it with --arch",
    ),
    (
        DataError,
        Verdict.UNREADABLE,
        ExitStatus.UNREADABLE,
        "give a folder of clean images as docs/clean-set.md describes",
    ),
    (
        FitError,
        Verdict.UNREADABLE,
        ExitStatus.UNREADABLE,
        "say how the model is run: --arch, --preprocess, --input-size or --classes",
    ),
    (
        TooFewImagesError,
        Verdict.INCONCLUSIVE,
        ExitStatus.INCONCLUSIVE,
        "give 500 clean images, at least 100 and 5 of each class",
    ),
    (
        RepairError,
        Verdict.INCONCLUSIVE,
        ExitStatus.INCONCLUSIVE,
        "nothing was written; try another method",
    ),
    (ConfigError, Verdict.USAGE, ExitStatus.USAGE, "see modelaudit scan --help"),
    (PluginError, Verdict.USAGE, ExitStatus.USAGE, "mend or uninstall the plug-in"),
    (
        OutputError,
        Verdict.ERROR,
        ExitStatus.OUTPUT_FAILED,
        "free space or choose another --output, then scan again",
    ),
    (KeyboardInterrupt, Verdict.INTERRUPTED, ExitStatus.INTERRUPTED, "scan again"),
)
#: Next steps of a repair, where those of a scan would lead astray.
_STEPS_OF_REPAIR: dict[type[BaseException], str] = {
    ConfigError: "see modelaudit repair --help",
    OutputError: "free space or choose another --out, then repair again",
    KeyboardInterrupt: "repair again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What an exception means for whoever ran a command.

    Attributes:
        verdict: the report's word.
        exit_status: of the command.
        code: stable machine-readable name.
        message: one sentence.
        next_step: what to do.
    """

    verdict: Verdict
    exit_status: int
    code: str
    message: str
    next_step: str


def failure_of(
    error: BaseException, *, steps: Mapping[type[BaseException], str] = MappingProxyType({})
) -> Failure:
    """Return what an exception means; anything unknown is a bug in modelaudit (exit status 70).

    Args:
        error: what ended the command.
        steps: error class to a next step that takes the place of the scan's.
    """
    verdict, status, step = (
        Verdict.ERROR,
        ExitStatus.BUG,
        "report this as a bug, with the output of --debug",
    )
    for kind, its_verdict, its_status, its_step in _BY_ERROR:
        if isinstance(error, kind):
            verdict, status, step = its_verdict, its_status, steps.get(kind, its_step)
            break
    code = error.code if isinstance(error, ModelAuditError) else f"MA-E{status:03d}"
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    if isinstance(error, UnknownArchitectureError) and error.closest:
        message = f"{message}; closest: {'; '.join(error.closest)}"
    if status == ExitStatus.BUG:
        message = f"{type(error).__name__}: {error}"
    return Failure(verdict=verdict, exit_status=status, code=code, message=message, next_step=step)


def failure_report(request: ScanRequest, error: BaseException) -> ScanReport:
    """Return the report of a scan that `error` ended."""
    failure = failure_of(error)
    return ScanReport(
        verdict=VerdictRecord(
            verdict=failure.verdict,
            reason_code=failure.code,
            reason=failure.message,
            next_step=failure.next_step,
        ),
        exit_status=failure.exit_status,
        suspect=SuspectRecord(path=str(request.checkpoint)),
        clean_set=CleanSetRecord(path=str(request.data)),
        alpha=request.alpha,
        budget_seconds=request.budget_seconds,
        device=request.device,
        versions=versions(),
        seed=request.seed,
    )


def repair_failure_report(request: RepairRequest, error: BaseException) -> RepairReport:
    """Return the report of a repair that `error` ended; nothing was written."""
    failure = failure_of(error, steps=_STEPS_OF_REPAIR)
    outcome = (
        RepairOutcome.NOT_WRITTEN
        if failure.verdict is Verdict.INCONCLUSIVE
        else RepairOutcome(failure.verdict.value)
    )
    return RepairReport(
        outcome=outcome,
        exit_status=failure.exit_status,
        reason_code=failure.code,
        reason=failure.message,
        next_step=failure.next_step,
        method=request.method,
        suspect=SuspectRecord(path=str(request.scan.checkpoint)),
        clean_set=CleanSetRecord(path=str(request.scan.data)),
        max_accuracy_drop=request.max_accuracy_drop,
        device=request.scan.device,
        versions=versions(),
        seed=request.scan.seed,
    )
