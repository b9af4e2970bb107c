"""What each scanner costs, and what its defaults gain or lose beside the paper's released code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.ranking import area
from modelaudit.bench.tables.table import (
    NOTHING,
    Table,
    auroc_fields,
    auroc_text,
    mean,
    rate_fields,
    rate_text,
)
from modelaudit.functional.rates import rate
from modelaudit.results import ScannerResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.population import Block, ModelScan
    from modelaudit.bench.tables.table import Value


def cost_table(scans: Sequence[ModelScan], detectors: Sequence[str]) -> Table:
    """Return mean image passes and seconds per model, data by data.

    Args:
        scans: of any population; models on which a scanner did not run are left out of its mean.
        detectors: scanners.
    """
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Value]] = []
    for dataset in sorted({s.model.dataset for s in scans}):
        own = [s for s in scans if s.model.dataset == dataset]
        for name in detectors:
            ran = [found for s in own if (found := _ran(s, name)) is not None]
            if not ran:
                continue
            forward, both, seconds = _means(ran)
            longest = max(result.cost.seconds for result in ran)
            rows.append(
                (
                    dataset,
                    name,
                    str(len(ran)),
                    f"{forward:,.0f}",
                    f"{both:,.0f}",
                    f"{seconds:.1f}",
                    f"{longest:.1f}",
                )
            )
            records.append(
                {
                    "dataset": dataset,
                    "detector": name,
                    "models": len(ran),
                    "forward": forward,
                    "forward_backward": both,
                    "seconds": seconds,
                    "seconds_longest": longest,
                }
            )
    return Table(
        name="cost",
        title="Cost per model",
        header=(
            "data",
            "detector",
            "models",
            "forward",
            "forward+backward",
            "seconds",
            "longest",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "Means of image passes and of wall time, whatever else the machine did. One "
                "forward pass over the clean set is shared by all scanners and counted to none."
            ),
            "Hardware: " + "; ".join(sorted({s.hardware for s in scans})) + ".",
        ),
    )


def comparison_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return each variant beside its default form over the models on which both ran.

    Args:
        blocks: models to report together.
        detectors: scanners with their variants.
    """
    rows, records = [], []
    for block in blocks:
        for variant in detectors:
            default = variant.partition("@")[0]
            if "@" not in variant or default not in detectors:
                continue
            models = [*block.attacked, *block.clean]
            both = [s for s in models if _ran(s, default) and _ran(s, variant)]
            if not both:
                continue
            costs = {}
            for name in (default, variant):
                text, record, costs[name] = _line(block, both, name)
                rows.append(text)
                records.append(record)
            ratio = costs[variant] / costs[default] if costs[default] else None
            rows.append(
                (
                    block.label,
                    f"{variant} ÷ {default}",
                    "",
                    NOTHING if ratio is None else f"{ratio:.2f}",
                    "",
                    "",
                    "",
                )
            )
    return Table(
        name="paper_code",
        title="Defaults beside the released code",
        header=(
            "block",
            "detector",
            "models",
            "passes",
            "AUROC",
            "attacked flagged",
            "clean flagged",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "Over the models on which both ran, so the two lines are of the same models. A "
                "pass is one image forward, or forward and backward. Seconds are not compared: "
                "rows come from several runs and machines. AUROC and intervals as above."
            ),
        ),
    )


def _ran(scan: ModelScan, detector: str) -> ScannerResult | None:
    outcome = scan.outcomes.get(detector)
    return outcome if isinstance(outcome, ScannerResult) else None


def _means(results: Sequence[ScannerResult]) -> tuple[float, float, float]:
    """Return the mean forward passes, forward-and-backward passes and seconds of some results."""
    return (
        mean([r.cost.forward for r in results]) or 0.0,
        mean([r.cost.forward_backward for r in results]) or 0.0,
        mean([r.cost.seconds for r in results]) or 0.0,
    )


def _line(
    block: Block, scans: Sequence[ModelScan], name: str
) -> tuple[tuple[str, ...], dict[str, Value], float]:
    """Return one detector's row, its CSV record, and its mean passes."""
    forward, both, _ = _means([r for s in scans if (r := _ran(s, name)) is not None])
    attacked = [s for s in scans if not s.is_clean]
    clean = [s for s in scans if s.is_clean]
    found = rate(sum(s.is_flagged(name) for s in attacked), len(attacked))
    alarms = rate(sum(s.is_flagged(name) for s in clean), len(clean))
    ranked = area(attacked, clean, name)
    text = (
        block.label,
        name,
        str(len(scans)),
        f"{forward + both:,.0f}",
        auroc_text(ranked),
        rate_text(found),
        rate_text(alarms),
    )
    record: dict[str, Value] = {
        "block": block.id,
        "detector": name,
        "models": len(scans),
        "forward": forward,
        "forward_backward": both,
        **auroc_fields("auroc", ranked),
        **rate_fields("found", found),
        **rate_fields("false_alarms", alarms),
    }
    return text, record, forward + both
