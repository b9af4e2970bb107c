"""From a checkpoint and a clean set to one report, and from a report to a repaired model."""

from __future__ import annotations

from modelaudit.engine.components import list_components
from modelaudit.engine.failure import failure_report, repair_failure_report
from modelaudit.engine.repair import repair
from modelaudit.engine.repaired import Repaired
from modelaudit.engine.request import RepairRequest, ScanRequest
from modelaudit.engine.run import run_scanners
from modelaudit.engine.scan import scan

__all__ = [
    "RepairRequest",
    "Repaired",
    "ScanRequest",
    "failure_report",
    "list_components",
    "repair",
    "repair_failure_report",
    "run_scanners",
    "scan",
]
