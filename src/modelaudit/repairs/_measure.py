"""What a repair cost and changed, over clean images: accuracy, its loss, intervals, agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.functional.paired import paired_interval, paired_standard_error
from modelaudit.functional.statistics import clopper_pearson
from modelaudit.repair_results import ClassRecall, Measurements

if TYPE_CHECKING:
    from torch import Tensor


def measure(before: Tensor, after: Tensor, labels: Tensor, *, has_labels: bool) -> Measurements:
    """Compare two models' predictions.

    Args:
        before: the suspect's predictions. Shape ``(N,)``, int64, N at least 1.
        after: the repaired model's, same shape and order.
        labels: the true labels, same shape; not looked at without `has_labels`: the suspect's
            predictions then stand for them in the recalls and in what was lost.
        has_labels: whether `labels` are the user's.
    """
    count = len(before)
    agreement = int((before == after).sum()) / count
    truth = labels if has_labels else before
    recalls = _recalls(before, after, truth)
    was_right, is_right = before == truth, after == truth
    lost, won = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    error = paired_standard_error(lost, won, count)
    if not has_labels:
        return Measurements(
            images=count,
            accuracy_before=None,
            accuracy_after=None,
            interval_before=None,
            interval_after=None,
            agreement=agreement,
            lost=lost,
            won=won,
            standard_error=error,
            interval_drop=clopper_pearson(lost, count),
            recalls=recalls,
        )
    right = int(was_right.sum()), int(is_right.sum())
    both = right[0] - lost
    return Measurements(
        images=count,
        accuracy_before=right[0] / count,
        accuracy_after=right[1] / count,
        interval_before=clopper_pearson(right[0], count),
        interval_after=clopper_pearson(right[1], count),
        agreement=agreement,
        lost=lost,
        won=won,
        standard_error=error,
        interval_drop=paired_interval(
            both=both, first_only=lost, second_only=won, neither=count - both - lost - won
        ),
        recalls=recalls,
    )


def _recalls(before: Tensor, after: Tensor, labels: Tensor) -> tuple[ClassRecall, ...]:
    found = []
    for label in labels.unique().tolist():
        own = labels == label
        count = int(own.sum())
        found.append(
            ClassRecall(
                label=label,
                images=count,
                before=int((before[own] == label).sum()) / count,
                after=int((after[own] == label).sum()) / count,
            )
        )
    return tuple(found)
