"""Repairs of backdoored models, one paper per module."""

from __future__ import annotations

from modelaudit.repair_results import Measurements
from modelaudit.repairs._measure import measure
from modelaudit.repairs.base import Change, Repair, RepairContext, RepairedModel
from modelaudit.repairs.data import RepairData, divide, repair_data
from modelaudit.repairs.pruning import PruneMask, PruneMode, prune_mask

__all__ = [
    "Change",
    "Measurements",
    "PruneMask",
    "PruneMode",
    "Repair",
    "RepairContext",
    "RepairData",
    "RepairedModel",
    "divide",
    "measure",
    "prune_mask",
    "repair_data",
]
