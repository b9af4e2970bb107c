"""Formats of a scan's report, each made from a `ScanReport` alone and without I/O."""

from __future__ import annotations

from modelaudit.report.json import dumps, to_document, without_seconds
from modelaudit.report.text import short_verdict
from modelaudit.report.words import sentence

__all__ = ["dumps", "sentence", "short_verdict", "to_document", "without_seconds"]
