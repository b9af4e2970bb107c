"""Repairs: what was tried and what became of it, before any rate is looked at."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

from modelaudit.bench.tables.table import NOTHING, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.rows import RepairRow
    from modelaudit.bench.tables.table import Value


class End(StrEnum):
    """How a repair of one model ended; the values are column names."""

    #: changed, and by its own measure good enough; of `auto`: the re-scan is clean
    REPAIRED = "repaired"
    #: changed, and the defender's held-out images lose more than they may
    OVER_BUDGET = "over_budget"
    #: a declared need is not met; of `auto`: no repair was good enough to be written
    REFUSED = "refused"
    #: raised an error
    FAILED = "failed"
    #: of `auto`: the scan was clean
    NOT_NEEDED = "not_needed"
    #: of `auto`: written, and the re-scan is not clean
    NOT_CLEAN = "not_clean"


#: ends of `auto` and of single repairs by the row's outcome; what is not here has failed
_ENDS = {
    "done": End.REPAIRED,
    "unmet_need": End.REFUSED,
    "repaired": End.REPAIRED,
    "not_written": End.REFUSED,
    "not_needed": End.NOT_NEEDED,
    "still_backdoored": End.NOT_CLEAN,
    "inconclusive": End.NOT_CLEAN,
}
#: ends that have a reason worth reading
_EXPLAINED = (End.REFUSED, End.FAILED)


def end_of(row: RepairRow) -> End:
    """Return how a repair ended."""
    end = _ENDS.get(row.outcome, End.FAILED)
    if end is End.REPAIRED and row.is_within_budget is False:
        return End.OVER_BUDGET
    return end


def ends_of(rows: Sequence[RepairRow]) -> dict[End, int]:
    """Return how many repairs ended in each way."""
    counts = Counter(map(end_of, rows))
    return {end: counts[end] for end in End}


def shortfall_text(rows: Sequence[RepairRow]) -> str:
    """Return in words how many were not repaired and how they ended, such as ``2 refused``."""
    counts = ends_of(rows)
    parts = [
        f"{number} {end.replace('_', ' ')}"
        for end, number in counts.items()
        if number and end is not End.REPAIRED
    ]
    return ", ".join(parts) or NOTHING


def outcomes_table(rows: Sequence[RepairRow]) -> Table:
    """Return for each repair and size of clean set how many models it was tried on, and the ends.

    Args:
        rows: of any models.
    """
    groups: dict[tuple[str, int], list[RepairRow]] = {}
    for row in rows:
        groups.setdefault((row.name, row.images), []).append(row)
    lines, records = [], []
    for (name, images), group in sorted(groups.items()):
        counts = ends_of(group)
        reasons = Counter(r.reason for r in group if end_of(r) in _EXPLAINED and r.reason)
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        why = "; ".join(f"{number} × {reason}" for reason, number in ordered)
        record: dict[str, Value] = {"repair": name, "images": images, "tried": len(group)}
        records.append(record | {str(end): n for end, n in counts.items()} | {"reasons": why})
        lines.append(
            (
                name,
                str(images),
                str(len(group)),
                *(str(number) if number else NOTHING for number in counts.values()),
                why or NOTHING,
            )
        )
    return Table(
        name="repair_outcomes",
        title="Repairs: what became of them",
        header=(
            "repair",
            "images",
            "tried",
            *(end.replace("_", " ") for end in End),
            "why refused or failed",
        ),
        rows=tuple(lines),
        records=tuple(records),
        notes=(
            (
                "Models. *repaired* is what the defender sees: changed, within the accuracy that "
                "held-out images may lose, and for `auto` with a clean re-scan; whether the "
                "backdoor is gone is in the tables below. What was refused or failed is left as "
                "it was, and counts there with its rates before."
            ),
        ),
    )
