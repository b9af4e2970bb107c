"""The page that all terminal reports are set on: sections, plain tables, a framed headline.

Nothing is parsed as markup: every piece of text is a `rich.text.Text`, and what came from the file
or the folder is escaped before, so that no class name can move the cursor, set a colour or forge a
line.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from modelaudit.report.symbols import Symbols

#: Bounds of the page: narrower cannot hold a SHA-256, wider is hard to read.
MIN_WIDTH, MAX_WIDTH = 80, 120


def page_width(width: int) -> int:
    """Return the width of the page on a terminal of `width` columns."""
    return max(MIN_WIDTH, min(width, MAX_WIDTH))


def set_page(parts: Iterable[RenderableType], *, width: int, has_color: bool, encoding: str) -> str:
    """Return a page as text.

    Args:
        parts: from top to bottom.
        width: columns of the page.
        has_color: whether to write ANSI colours.
        encoding: of the stream that the text goes to; what it lacks becomes a question mark.

    Returns:
        Lines of at most `width` columns, each ended by a newline, none with trailing spaces.
    """
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=has_color,
        color_system="standard" if has_color else None,
        no_color=not has_color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(Group(*parts))
    text = buffer.getvalue().encode(encoding, "replace").decode(encoding)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def section(title: str, *parts: RenderableType) -> RenderableType:
    """Return an indented block under a heading; without a title, an indented block."""
    heading = [Text(title, style="bold")] if title else []
    return Group(Text(), *heading, Padding(Group(*parts), (0, 0, 0, 1)))


def framed(body: Text, *, title: str, style: str, symbols: Symbols) -> RenderableType:
    """Return a headline in a frame."""
    return Panel(
        body,
        title=Text(f" {title} ", style=f"bold {style} reverse"),
        title_align="left",
        border_style=style,
        box=box.ROUNDED if symbols.has_blocks else box.ASCII,
        padding=(0, 1),
    )


def plain_table(*columns: str) -> Table:
    """Return a table without lines; without columns it has no header."""
    table = Table(box=None, show_header=bool(columns), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(Text(column))
    return table


def number(value: float | None) -> str:
    """Return a number with four significant digits, ``-`` for none."""
    return "-" if value is None else f"{value:.4g}"


def count(value: int) -> str:
    """Return a count, thousands as k and millions as M."""
    if value < 10_000:
        return f"{value:,}"
    return f"{value / 1000:,.1f}k" if value < 1_000_000 else f"{value / 1e6:,.1f}M"
