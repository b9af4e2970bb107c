"""From a checkpoint and a clean set to one report."""

from __future__ import annotations

from modelaudit.engine.components import list_components
from modelaudit.engine.failure import failure_report
from modelaudit.engine.request import ScanRequest
from modelaudit.engine.run import run_scanners
from modelaudit.engine.scan import scan

__all__ = ["ScanRequest", "failure_report", "list_components", "run_scanners", "scan"]
