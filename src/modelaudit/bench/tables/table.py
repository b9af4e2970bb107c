"""One table, and how its numbers are written in Markdown and in CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.functional.rates import Auroc, Rate

#: what a cell without a number shows
NOTHING = "–"

#: a value of a CSV file
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table.

    Attributes:
        name: stem of its CSV file; letters, digits and underscores.
        title: heading in the Markdown.
        header: column names of the Markdown table.
        rows: its cells, as many as the header has.
        records: rows of the CSV file, all with the same keys in the same order; without any there
            is no such file.
        notes: paragraphs under the table: what the numbers mean and what they do not.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    records: tuple[Mapping[str, Value], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), self.name
        assert all(list(r) == list(self.records[0]) for r in self.records), self.name

    def to_markdown(self, level: int = 2) -> str:
        """Return heading, table and notes.

        Args:
            level: how many ``#`` the heading has.
        """
        parts = [f"{'#' * level} {self.title}"]
        if self.rows:
            lines = [self.header, ("---",) * len(self.header), *self.rows]
            parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
        else:
            parts.append("Nothing to show: no row belongs here.")
        parts.extend(self.notes)
        return "\n\n".join(parts) + "\n"

    def to_csv(self) -> str:
        """Return the records as CSV with a header line; booleans as true and false."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(self.records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in r.items()} for r in self.records)
        return buffer.getvalue()


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction in per cent, such as ``97.5 %``."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f} %"


def rate_text(rate: Rate) -> str:
    """Return a rate with its counts and interval, such as ``19/20, 95.0 % (75.1 to 99.9)``."""
    if rate.fraction is None:
        return "0/0"
    interval = f"{100 * rate.low:.1f} to {100 * rate.high:.1f}"
    return f"{rate.count}/{rate.trials}, {percent(rate.fraction)} ({interval})"


def rate_fields(prefix: str, rate: Rate | None) -> dict[str, Value]:
    """Return a rate as CSV fields; None gives the same fields, empty."""
    return {
        f"{prefix}_count": None if rate is None else rate.count,
        f"{prefix}_of": None if rate is None else rate.trials,
        f"{prefix}_rate": None if rate is None else rate.fraction,
        f"{prefix}_low": None if rate is None else rate.low,
        f"{prefix}_high": None if rate is None else rate.high,
    }


def auroc_text(area: Auroc | None) -> str:
    """Return an area with its interval, such as ``0.985 (0.93 to 1.00)``."""
    return NOTHING if area is None else f"{area.value:.3f} ({area.low:.2f} to {area.high:.2f})"


def auroc_fields(prefix: str, area: Auroc | None) -> dict[str, Value]:
    """Return an area as CSV fields; None gives the same fields, empty."""
    return {
        prefix: None if area is None else area.value,
        f"{prefix}_low": None if area is None else area.low,
        f"{prefix}_high": None if area is None else area.high,
    }


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def points(difference: float | None) -> str:
    """Return a difference of fractions in signed percentage points; nothing is never ``-0.0``."""
    return NOTHING if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None of nothing; exact sums, so that the order is no matter."""
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, or None of fewer than two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def spread_text(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and standard deviation of fractions in per cent: ``93.4 ± 0.2 %``."""
    centre, spread = mean(values), deviation(values)
    if centre is None:
        return NOTHING
    if spread is None:
        return percent(centre, digits)
    return f"{100 * centre:.{digits}f} ± {100 * spread:.{digits}f} %"


def _cell(text: str) -> str:
    """Return text that stays in its cell."""
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split()) or " "


def _plain(value: Value) -> Value:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Twelve digits are more than any of these numbers carries, and the same on every machine.
    return f"{value:.12g}" if isinstance(value, float) else value
