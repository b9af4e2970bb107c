"""The tables that `modelaudit bench tables` makes of the committed rows, for pages under docs/."""

from __future__ import annotations

import functools
from pathlib import Path

from modelaudit.bench.cards import read_card
from modelaudit.bench.tables import build, read_rows
from modelaudit.bench.tables.table import Table
from modelaudit.calibration import shipped_populations

ROWS = Path(__file__).parents[2] / "benchmarks" / "results"


@functools.cache
def tables() -> dict[str, Table]:
    """Return every table of the scans of the plan `cpu`, by its name."""
    scans, repairs = read_rows(sorted(ROWS.glob("cpu_*.jsonl")))
    cards = {card.id: card for card in map(read_card, sorted((ROWS / "cards").glob("*.json")))}
    report = build(scans, repairs, cards=cards, populations=shipped_populations())
    return {table.name: table for table in report.tables}


def rows_of(name: str, block: str | None) -> str:
    """Return a table as the lines of a page.

    Args:
        name: the table's.
        block: what the first column has to say; that column is left out then. None for all rows.
    """
    table = tables()[name]
    header, rows = table.header, table.rows
    if block is not None:
        header, rows = header[1:], tuple(row[1:] for row in rows if row[0] == block)
    part = Table(name=name, title="", header=header, rows=rows)
    lines = part.to_markdown().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("|"))
