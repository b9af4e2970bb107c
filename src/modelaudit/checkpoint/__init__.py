"""Opens an untrusted checkpoint within limits and yields named tensors; executes nothing of it."""

from __future__ import annotations

from modelaudit.checkpoint._reader import read_checkpoint
from modelaudit.checkpoint._types import DEFAULT_LIMITS, Checkpoint, Limits, RepairClaim
from modelaudit.results import StaticFinding

__all__ = [
    "DEFAULT_LIMITS",
    "Checkpoint",
    "Limits",
    "RepairClaim",
    "StaticFinding",
    "read_checkpoint",
]
