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
#: or the input is searched (no weight gradients): in float32, and in bfloat16 where that is faster.
BACKWARD_FACTOR = 3.0
BACKWARD_FACTOR_BF16 = 1.5


def estimated_seconds(
    cost: Cost, seconds_per_image: float, search_dtype: torch.dtype | None = None
) -> float:
    """Return the wall time that `cost` takes at the measured float32 forward speed."""
    factor = BACKWARD_FACTOR if search_dtype is None else BACKWARD_FACTOR_BF16
    return seconds_per_image * (cost.forward + factor * cost.forward_backward)


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

    Scanners without backward passes run first, then by the time they need: they cost little and
    must not starve behind a search. What the remaining time would not hold is skipped before it
    starts.

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
    outcomes: dict[int, ScanOutcome] = {}
    needed: dict[int, float] = {}
    order: dict[int, tuple[int, float]] = {}
    for index, scanner in enumerate(scanners):
        try:
            is_able = scanner.unmet_need(suspect, clean) is None
            cost = scanner.estimate(suspect, clean) if is_able else Cost()
        except Exception as err:  # noqa: BLE001 - as in `_run_one`
            outcomes[index] = _failed(scanner, err)
        else:
            needed[index] = estimated_seconds(cost, profile.seconds_per_image, search_dtype)
            order[index] = (cost.forward_backward, needed[index])
    for index in sorted(order, key=order.__getitem__):
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
        return _stopped(scanner, reason)
    try:
        return scanner.scan(suspect, clean, context=context)
    except BudgetExceededError as err:
        return _stopped(scanner, str(err))
    except Exception as err:  # noqa: BLE001 - one scanner's failure must not hide the others' findings
        return _failed(scanner, err)


def _failed(scanner: Scanner[Any], err: Exception) -> FailedScan:
    _LOG.warning("scanner %s failed", scanner.full_id, exc_info=err)
    return FailedScan(
        id=scanner.full_id,
        error=f"{type(err).__name__}: {err}",
        is_calibrated=scanner.is_calibrated_here,
    )


def _stopped(scanner: Scanner[Any], reason: str) -> SkippedScan:
    return SkippedScan(
        id=scanner.full_id,
        reason=reason,
        is_declared_need=False,
        is_calibrated=scanner.is_calibrated_here,
    )
