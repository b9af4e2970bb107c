"""Whether what was found was also named: the target label, or the all-to-all pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.population import VERDICT
from modelaudit.bench.tables.table import Table, rate_fields, rate_text
from modelaudit.functional.rates import rate
from modelaudit.results import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.population import Block, ModelScan


def naming_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return how often finds name the target: alone, among others, wrongly, or not at all."""
    rows, records = [], []
    for block in blocks:
        for name in (VERDICT, *detectors):
            found = [s for s in block.attacked if s.is_flagged(name)]
            single = [s for s in found if s.truth.label_map != "all"]
            every = [s for s in found if s.truth.label_map == "all"]
            if not found:
                continue
            said = [naming(s, name) for s in single]
            right = rate(said.count("right"), len(single))
            patterns = rate(sum(_pattern(s, name) is Pattern.ALL_TO_ALL for s in every), len(every))
            counts = {word: said.count(word) for word in ("among others", "wrong", "none")}
            rows.append(
                (
                    block.label,
                    name,
                    rate_text(right),
                    *(str(count) for count in counts.values()),
                    rate_text(patterns),
                )
            )
            records.append(
                {
                    "block": block.id,
                    "detector": name,
                    **rate_fields("right", right),
                    "among_others": counts["among others"],
                    "wrong": counts["wrong"],
                    "none": counts["none"],
                    **rate_fields("all_to_all", patterns),
                }
            )
    return Table(
        name="naming",
        title="Naming the target of what was found",
        header=(
            "block",
            "detector",
            "single target: named alone",
            "among others",
            "another named",
            "none named",
            "all-to-all: called so",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "Out of the attacked models that the detector flagged. Intervals: 95 %, "
                "Clopper-Pearson. Scanners that only know single targets say nothing of the last "
                "column."
            ),
        ),
    )


def naming(scan: ModelScan, detector: str) -> str:
    """Return ``right``, ``among others``, ``wrong`` or ``none`` for a single-target attack."""
    named = scan.named(detector)
    if not named:
        return "none"
    if scan.truth.target not in named:
        return "wrong"
    return "right" if len(named) == 1 else "among others"


def _pattern(scan: ModelScan, detector: str) -> Pattern | None:
    if detector == VERDICT:
        return scan.verdict.pattern
    found = scan.result(detector)
    return None if found is None else found.pattern
