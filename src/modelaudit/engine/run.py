"""Runs scanners over one suspect within a time budget; failures and unmet needs become results."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from modelaudit.errors import BudgetExceededError
from modelaudit.results import Cost, FailedScan, SkippedScan
from modelaudit.scanners.base import ScanContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from modelaudit.progress import Progress
    from modelaudit.results import ScanOutcome
    from modelaudit.scanners.base import CleanImages, Scanner
    from modelaudit.suspect import Profile, Suspect

_LOG = logging.getLogger(__name__)

#: One forward+backward pass takes about as long as this many forward passes when only neuron noise
#: or the input is searched (no weight gradients).
BACKWARD_FACTOR = 3.0


def estimated_seconds(cost: Cost, seconds_per_image: float) -> float:
    """Return the wall time that `cost` takes at the measured forward speed."""
    return seconds_per_image * (cost.forward + BACKWARD_FACTOR * cost.forward_backward)


def run_scanners(
    scanners: Sequence[Scanner[Any]],
    suspect: Suspect,
    clean: CleanImages,
    *,
    profile: Profile,
    seed: int,
    progress: Progress,
    budget_seconds: float | None = None,
    batch_size: int = 256,
    search_dtype: torch.dtype | None = None,
) -> tuple[ScanOutcome, ...]:
    """Run each scanner and return one outcome for each, in the order given.

    Cheap scanners run first. What the remaining time would not hold is skipped before it starts.

    Args:
        scanners: configured scanners.
        suspect: the model under audit.
        clean: the clean images.
        profile: the shared pass.
        seed: the run's seed.
        progress: where scanners report.
        budget_seconds: time for all scanners together, or None.
        batch_size: bounds memory.
        search_dtype: see `ScanContext`.

    Returns:
        A result, a skip or a failure for every scanner.
    """
    start = time.monotonic()
    deadline = None if budget_seconds is None else start + budget_seconds
    context = ScanContext(
        profile=profile,
        seed=seed,
        progress=progress,
        batch_size=batch_size,
        search_dtype=search_dtype,
        deadline=deadline,
    )
    costs = [scanner.estimate(suspect, clean) for scanner in scanners]
    needed = [estimated_seconds(cost, profile.seconds_per_image) for cost in costs]
    outcomes: dict[int, ScanOutcome] = {}
    for index in sorted(range(len(scanners)), key=lambda i: needed[i]):
        left = None if deadline is None else deadline - time.monotonic()
        outcomes[index] = _run_one(
            scanners[index], suspect, clean, context, needed[index], left, budget_seconds
        )
    return tuple(outcomes[i] for i in range(len(scanners)))


def _run_one(
    scanner: Scanner[Any],
    suspect: Suspect,
    clean: CleanImages,
    context: ScanContext,
    needed: float,
    left: float | None,
    budget: float | None,
) -> ScanOutcome:
    if left is not None and needed > left and scanner.unmet_need(suspect, clean) is None:
        reason = (
            f"would take about {needed:.0f} s, {max(left, 0):.0f} s of the budget of {budget:g} s "
            "are left; raise --budget"
        )
        return SkippedScan(id=scanner.full_id, reason=reason, is_declared_need=False)
    try:
        return scanner.scan(suspect, clean, context=context)
    except BudgetExceededError as err:
        return SkippedScan(id=scanner.full_id, reason=str(err), is_declared_need=False)
    except Exception as err:  # noqa: BLE001 - one scanner's failure must not hide the others' findings
        _LOG.warning("scanner %s failed", scanner.full_id, exc_info=err)
        return FailedScan(id=scanner.full_id, error=f"{type(err).__name__}: {err}")
