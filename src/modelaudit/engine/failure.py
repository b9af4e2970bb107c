"""Turns what stopped a scan into a report, so that every path ends in one JSON document."""

from __future__ import annotations

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
    TooFewImagesError,
    UnknownArchitectureError,
    UnsafeCheckpointError,
)
from modelaudit.results import (
    CleanSetRecord,
    ExitStatus,
    ScanReport,
    SuspectRecord,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from modelaudit.engine.request import ScanRequest

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


def failure_report(request: ScanRequest, error: BaseException) -> ScanReport:
    """Return the report of a scan that `error` ended.

    Args:
        request: what was asked.
        error: what was raised; anything unknown is a bug in modelaudit (exit status 70).
    """
    verdict, status, step = (
        Verdict.ERROR,
        ExitStatus.BUG,
        "report this as a bug, with the output of --debug",
    )
    for kind, *_ in _BY_ERROR:
        if isinstance(error, kind):
            _, verdict, status, step = next(row for row in _BY_ERROR if row[0] is kind)
            break
    code = error.code if isinstance(error, ModelAuditError) else f"MA-E{status:03d}"
    message = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    if isinstance(error, UnknownArchitectureError) and error.closest:
        message = f"{message}; closest: {'; '.join(error.closest)}"
    if status == ExitStatus.BUG:
        message = f"{type(error).__name__}: {error}"
    return ScanReport(
        verdict=VerdictRecord(verdict=verdict, reason_code=code, reason=message, next_step=step),
        exit_status=status,
        suspect=SuspectRecord(path=str(request.checkpoint)),
        clean_set=CleanSetRecord(path=str(request.data)),
        alpha=request.alpha,
        budget_seconds=request.budget_seconds,
        device=request.device,
        versions=versions(),
        seed=request.seed,
    )
