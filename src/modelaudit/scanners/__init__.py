"""Backdoor detectors, one paper per module."""

from __future__ import annotations

from modelaudit.scanners.base import (
    CleanImages,
    Observation,
    ScanContext,
    Scanner,
)

__all__ = ["CleanImages", "Observation", "ScanContext", "Scanner"]
