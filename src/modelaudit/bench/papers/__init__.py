"""Figures that the papers print, transcribed into one TOML file per paper, and their reader."""

from __future__ import annotations

from modelaudit.bench.papers.figures import (
    NO_ATTACK,
    Average,
    DetectionFigure,
    Papers,
    RepairFigure,
    read_papers,
)

__all__ = ["NO_ATTACK", "Average", "DetectionFigure", "Papers", "RepairFigure", "read_papers"]
