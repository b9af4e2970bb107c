"""Reference populations: what clean models score, and how unusual a suspect is beside them."""

from __future__ import annotations

from modelaudit.calibration.assess import assess, combined_score
from modelaudit.calibration.build import Built, build
from modelaudit.calibration.circumstances import Circumstances
from modelaudit.calibration.document import dumps, read_populations, shipped_populations
from modelaudit.calibration.evidence import ScannedModel, models_of, rows_of
from modelaudit.calibration.measure import Measured, judge, measure
from modelaudit.calibration.population import (
    ENOUGH_CLEAN,
    MeasuredRates,
    ModelStatistics,
    Population,
    ScannerReference,
)

__all__ = [
    "ENOUGH_CLEAN",
    "Built",
    "Circumstances",
    "Measured",
    "MeasuredRates",
    "ModelStatistics",
    "Population",
    "ScannedModel",
    "ScannerReference",
    "assess",
    "build",
    "combined_score",
    "dumps",
    "judge",
    "measure",
    "models_of",
    "read_populations",
    "rows_of",
    "shipped_populations",
]
