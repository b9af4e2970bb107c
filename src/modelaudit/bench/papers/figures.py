"""Reads the papers' figures and finds the one that belongs beside ours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: what a clean model's attack is called in keys
NO_ATTACK = ("clean", "one")

#: an attack's id and "all" or "one", the papers' two kinds of label map
AttackKey = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionFigure:
    """One cell of a paper's detection table, all names as printed.

    Attributes:
        paper: key of docs/references.md.
        table: number of the table.
        dataset: id of the data as this project writes it.
        row_architecture: row of the table.
        row_attack: row of the table.
        column: the method.
        flagged: models called backdoored.
        models: how many models the cell holds.
        accuracy: detection accuracy in per cent, with the digits that are printed.
    """

    paper: str
    table: str
    dataset: str
    row_architecture: str
    row_attack: str
    column: str
    flagged: int
    models: int
    accuracy: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairFigure:
    """One cell of a paper's repair table, all names as printed.

    Attributes:
        paper: key of docs/references.md.
        table: number of the table.
        dataset: id of the data as this project writes it.
        row_architecture: row of the table, or the caption's.
        row_attack: row of the table.
        column: the method.
        acc: accuracy in per cent after the repair, with the digits that are printed.
        asr: attack success rate in per cent after the repair.
        acc_deviation: its standard deviation over the runs, or None.
        asr_deviation: likewise.
        poisoning_rate: fraction, where the table varies it.
        clean_fraction: fraction of the training set that the defender has, where the table varies
            it.
        is_origin: whether it is the model before any repair, the first column of every table.
    """

    paper: str
    table: str
    dataset: str
    row_architecture: str
    row_attack: str
    column: str
    acc: Decimal
    asr: Decimal
    acc_deviation: Decimal | None = None
    asr_deviation: Decimal | None = None
    poisoning_rate: Decimal | None = None
    clean_fraction: Decimal | None = None
    is_origin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The average that a paper prints under a detection table, in per cent."""

    paper: str
    table: str
    column: str
    accuracy: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """Every figure of every paper, findable by this project's names.

    Attributes:
        detection: figures of detection tables with the keys that they answer to.
        repair: figures of repair tables likewise.
        averages: (scanner id, average) of each method that this project knows.
    """

    detection: tuple[tuple[AttackKey, str, str, DetectionFigure], ...]
    repair: tuple[tuple[AttackKey, str, str, RepairFigure], ...]
    averages: tuple[tuple[str, Average], ...]

    def detection_of(
        self, *, scanner: str, attack: AttackKey, architecture: str, dataset: str
    ) -> DetectionFigure | None:
        """Return the paper's figure for one cell, or None.

        Args:
            scanner: id without a variant.
            attack: id and "all" or "one"; `NO_ATTACK` for clean models.
            architecture: name as in a plan, such as ``"cifar_resnet18"``.
            dataset: id.
        """
        for own, id_, family, figure in self.detection:
            if (own, id_, family, figure.dataset) == (attack, scanner, architecture, dataset):
                return figure
        return None

    def repairs_of(
        self, *, repair: str, attack: AttackKey, architecture: str, dataset: str
    ) -> tuple[RepairFigure, ...]:
        """Return every paper's figure of a repair against an attack, in the order of the files.

        Args:
            repair: id without a variant, or ``""`` for the models before any repair.
            attack: id and "all" or "one".
            architecture: name as in a plan.
            dataset: id.
        """
        return tuple(
            figure
            for own, id_, family, figure in self.repair
            if (own, id_, family, figure.dataset) == (attack, repair, architecture, dataset)
        )


def read_papers() -> Papers:
    """Return the figures that are shipped with the package."""
    detection: list[tuple[AttackKey, str, str, DetectionFigure]] = []
    repair: list[tuple[AttackKey, str, str, RepairFigure]] = []
    averages: list[tuple[str, Average]] = []
    folder = resources.files("modelaudit.bench.papers")
    for name in ("ban.toml", "dde_mbns.toml", "anp.toml"):
        # Decimal keeps 94.60 apart from 94.6: the figures are shown as printed.
        paper = tomllib.loads((folder / name).read_text("utf-8"), parse_float=Decimal)
        families, scanners = paper["architectures"], paper["scanners"]
        for found in _detection(paper):
            family = families[found.row_architecture]
            detection.extend(
                ((attack, label_map), scanners[found.column], family, found)
                for attack, label_map in paper["attacks"][found.row_attack]
            )
        for cell in _repair(paper):
            own = "" if cell.is_origin else paper["repairs"][cell.column]
            repair.extend(
                ((attack, label_map), own, families[cell.row_architecture], cell)
                for attack, label_map in paper["attacks"][cell.row_attack]
            )
        if "average" in paper:
            row = paper["average"]
            averages.extend(
                (
                    scanners[method],
                    Average(
                        paper=paper["key"], table=row["table"], column=method, accuracy=accuracy
                    ),
                )
                for method, accuracy in zip(row["methods"], row["accuracy"], strict=True)
            )
    return Papers(detection=tuple(detection), repair=tuple(repair), averages=tuple(averages))


def _detection(paper: dict[str, Any]) -> Iterator[DetectionFigure]:
    for table in paper.get("detection", []):
        for row in table["rows"]:
            cells = zip(table["methods"], row["flagged"], row["accuracy"], strict=True)
            for method, flagged, accuracy in cells:
                yield DetectionFigure(
                    paper=paper["key"],
                    table=table["table"],
                    dataset=table["dataset"],
                    row_architecture=row["architecture"],
                    row_attack=row["attack"],
                    column=method,
                    flagged=flagged,
                    models=table["models"],
                    accuracy=Decimal(accuracy),
                )


def _repair(paper: dict[str, Any]) -> Iterator[RepairFigure]:
    for table in paper.get("repair", []):
        for row in table["rows"]:
            for method, cell in zip(table["methods"], row["cells"], strict=True):
                values = [Decimal(value) for value in cell]
                acc_deviation, asr_deviation = values[2:] if len(values) == 4 else (None, None)
                yield RepairFigure(
                    paper=paper["key"],
                    table=table["table"],
                    dataset=table["dataset"],
                    row_architecture=table["architecture"],
                    row_attack=row["attack"],
                    column=method,
                    acc=values[0],
                    asr=values[1],
                    acc_deviation=acc_deviation,
                    asr_deviation=asr_deviation,
                    poisoning_rate=table.get("poisoning_rate"),
                    clean_fraction=table.get("clean_fraction"),
                    is_origin=method == table["methods"][0],
                )
