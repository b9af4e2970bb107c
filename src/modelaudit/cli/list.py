"""``modelaudit list``: what is installed, with needs, sources and settings."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from modelaudit.cli.console import console
from modelaudit.cli.formats import Format
from modelaudit.cli.jobs import Job
from modelaudit.cli.options import Debug
from modelaudit.cli.streams import is_terminal, write_stdout
from modelaudit.report.words import safe, sentence
from modelaudit.results import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.results import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ListJob(Job):
    """Print every registered scanner, repair and attack.

    Attributes:
        form: how.
        is_debug: whether a failure shows its traceback.
    """

    form: Format
    is_debug: bool

    def run(self) -> int:
        """Print the list and return 0."""
        with console(is_quiet=False, is_debug=self.is_debug):
            from modelaudit import engine

            components = engine.list_components()
        if self.form is Format.JSON:
            write_stdout(json.dumps(components, indent=2, allow_nan=False) + "\n")
        else:
            write_stdout(_render(components))
        return ExitStatus.CLEAN


def list_components(
    form: Annotated[
        Format, typer.Option("--format", help="How to print the list.")
    ] = Format.TERMINAL,
    is_debug: Debug = False,
) -> Job:
    """List the installed scanners, repairs and attacks with their settings."""
    return ListJob(form=form, is_debug=is_debug)


def _render(components: Mapping[str, list[dict[str, Json]]]) -> str:
    """Return the list for a terminal: a heading per kind, a paragraph per id."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    has_color = is_terminal(sys.stdout)
    width = shutil.get_terminal_size().columns if has_color else 80
    buffer = io.StringIO()
    page = Console(
        file=buffer,
        width=max(80, min(width, 120)),
        force_terminal=has_color,
        color_system="standard" if has_color else None,
        highlight=False,
    )
    for kind, records in components.items():
        page.print(Text(kind, style="bold"))
        if not records:
            page.print(Padding(Text("none", style="dim"), (0, 0, 0, 2)))
        for record in records:
            page.print(Padding(Text(_value(record.get("id")), style="bold cyan"), (0, 0, 0, 2)))
            for key, value in record.items():
                text = _fields(value) if key == "fields" else _value(value)
                if key != "id" and text:
                    line = Text.assemble((f"{safe(key)}: ", "dim"), text)
                    page.print(Padding(line, (0, 0, 0, 4)))
        page.print()
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines())


def _fields(value: Json) -> str:
    """Return a scanner's settings as one would write them after ``--set``."""
    records = value if isinstance(value, list) else []
    return ", ".join(
        f"{_value(f.get('name'))}={_value(f.get('default'))}"
        for f in records
        if isinstance(f, dict)
    )


def _value(value: Json) -> str:
    if isinstance(value, dict):
        return ", ".join(_need(key, v) for key, v in value.items() if v not in (False, None))
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    if value is None:
        return "none"
    return sentence(value) if isinstance(value, str) else str(value)


def _need(key: str, value: Json) -> str:
    return safe(key) if value is True else f"{safe(key)} {_value(value)}"
