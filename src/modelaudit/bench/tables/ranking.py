"""How well each score ranks attacked models above clean ones, and what it finds at limited FPR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.population import COMBINED
from modelaudit.bench.tables.table import (
    Table,
    auroc_fields,
    auroc_text,
    percent,
    rate_fields,
    rate_text,
)
from modelaudit.functional.rates import auroc, operating_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.population import Block, ModelScan
    from modelaudit.bench.tables.table import Value
    from modelaudit.functional.rates import Auroc

#: limits on the false-positive rate
LIMITS = (0.05, 0.01)


def scores(scans: Sequence[ModelScan], detector: str) -> list[float]:
    """Return the scores of the models that have one."""
    return [score for scan in scans if (score := scan.score(detector)) is not None]


def area(attacked: Sequence[ModelScan], clean: Sequence[ModelScan], detector: str) -> Auroc | None:
    """Return the AUROC with its interval, or None if a group has no score."""
    positives, negatives = scores(attacked, detector), scores(clean, detector)
    return auroc(positives, negatives) if positives and negatives else None


def ranking_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return AUROC and detection rates at limited false-positive rates, per block and score.

    Args:
        blocks: models to report together.
        detectors: scanners; the combined score comes first.
    """
    rows, records = [], []
    for block in blocks:
        if not block.attacked:
            continue
        single = [s for s in block.attacked if s.truth.label_map != "all"]
        for name in (COMBINED, *detectors):
            clean = scores(block.reference, name)
            missing = len(block.attacked) - len(scores(block.attacked, name))
            missing_clean = len(block.reference) - len(clean)
            over_all = area(block.attacked, block.reference, name)
            over_single = area(single, block.reference, name)
            if over_all is None and missing == len(block.attacked):
                continue
            cells: list[str] = []
            fields: dict[str, Value] = {}
            for limit in LIMITS:
                text, part = _at(block.attacked, clean, name, limit)
                cells.append(text)
                fields |= part
            rows.append(
                (
                    block.label,
                    name,
                    f"{len(block.attacked)} ({missing})",
                    f"{len(block.reference)} ({missing_clean})",
                    auroc_text(over_all),
                    auroc_text(over_single),
                    *cells,
                )
            )
            records.append(
                {
                    "block": block.id,
                    "score": name,
                    "attacked": len(block.attacked),
                    "attacked_without_score": missing,
                    "clean": len(block.reference),
                    "clean_without_score": missing_clean,
                    **auroc_fields("auroc", over_all),
                    **auroc_fields("auroc_single_target", over_single),
                    **fields,
                }
            )
    return Table(
        name="ranking",
        title="AUROC and detection at limited false-positive rates",
        header=(
            "block",
            "score",
            "attacked (without score)",
            "clean (without score)",
            "AUROC",
            "AUROC, single target only",
            *(f"found at {percent(limit, 0)} FPR" for limit in LIMITS),
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "AUROC with its 95 % score interval (Newcombe's method 5), which stays open where "
                "the groups separate perfectly; DeLong's and every bootstrap would shrink to a "
                "point there. Models without a score (skipped, failed, no power) are left out of "
                "it and counted in brackets; in the rates they count as not found."
            ),
            (
                "Rates: 95 %, Clopper-Pearson. The threshold of *found at … FPR* is taken from the "
                "clean models of the same row, so it describes the ranking and not the shipped "
                "thresholds. With fewer than 1/FPR clean models that rate is not resolved, and "
                "nothing is printed."
            ),
            "A block whose cells hold no clean model is ranked against all clean models of B.",
        ),
    )


def _at(
    attacked: Sequence[ModelScan], clean: Sequence[float], name: str, limit: float
) -> tuple[str, dict[str, Value]]:
    """Return the detection rate at one limit as text and as CSV fields."""
    # A model without a score cannot be found by it.
    positives = [
        float("-inf") if (score := scan.score(name)) is None else score for scan in attacked
    ]
    prefix = f"found_at_{limit:g}"
    point = operating_point(positives, clean, false_positive_rate=limit)
    if point is None:
        text = f"not resolved by {len(clean)} clean"
        fields = rate_fields(prefix, None)
    else:
        text = rate_text(point.detections)
        fields = rate_fields(prefix, point.detections)
    above = None if point is None else point.above
    return text, {**fields, f"above_at_{limit:g}": above}
