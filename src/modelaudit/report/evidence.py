"""Evidence bars: one row per class, one column per scanner that looks at classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from modelaudit.report import words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from modelaudit.report.symbols import Symbols
    from modelaudit.results import ScannerResult, ScanReport

#: Rows shown; with more classes those with the most evidence stay.
MAX_ROWS = 16
#: Columns for the class, and for the number beside each bar.
_LABEL_WIDTH = 18
_VALUE_WIDTH = 8
#: Longer bars say no more.
_MAX_BAR = 32
#: Scanners side by side; at 80 columns a fifth would leave no room for bars.
_MAX_SCANNERS = 4


def evidence_table(report: ScanReport, symbols: Symbols, width: int) -> RenderableType | None:
    """Return the bars, or None when no scanner gave a value per class.

    Each column has its own scale: from zero, or its least value if negative, to its largest, or to
    the scanner's threshold where that is in the same unit and larger.

    Args:
        report: the report.
        symbols: what the stream can show.
        width: columns of the page.

    Returns:
        A table with a legend of what each column's numbers are.
    """
    shown = [s for s in report.scanners if s.per_class][:_MAX_SCANNERS]
    if not shown:
        return None
    classes = max(len(s.per_class) for s in shown)
    fractions = [_fractions(s) for s in shown]
    targets = {t for s in shown for t in s.target_labels} | set(report.verdict.target_labels)
    rows = _rows(classes, fractions, targets)
    bar_width = min(_MAX_BAR, (width - 2 - _LABEL_WIDTH) // len(shown) - _VALUE_WIDTH - 3)
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column(Text("class"), width=_LABEL_WIDTH, no_wrap=True)
    for result in shown:
        table.add_column(Text(words.safe(result.id, bar_width + _VALUE_WIDTH)), no_wrap=True)
    for label in rows:
        is_target = label in report.verdict.target_labels
        mark = symbols.arrow if is_target else " "
        cells = [Text(f"{mark} {_class_text(report, label)}", style="bold" if is_target else "")]
        for result, filled in zip(shown, fractions, strict=True):
            cells.append(_cell(result, filled, label, symbols, bar_width))
        table.add_row(*cells)
    parts: list[RenderableType] = [table]
    if len(rows) < classes:
        parts.append(Text(f"  {classes - len(rows):,} classes with less evidence left out"))
    for result in shown:
        if result.per_class_name:
            name = words.safe(result.per_class_name)
            parts.append(Text(f"{words.safe(result.id, 24)}: {name}", style="dim"))
    return Group(*parts)


def _fractions(result: ScannerResult) -> list[float]:
    """Return how far each class's bar is filled."""
    values = result.per_class
    finite = [v for v in values if math.isfinite(v)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    # a score that is one of the values shares their unit, and then so does its threshold
    if result.threshold is not None and result.score in finite:
        high = max(high, result.threshold)
    span = high - low
    if not 0 < span < math.inf:
        return [0.0] * len(values)
    return [(v - low) / span if math.isfinite(v) else 0.0 for v in values]


def _rows(classes: int, fractions: list[list[float]], targets: set[int]) -> list[int]:
    """Return the classes to show, in order: targets before those with the most evidence."""
    if classes <= MAX_ROWS:
        return list(range(classes))

    def rank(label: int) -> tuple[bool, float, int]:
        evidence = max((f[label] for f in fractions if label < len(f)), default=0.0)
        return label not in targets, -evidence, label

    return sorted(sorted(range(classes), key=rank)[:MAX_ROWS])


def _class_text(report: ScanReport, label: int) -> str:
    name = words.class_name(report, label) or ""
    text = f"{label:>3} {words.safe(name, 200)}"
    room = _LABEL_WIDTH - 2
    return text if len(text) <= room else f"{text[: room - 1]}~"


def _cell(
    result: ScannerResult, filled: list[float], label: int, symbols: Symbols, bar_width: int
) -> Text:
    if label >= len(result.per_class):
        return Text("-")
    is_target = label in result.target_labels
    value = result.per_class[label]
    number = _number(value)
    return Text.assemble(
        (symbols.bar(filled[label], bar_width), "bold red" if is_target else "cyan"),
        (f" {number:<{_VALUE_WIDTH}}", "bold" if is_target else "dim"),
    )


def _number(value: float) -> str:
    """Return three digits, or two with an exponent, so that every number fits its column."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.1e}"
