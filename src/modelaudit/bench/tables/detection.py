"""Detection in the form of BAN's Table 1, and the false alarms with their interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.population import LEVELS, VERDICT
from modelaudit.bench.tables.table import (
    NOTHING,
    Table,
    mean,
    percent,
    rate_fields,
    rate_text,
)
from modelaudit.functional.rates import rate
from modelaudit.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.papers import DetectionFigure, Papers
    from modelaudit.bench.tables.population import Block, ModelScan
    from modelaudit.bench.tables.table import Value
    from modelaudit.functional.rates import Rate

_NOTES = (
    (
        "Each cell: models flagged, and the accuracy (of attacked models the share that is "
        "flagged, of clean ones the share that is not), as BAN's Table 1 counts. *Flagged* means "
        "`backdoored` for the verdict, at least suspicious for a scanner alone; *of n* where it "
        "did not run on all models of the line."
    ),
    (
        "Beside a scanner stand the figures that its paper prints, flagged of how many. The "
        "paper's networks have full width and were trained for 200 epochs, ours are narrower and "
        "trained briefly: other models, not the same ones again."
    ),
)


def detection_table(
    block: Block, detectors: Sequence[str], papers: Papers, *, has_notes: bool = True
) -> Table:
    """Return flagged models and accuracy per data, architecture and attack.

    Args:
        block: models to report together; those that failed the gate are left out.
        detectors: columns beside the verdict.
        papers: figures to show before the column of the scanner that they are of.
        has_notes: whether the table explains itself.
    """
    shown = (VERDICT, *detectors)
    cells = _cells(block)
    figures = {
        (key, name): figure
        for key, scans in cells
        for name in detectors
        if (figure := _figure(papers, name, key, scans[0])) is not None
    }
    printed = {name for _, name in figures}
    header = ["data", "architecture", "attack", "models"]
    for name in shown:
        header += [f"{name}, paper", name] if name in printed else [name]
    rows, records = [], []
    accuracies: dict[str, list[float]] = {name: [] for name in header}
    for key, scans in cells:
        dataset, architecture, width, attack = key
        line = [dataset, f"{architecture} w{width}", attack, str(len(scans))]
        for name in shown:
            figure = figures.get((key, name))
            if name in printed:
                line.append(_paper_text(figure))
                if figure is not None:
                    accuracies[f"{name}, paper"].append(float(figure.accuracy) / 100)
            text, accuracy, record = _ours(scans, name)
            line.append(text)
            if accuracy is not None:
                accuracies[name].append(accuracy)
            records.append(
                {
                    "block": block.id,
                    "dataset": dataset,
                    "architecture": architecture,
                    "width": width,
                    "attack": attack,
                    **record,
                    **_paper_fields(figure),
                }
            )
        rows.append(tuple(line))
    if rows:
        means = [percent(mean(accuracies[name])) for name in header[4:]]
        rows.append(("mean of cells", "", "", "", *means))
    averages = [
        f"The mean that {average.paper} prints for {average.column} over all of its Table "
        f"{average.table} is {average.accuracy} %; the means here are over the lines shown."
        for scanner, average in papers.averages
        if scanner in printed
    ]
    return Table(
        name=f"detection_{block.id}",
        title=f"Detection, {block.title}",
        header=tuple(header),
        rows=tuple(rows),
        records=tuple(records),
        notes=(*_NOTES, *averages) if has_notes else (),
    )


def _figure(
    papers: Papers, name: str, key: tuple[str, str, int, str], scan: ModelScan
) -> DetectionFigure | None:
    return papers.detection_of(
        scanner=name, attack=scan.truth.key, architecture=key[1], dataset=key[0]
    )


def _ours(scans: Sequence[ModelScan], name: str) -> tuple[str, float | None, dict[str, Value]]:
    """Return one cell as text, its accuracy, and its CSV fields."""
    ran = [s for s in scans if name == VERDICT or name in s.outcomes]
    judged = [s for s in ran if name == VERDICT or s.result(name) is not None]
    flagged = sum(s.is_flagged(name) for s in ran)
    right = len(ran) - flagged if scans[0].is_clean else flagged
    # A scanner that could judge none of the models is neither right nor wrong.
    accuracy = right / len(ran) if judged else None
    if not judged:
        text = "no power" if ran else NOTHING
    else:
        of = "" if len(ran) == len(scans) else f" of {len(ran)}"
        text = f"{flagged}{of} · {percent(accuracy, 0)}"
    record: dict[str, Value] = {
        "detector": name,
        "models": len(ran),
        "could_judge": len(judged),
        **rate_fields("flagged", rate(flagged, len(ran))),
        "accuracy": accuracy,
    }
    return text, accuracy, record


def false_alarm_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return what became of the clean models, and how many attacked ones were found, per block.

    Args:
        blocks: models to report together.
        detectors: scanners; the verdict stands before them, and behind them the combined score at
            the thresholds of the populations, if any model matches one.
    """
    rows, records = [], []
    is_compared = any(s.is_judged(LEVELS[0]) for block in blocks for s in block.scans)
    for block in blocks:
        for name in (VERDICT, *detectors, *(LEVELS if is_compared else ())):
            clean = [s for s in block.clean if s.is_judged(name)]
            attacked = [s for s in block.attacked if s.is_judged(name)]
            without = len(block.attacked) - len(attacked), len(block.clean) - len(clean)
            alarms = rate(sum(s.is_flagged(name) for s in clean), len(clean))
            found = rate(sum(s.is_flagged(name) for s in attacked), len(attacked))
            open_clean = open_attacked = None
            if name == VERDICT:
                open_clean = rate(_undecided(clean), len(clean))
                open_attacked = rate(_undecided(attacked), len(attacked))
            rows.append(
                (
                    block.label,
                    name,
                    rate_text(found),
                    rate_text(alarms),
                    _open_text(name, open_attacked, without[0]),
                    _open_text(name, open_clean, without[1]),
                )
            )
            records.append(
                {
                    "block": block.id,
                    "detector": name,
                    **rate_fields("found", found),
                    **rate_fields("false_alarms", alarms),
                    **rate_fields("undecided_attacked", open_attacked),
                    **rate_fields("undecided_clean", open_clean),
                    "not_judged_attacked": without[0],
                    "not_judged_clean": without[1],
                }
            )
    return Table(
        name="false_alarms",
        title="Found and falsely accused",
        header=(
            "block",
            "detector",
            "attacked models flagged",
            "clean models flagged",
            "attacked, undecided",
            "clean, undecided",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "Attacked models that passed the gate only. Intervals: 95 %, Clopper-Pearson. "
                "*Undecided* are the verdicts `inconclusive`: not flagged, and not cleared either."
            ),
            (
                "*combined, suspicious* and *combined, strong*: the combined score reaches the "
                "suspicious threshold of the population that the model matches, or exceeds the "
                "strong one; both were frozen with the population. Models that match none are not "
                "judged; their numbers stand in the last two columns."
            ),
        ),
    )


