"""What a repair cost and changed, over clean images: accuracy with its interval, agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
            predictions then stand for them in the recalls.
        has_labels: whether `labels` are the user's.
    """
    count = len(before)
    agreement = int((before == after).sum()) / count
    recalls = _recalls(before, after, labels if has_labels else before)
    if not has_labels:
        return Measurements(
            images=count,
            accuracy_before=None,
            accuracy_after=None,
            interval_before=None,
            interval_after=None,
            agreement=agreement,
            recalls=recalls,
        )
    right = int((before == labels).sum()), int((after == labels).sum())
    return Measurements(
        images=count,
        accuracy_before=right[0] / count,
        accuracy_after=right[1] / count,
        interval_before=clopper_pearson(right[0], count),
        interval_after=clopper_pearson(right[1], count),
        agreement=agreement,
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
