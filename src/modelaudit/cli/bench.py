"""``modelaudit bench``: the group of commands that train, scan and tabulate populations."""

from __future__ import annotations

import typer

from modelaudit.cli.bench_calibrate import calibrate
from modelaudit.cli.bench_pictures import pictures
from modelaudit.cli.bench_repair import repair
from modelaudit.cli.bench_scan import scan
from modelaudit.cli.bench_tables import tables
from modelaudit.cli.bench_train import judge, train

app = typer.Typer(
    name="bench",
    help="Train backdoored models, scan them, print the tables.",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("judge")(judge)
app.command("scan")(scan)
app.command("repair")(repair)
app.command("tables")(tables)
app.command("calibrate")(calibrate)
app.command("pictures")(pictures)


@app.callback()
def _group() -> None:
    """Train backdoored models, scan them, print the tables."""
