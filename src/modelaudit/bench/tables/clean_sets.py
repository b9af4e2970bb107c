"""How verdicts change with the clean set: fewer images, distorted ones, wrong labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.misses import judgement
from modelaudit.bench.tables.population import VERDICT
from modelaudit.bench.tables.table import Table, rate_fields, rate_text
from modelaudit.functional.rates import rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.population import ModelScan
    from modelaudit.bench.tables.table import Value


def clean_set_table(scans: Sequence[ModelScan]) -> Table:
    """Return what the verdict says under each clean set, per population and data.

    Args:
        scans: all of them, of every clean set and seed.
    """
    sets: dict[tuple[str, str, int, str, str], list[ModelScan]] = {}
    for scan in scans:
        if scan.counts:
            given = scan.clean_set
            degradation = given.degradation or ""
            model = scan.model
            key = (model.population, model.dataset, -given.images, degradation, given.name)
            sets.setdefault(key, []).append(scan)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Value]] = []
    for (population, dataset, minus_images, degradation, name), found in sorted(sets.items()):
        attacked = [s for s in found if not s.is_clean]
        clean = [s for s in found if s.is_clean]
        detected = rate(sum(s.is_flagged(VERDICT) for s in attacked), len(attacked))
        alarms = rate(sum(s.is_flagged(VERDICT) for s in clean), len(clean))
        open_ = rate(sum(judgement(s) == "undecided" for s in found), len(found))
        named = rate(
            sum(judgement(s) == "right" for s in attacked),
            sum(s.is_flagged(VERDICT) for s in attacked),
        )
        rows.append(
            (
                population,
                dataset,
                name,
                str(-minus_images),
                degradation or "as they are",
                rate_text(detected),
                rate_text(named),
                rate_text(alarms),
                rate_text(open_),
            )
        )
        records.append(
            {
                "population": population,
                "dataset": dataset,
                "clean_set": name,
                "images": -minus_images,
                "degradation": degradation,
                **rate_fields("found", detected),
                **rate_fields("named", named),
                **rate_fields("false_alarms", alarms),
                **rate_fields("undecided", open_),
            }
        )
    return Table(
        name="clean_sets",
        title="The verdict under other clean sets",
        header=(
            "population",
            "data",
            "clean set",
            "images",
            "what was done to them",
            "attacked models flagged",
            "of these: target or pattern named",
            "clean models flagged",
            "undecided, of all",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            "Intervals: 95 %, Clopper-Pearson. The lines hold different models where n differs.",
        ),
    )
