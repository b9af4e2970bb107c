"""What a user asks of one scan or one repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.preprocessing import Preprocessing
    from modelaudit.repair_results import PriorScan


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRequest:
    """One scan.

    Attributes:
        checkpoint: the untrusted file.
        data: the clean set: folder, ``.npz``, or folder with ``labels.csv``.
        weights: dotted key of the file under which the weights are that count; None to work it out.
        scanners: ids, with ``@variant`` where wanted; empty means all registered.
        settings: (scanner id, field, text) triples.
        arch: architecture name or ``path/to/file.py:factory``; None to work it out.
        preprocessing: normalisation; None to work it out.
        input_size: side of the square input in pixels; None to work it out.
        classes: file with one folder name per output, in output order.
        max_images: most clean images used.
        mixture: suspect training set for DDE.
        calibrations: files of reference populations, preferred to those that are shipped.
        budget_seconds: time for the scanners; None for no limit.
        device: ``"cpu"`` or ``"cuda"``, resolved.
        seed: the run's seed.
        alpha: significance level of the p-values that are shown.
    """

    checkpoint: Path
    data: Path
    weights: str | None = None
    scanners: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    arch: str | None = None
    preprocessing: Preprocessing | None = None
    input_size: int | None = None
    classes: Path | None = None
    max_images: int = 500
    mixture: Path | None = None
    calibrations: tuple[Path, ...] = ()
    budget_seconds: float | None = 120.0
    device: str = "cpu"
    seed: int = 0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        require_range(self, "max_images", low=1)
        require_range(self, "input_size", low=1)
        require_range(self, "budget_seconds", low=0, is_low_open=True)
        require_range(self, "alpha", low=0, high=1, is_low_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """One repair.

    Attributes:
        scan: the file, the clean set, and how the model is scanned before and after.
        method: ``"auto"``, or a repair's id with ``@variant`` where wanted.
        settings: (repair id, field, text) triples.
        max_repair_images: most clean images that repairs and proof use together; scans use
            `ScanRequest.max_images` of them.
        max_accuracy_drop: what the repair may cost on held-out clean images, a fraction.
        is_forced: whether a repair over that budget is still accepted.
        is_dry_run: whether nothing is to be accepted, only shown.
        keeps_format: whether the file is to have the container of the input.
        prior: a scan to start from instead of scanning.
    """

    scan: ScanRequest
    method: str = "auto"
    settings: tuple[tuple[str, str, str], ...] = ()
    max_repair_images: int = 2500
    max_accuracy_drop: float = 0.02
    is_forced: bool = False
    is_dry_run: bool = False
    keeps_format: bool = False
    prior: PriorScan | None = None

    def __post_init__(self) -> None:
        require_range(self, "max_repair_images", low=1)
        require_range(self, "max_accuracy_drop", low=0, high=1)
