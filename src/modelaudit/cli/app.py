"""The commands and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from modelaudit import __version__
from modelaudit.cli import bench
from modelaudit.cli.calibrate import calibrate
from modelaudit.cli.list import list_components
from modelaudit.cli.repair import repair
from modelaudit.cli.scan import scan
from modelaudit.cli.streams import write_stdout

app = typer.Typer(
    name="modelaudit",
    help="Scan an untrusted image-classifier checkpoint for a hidden backdoor, and repair it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("scan")(scan)
app.command("calibrate")(calibrate)
app.command("repair")(repair)
app.command("list")(list_components)
app.add_typer(bench.app, name="bench")


def _show_version(value: bool) -> None:
    if value:
        write_stdout(f"modelaudit {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Scan an untrusted image-classifier checkpoint for a hidden backdoor, and repair it."""