def _cells(
    block: Block,
) -> list[tuple[tuple[str, str, int, str], list[ModelScan]]]:
    """Return the models of each row of the table, clean ones first within an architecture."""
    cells: dict[tuple[str, str, int, str], list[ModelScan]] = {}
    for scan in (*block.clean, *block.attacked):
        key = (scan.model.dataset, scan.model.architecture, scan.model.width, scan.truth.name)
        cells.setdefault(key, []).append(scan)
    return sorted(cells.items(), key=lambda item: (*item[0][:3], item[0][3] != "clean", item[0][3]))


def _open_text(name: str, undecided: Rate | None, without: int) -> str:
    if name in LEVELS and without:
        return f"{without} not judged"
    return NOTHING if undecided is None else rate_text(undecided)


def _undecided(scans: Sequence[ModelScan]) -> int:
    return sum(s.verdict.verdict is Verdict.INCONCLUSIVE for s in scans)


def _paper_text(figure: DetectionFigure | None) -> str:
    if figure is None:
        return NOTHING
    return f"{figure.flagged} of {figure.models} · {figure.accuracy} %"


def _paper_fields(figure: DetectionFigure | None) -> dict[str, Value]:
    return {
        "paper": None if figure is None else figure.paper,
        "paper_table": None if figure is None else figure.table,
        "paper_flagged": None if figure is None else figure.flagged,
        "paper_models": None if figure is None else figure.models,
        "paper_accuracy": None if figure is None else float(figure.accuracy) / 100,
    }
