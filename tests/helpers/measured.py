"""The tables that `modelaudit bench tables` makes of the committed rows, for pages under docs/."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from modelaudit.bench.cards import read_card
from modelaudit.bench.tables import build, read_rows
from modelaudit.bench.tables.repairs import meets_auto_goal
from modelaudit.bench.tables.table import Table, percent, points, rate_text
from modelaudit.calibration import shipped_populations
from modelaudit.functional.rates import rate

if TYPE_CHECKING:
    from modelaudit.bench.tables import RepairRow

ROWS = Path(__file__).parents[2] / "benchmarks" / "results"
#: Rows of `auto` by the code of their time, oldest first; of a model the first run counts.
AUTO = (
    "repairs",
    "repairs_walked_back",
    "repairs_several_views",
    "repairs_last_round",
    "repairs_pushes",
    "repairs_float32",
)


@functools.cache
def tables() -> dict[str, Table]:
    """Return every table of the scans of the plan `cpu`, and `auto`, by name."""
    scans, repairs = read_rows(sorted(ROWS.glob("cpu_*.jsonl")))
    cards = {card.id: card for card in map(read_card, sorted((ROWS / "cards").glob("*.json")))}
    report = build(scans, repairs, cards=cards, populations=shipped_populations())
    return {table.name: table for table in (*report.tables, auto_table())}


def auto_table() -> Table:
    """Return what `repair auto` did to every attacked model that passed the gate."""
    first: dict[str, RepairRow] = {}
    for name in AUTO:
        _, found = read_rows([ROWS / f"{name}.jsonl"])
        for row in sorted(found, key=lambda row: row.model.id):
            if row.method == "auto" and row.truth.gate_passed:
                first.setdefault(row.model.id, row)
    rows = []
    for row in reversed(first.values()):
        after = f"{points(row.acc_after - row.acc_before)} / {percent(row.asr_after)}"
        by, _, cost = row.reason.partition(" costs ")
        rows.append(
            (
                row.model.id,
                percent(row.asr_before),
                f"**{after}**" if meets_auto_goal(row) else after,
                f"`{by}`" if cost and row.outcome != "not_written" else "",
                row.outcome.replace("_", " "),
            )
        )
    met = rate(sum(map(meets_auto_goal, first.values())), len(first))
    rows.append(("within the goal", "", rate_text(met), "", ""))
    header = ("model", "ASR before", "points / ASR after", "by", "outcome")
    return Table(name="auto", title="", header=header, rows=tuple(rows))


def rows_of(name: str, block: str | None) -> str:
    """Return a table as the lines of a page.

    Args:
        name: the table's.
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
    part = Table(name=name, title="", header=header, rows=rows)
    lines = part.to_markdown().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("|"))
