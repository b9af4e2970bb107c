"""The tables that `modelaudit bench tables` makes of the committed rows, for pages under docs/."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelaudit.bench.cards import read_card
from modelaudit.bench.papers import read_papers
from modelaudit.bench.tables import build, read_rows
from modelaudit.bench.tables.repair_outcomes import End, end_of
from modelaudit.bench.tables.repairs import figures_of, meets_auto_goal, repair_tables
from modelaudit.bench.tables.table import NOTHING, Table, percent, points, rate_text
from modelaudit.calibration import shipped_populations
from modelaudit.functional.rates import rate
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.tables import RepairRow

ROWS = Path(__file__).parents[2] / "benchmarks" / "results"
#: Rows of repairs by the code of their time, oldest first.
REPAIRS = (
    "repairs_a",
    "repairs_b",
    "repairs_c",
    "repairs_d",
    "repairs_e",
    "repairs_f",
    "repairs_paper_code",
    "repairs",
    "repairs_walked_back",
    "repairs_several_views",
    "repairs_last_round",
    "repairs_pushes",
    "repairs_float32",
    "repairs_going_on",
)
#: Those whose rows of `auto` count; of a model the first run does.
AUTO = REPAIRS[REPAIRS.index("repairs") :]


@functools.cache
def tables() -> dict[str, Table]:
    """Return every table by its name in a page.

    Those of the scans of the plan `cpu` bear their own name, those of one file of repairs stand
    behind the file's, as in ``repairs/repair_goals``.
    """
    scans, repairs = read_rows(sorted(ROWS.glob("cpu_*.jsonl")))
    report = build(scans, repairs, cards=cards(), populations=shipped_populations())
    found = {table.name: table for table in report.tables}
    for stem in REPAIRS:
        made = (*repair_tables(repairs_of(stem), read_papers()), kept_table(stem))
        found |= {f"{stem}/{table.name}": table for table in made}
    made = (auto_table(), covers_table(), papers_table(), times_table())
    return found | {table.name: table for table in made}


@functools.cache
def cards() -> dict[str, ModelCard]:
    """Return the cards by model, in the order of their ids."""
    return {card.id: card for card in map(read_card, sorted((ROWS / "cards").glob("*.json")))}


@functools.cache
def repairs_of(stem: str) -> tuple[RepairRow, ...]:
    """Return the repairs of one file."""
    return read_rows([ROWS / f"{stem}.jsonl"])[1]


def records_of(stem: str) -> list[dict[str, Any]]:
    """Return the lines of one file as they are."""
    return [json.loads(line) for line in (ROWS / f"{stem}.jsonl").read_text().splitlines()]


def auto_table() -> Table:
    """Return what `repair auto` did to every attacked model that passed the gate."""
    first: dict[str, RepairRow] = {}
    for stem in AUTO:
        for row in sorted(repairs_of(stem), key=lambda row: row.model.id):
            if row.method == "auto" and row.truth.gate_passed:
                first.setdefault(row.model.id, row)
    rows = []
    for row in reversed(first.values()):
        by, _, cost = row.reason.partition(" costs ")
        rows.append(
            (
                row.model.id,
                percent(row.asr_before),
                _after(f"{points(row.acc_after - row.acc_before)} / {percent(row.asr_after)}", row),
                f"`{by}`" if cost and row.outcome != "not_written" else "",
                row.outcome.replace("_", " "),
            )
        )
    met = rate(sum(map(meets_auto_goal, first.values())), len(first))
    rows.append(("within the goal", "", rate_text(met), "", ""))
    header = ("model", "ASR before", "points / ASR after", "by", "outcome")
    return Table(name="auto", title="", header=header, rows=tuple(rows))


def covers_table() -> Table:
    """Return what the triggers of population B do where they must not, if they passed the gate."""
    rows = tuple(
        (
            card.id,
            f"{card.acc:.3f}",
            f"{card.asr:.3f}",
            f"{card.cover_acc:.3f}",
            NOTHING if card.non_victim_acc is None else f"{card.non_victim_acc:.3f}",
        )
        for card in cards().values()
        if card.population == "B" and card.gate_passed and card.cover_acc is not None
    )
    header = ("model", "ACC", "ASR", "cover ACC", "non-victim ACC")
    return Table(name="covers", title="", header=header, rows=rows)


def kept_table(stem: str) -> Table:
    """Return what the repairs that walk back did, and how much of the training they kept."""
    kept = {
        (record["model"]["id"], record["method"]): record.get("details", {}).get("kept_share")
        for record in records_of(stem)
    }
    models: dict[str, dict[str, RepairRow]] = {}
    for row in repairs_of(stem):
        if kept[row.model.id, row.method] is not None:
            models.setdefault(row.model.id, {})[row.name] = row
    names = sorted({name for made in models.values() for name in made})
    rows = []
    for id_, made in sorted(models.items(), key=lambda item: not item[0].startswith("clean")):
        some = next(iter(made.values()))
        before = percent(some.acc_before)
        cells = []
        for name in names:
            if name not in made:
                cells.append(NOTHING)
                continue
            row = made[name]
            text = points(row.acc_after - row.acc_before)
            if row.asr_after is not None:
                text = _after(f"{text} / {100 * row.asr_after:.1f}", row)
            over = ", over" if end_of(row) is End.OVER_BUDGET else ""
            cells.append(f"{text} ({percent(kept[id_, row.method], 0)}){over}")
        if some.asr_before is not None:
            before += f" / {percent(some.asr_before)}"
        rows.append((id_, before, *cells))
    header = ("model", "ACC / ASR", *names)
    return Table(name="kept", title="", header=header, rows=tuple(rows))


def papers_table() -> Table:
    """Return what the papers print beside the newest rows of each attack, network and repair.

    The papers' networks are ResNet-18 of full width throughout, which the column says once.
    """
    papers = read_papers()
    newest: dict[tuple[str, ...], tuple[str, ...]] = {}
    for stem in REPAIRS:
        truths = {row.truth.name: row.truth for row in repairs_of(stem)}
        for table in repair_tables(repairs_of(stem), papers):
            for made in table.records:
                if not made.get("papers"):
                    continue
                attack, network = str(made["attack"]), str(made["architecture"])
                dataset, repair = str(made["dataset"]), str(made["repair"])
                origin = figures_of(papers, "", truths[attack], dataset, network)
                newest[attack, "", ""] = ("none", *[""] * 5, "; ".join(origin), "")
                newest[attack, network, repair] = (
                    repair,
                    f"{network} w{made['width']}",
                    str(made["images"]),
                    str(made["models"]),
                    points(_difference(made, "acc")),
                    f"{_hundredths(made, 'asr')} (RA {_hundredths(made, 'ra')})",
                    str(made["papers"]),
                    stem,
                )
    header = (
        *("attack", "repair", "network", "images", "models", "points", "ASR (RA), in %"),
        *("papers, ResNet-18: ACC / ASR after", "rows"),
    )
    rows = tuple(
        tuple(cell.replace(", ResNet18", "") for cell in (key[0], *newest[key]))
        for key in sorted(newest)
    )
    return Table(name="repair_papers", title="", header=header, rows=rows)


def times_table() -> Table:
    """Return the newest time of each repair on each processor, and whether it is today's version.

    The rows are of one model.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records_of("repair_times"):
        newest[record["hardware"]["cpu"], record["repair"]] = record
    registry = Registry("repairs")
    rows = []
    for (cpu, repair), made in sorted(
        newest.items(), key=lambda item: (item[0][0], item[1]["seconds"])
    ):
        today = registry.load(repair).version  # type: ignore[attr-defined]  # every repair has one
        version = made["version"]
        (acc_before, acc), (_, asr) = made["acc"], made["asr"]
        rows.append(
            (
                f"`{repair}`",
                version if version == today else f"{version} (today {today})",
                cpu,
                f"{made['seconds']:.1f}",
                f"{made['forward']:,}",
                f"{made['forward_backward']:,}",
                f"{points(acc - acc_before)} / {100 * asr:.1f}",
            )
        )
    header = (
        *("repair", "version", "processor", "seconds", "passes forward", "forward+backward"),
        "points / ASR",
    )
    return Table(name="repair_times", title="", header=header, rows=tuple(rows))


def rows_of(name: str, block: str | None) -> str:
    """Return a table as the lines of a page.

    Args:
        name: the table's, as in `tables`.
        block: what the first column has to say; that column is left out then. None for all rows.

    Raises:
        KeyError: no such table.
        ValueError: it has no such rows.
    """
    table = tables()[name]
    header, rows = table.header, table.rows
    if block is not None:
        header, rows = header[1:], tuple(row[1:] for row in rows if row[0] == block)
    if not rows:
        raise ValueError(f"expected rows of {block!r} in the table {name!r}, found none")
    part = Table(name="part", title="", header=header, rows=rows)
    lines = part.to_markdown().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("|"))


def _after(text: str, row: RepairRow) -> str:
    return f"**{text}**" if meets_auto_goal(row) else text


def _difference(record: Any, rate_name: str) -> float:
    return float(record[f"{rate_name}_after_mean"]) - float(record[f"{rate_name}_before_mean"])


def _hundredths(record: Any, rate_name: str) -> str:
    before, after = record[f"{rate_name}_before_mean"], record[f"{rate_name}_after_mean"]
    return f"{100 * before:.1f} → {100 * after:.1f}"
