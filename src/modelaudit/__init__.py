"""Backdoor audit and repair of untrusted image-classifier checkpoints.

The names below are the supported interface. They are imported when they are first used: importing
the package, as the command line does, loads neither torch nor any plug-in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelaudit.architectures import ArchitectureFamily, Candidate
    from modelaudit.engine import (
        Repaired,
        RepairRequest,
        ScanRequest,
        failure_report,
        list_components,
    )
    from modelaudit.engine.repair import repair
    from modelaudit.engine.scan import scan
    from modelaudit.errors import ModelAuditError
    from modelaudit.preprocessing import Preprocessing
    from modelaudit.progress import NoProgress, Progress
    from modelaudit.repair_results import RepairAttempt, RepairOutcome, RepairReport
    from modelaudit.repairs import Repair, RepairContext, RepairData, RepairedModel
    from modelaudit.results import (
        ExitStatus,
        FailedScan,
        Finding,
        Pattern,
        ScannerResult,
        ScanReport,
        SkippedScan,
        Verdict,
        VerdictRecord,
    )
    from modelaudit.scanners import CleanImages, Observation, ScanContext, Scanner
    from modelaudit.suspect import Suspect

__version__ = "0.1.0"

__all__ = [
    "ArchitectureFamily",
    "Candidate",
    "CleanImages",
    "ExitStatus",
    "FailedScan",
    "Finding",
    "ModelAuditError",
    "NoProgress",
    "Observation",
    "Pattern",
    "Preprocessing",
    "Progress",
    "Repair",
    "RepairAttempt",
    "RepairContext",
    "RepairData",
    "RepairOutcome",
    "RepairReport",
    "RepairRequest",
    "Repaired",
    "RepairedModel",
    "ScanContext",
    "ScanReport",
    "ScanRequest",
    "Scanner",
    "ScannerResult",
    "SkippedScan",
    "Suspect",
    "Verdict",
    "VerdictRecord",
    "__version__",
    "failure_report",
    "list_components",
    "repair",
    "scan",
]

#: Module that defines each lazily imported name.
_HOMES = {
    **dict.fromkeys(("ArchitectureFamily", "Candidate"), "architectures"),
    **dict.fromkeys(("ScanRequest", "failure_report", "list_components", "scan"), "engine"),
    **dict.fromkeys(("Repaired", "RepairRequest", "repair"), "engine"),
    **dict.fromkeys(("RepairAttempt", "RepairOutcome", "RepairReport"), "repair_results"),
    **dict.fromkeys(("Repair", "RepairContext", "RepairData", "RepairedModel"), "repairs"),
    "ModelAuditError": "errors",
    "Preprocessing": "preprocessing",
    **dict.fromkeys(("NoProgress", "Progress"), "progress"),
    **dict.fromkeys(("ExitStatus", "FailedScan", "Finding", "Pattern"), "results"),
    **dict.fromkeys(("ScanReport", "ScannerResult", "SkippedScan"), "results"),
    **dict.fromkeys(("Verdict", "VerdictRecord"), "results"),
    **dict.fromkeys(("CleanImages", "Observation", "ScanContext", "Scanner"), "scanners"),
    "Suspect": "suspect",
}

# Type checkers take the imports above, and report names that do not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
