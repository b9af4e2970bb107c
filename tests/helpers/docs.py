"""Reads the pages under docs/ and writes the tables that repeat what the code says.

A page asks for a table by a comment, ``<!-- table: settings of MODULE:CLASS -->`` for a
configuration or ``<!-- table: facts of MODULE:CLASS -->`` for a scanner, and by ``<!-- measured:
NAME -->`` or ``<!-- measured: NAME of BLOCK -->`` for a table of the committed rows or one block
of it; a table of one file of repairs is called ``FILE/NAME``. ``python -m tests.helpers.docs`` in
the project's folder brings every table up to date.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelaudit.preprocessing import PRESETS
from modelaudit.scanners.base import CleanImages, Scanner
from modelaudit.suspect import Suspect
from tests.helpers.measured import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

TABLE = re.compile(
    r"(?P<marker><!-- table: (?P<kind>settings|facts) of (?P<name>[\w.]+:\w+) -->\n)"
    r"(?P<rows>(?:\|.*\n)*)"
)
MEASURED = re.compile(
    r"(?P<marker><!-- measured: (?P<name>[\w/]+)(?: of (?P<block>[\w, ]+))? -->\n)"
    r"(?P<rows>(?:\|.*\n)*)"
)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
EXAMPLE = re.compile(r"<!-- example: (?P<name>\w+) -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)

#: The case for which a scanner's page gives its cost.
CLASSES, IMAGES, SEARCHED, SIDE = 10, 500, 300, 32


def pages() -> list[Path]:
    """Return every page that a reader of the project may open."""
    return sorted([ROOT / "README.md", ROOT / "examples/README.md", *(ROOT / "docs").rglob("*.md")])


def load(name: str) -> Any:
    """Return the class that ``module:Class`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def meanings(config_type: type) -> dict[str, str]:
    """Return what the texts of the class and its bases say of each attribute, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:")[2]
        name = ""
        for line in text.splitlines():
            start = re.match(r"    (\w+): (.*)", line)
            if start:
                name = start.group(1)
                found[name] = start.group(2).strip()
            elif line.startswith("        "):
                found[name] += " " + line.strip()
    return found


def default_text(value: object) -> str:
    """Return a default as ``--set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(default_text, value))
    return str(value).lower()


def settings(config_type: type) -> str:
    """Return a configuration's fields, defaults and meanings as the rows of a table."""
    defaults, said = config_type(), meanings(config_type)
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(config_type):
        default = default_text(getattr(defaults, field.name))
        meaning = said[field.name].replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{default}` | {meaning} |")
    return "\n".join(rows) + "\n"


def _needs(scanner: type[Scanner[Any]]) -> Iterator[str]:
    if scanner.requires_gradients:
        yield "gradients"
    if scanner.requires_batchnorm:
        yield "BatchNorm with running statistics"
    if scanner.requires_split:
        yield "an exact features/head split"
    if scanner.requires_labels:
        yield "labels"
    yield f"{scanner.min_images} clean images" if scanner.min_images > 1 else "a clean image"
    yield f"{scanner.min_classes} classes"


def _cost(scanner: type[Scanner[Any]]) -> str:
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten())
    module.append(nn.Linear(2 * SIDE * SIDE, CLASSES))
    suspect = Suspect(module, preprocessing=PRESETS[0], input_size=SIDE, num_classes=CLASSES)
    images = torch.zeros(IMAGES, 3, SIDE, SIDE)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    clean = CleanImages(
        images=images,
        labels=labels,
        has_labels=True,
        search=torch.arange(SEARCHED),
        judge=torch.arange(SEARCHED, IMAGES),
        predictions=labels,
        as_trained=images,
    )
    cost = scanner().estimate(suspect, clean)
    return (
        f"at most {cost.forward:,} forward and {cost.forward_backward:,} forward+backward image "
        f"passes beyond the shared pass ({CLASSES} classes, {IMAGES} images, {SEARCHED} of them "
        "to search on)"
    )


def facts(scanner: type[Scanner[Any]]) -> str:
    """Return what a scanner declares as the rows of a table."""
    rows = [
        ("version", scanner.version),
        ("family", f"`{scanner.family}`"),
        ("reference", scanner.reference),
        ("sees all-to-all backdoors", "yes" if scanner.sees_all_to_all else "no"),
        ("moves the verdict", "with its default settings" if scanner.is_calibrated else "never"),
        ("needs", ", ".join(_needs(scanner))),
        ("cost", _cost(scanner)),
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def filled(text: str) -> str:
    """Return a page with every table as the code has it now."""

    def table(match: re.Match[str]) -> str:
        make = settings if match["kind"] == "settings" else facts
        return match["marker"] + make(load(match["name"]))

    def measured(match: re.Match[str]) -> str:
        return match["marker"] + rows_of(match["name"], match["block"])

    return MEASURED.sub(measured, TABLE.sub(table, text))


def links(text: str) -> list[str]:
    """Return the targets of a page's links, those inside code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [match["target"] for match in LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Return the names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def examples(text: str) -> dict[str, str]:
    """Return a page's examples by name."""
    return {match["name"]: match["code"] for match in EXAMPLE.finditer(text)}


def write_tables() -> None:
    """Bring the tables of every page up to date."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            path.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    write_tables()
