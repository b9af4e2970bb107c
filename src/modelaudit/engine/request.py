"""What a user asks of one scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRequest:
    """One scan.

    Attributes:
        checkpoint: the untrusted file.
        data: the clean set: folder, ``.npz``, or folder with ``labels.csv``.
        scanners: ids, with ``@variant`` where wanted; empty means all registered.
        settings: (scanner id, field, text) triples.
        arch: architecture name or ``path/to/file.py:factory``; None to work it out.
        preprocessing: normalisation; None to work it out.
        input_size: side of the square input in pixels; None to work it out.
        classes: file with one folder name per output, in output order.
        max_images: most clean images used.
        mixture: suspect training set for DDE.
        budget_seconds: time for the scanners; None for no limit.
        device: ``"cpu"`` or ``"cuda"``, resolved.
        seed: the run's seed.
        alpha: significance level of the p-values that are shown.
    """

    checkpoint: Path
    data: Path
    scanners: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    arch: str | None = None
    preprocessing: Preprocessing | None = None
    input_size: int | None = None
    classes: Path | None = None
    max_images: int = 500
    mixture: Path | None = None
    budget_seconds: float | None = 120.0
    device: str = "cpu"
    seed: int = 0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        require_range(self, "max_images", low=1)
        require_range(self, "input_size", low=1)
        require_range(self, "budget_seconds", low=0, is_low_open=True)
        require_range(self, "alpha", low=0, high=1, is_low_open=True)
