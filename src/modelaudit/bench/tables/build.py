"""Every table of one set of rows, and the files that they go into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.bench.papers import read_papers
from modelaudit.bench.tables import population
from modelaudit.bench.tables.clean_sets import clean_set_table
from modelaudit.bench.tables.cost import comparison_table, cost_table
from modelaudit.bench.tables.detection import detection_table, false_alarm_table
from modelaudit.bench.tables.misses import misses_table, models_table, weak_attacks_table
from modelaudit.bench.tables.naming import naming_table
from modelaudit.bench.tables.population import Block
from modelaudit.bench.tables.ranking import ranking_table
from modelaudit.bench.tables.repairs import repair_tables
from modelaudit.bench.tables.rows import ModelFacts, Truth
from modelaudit.bench.tables.trained import gate_failures_table, trained_table
from modelaudit.results import Match

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.tables.population import Headline, ModelScan
    from modelaudit.bench.tables.rows import RepairRow, ScanRow
    from modelaudit.bench.tables.table import Table
    from modelaudit.calibration import Population

#: where a card does not say whether its model is of A or of B
_UNKNOWN = "unknown"


#: how well a population fits, in words
_MATCHES = (
    (Match.MATCHED, "fully"),
    (Match.BORROWED, "but for the architecture"),
    (Match.NONE, "not at all"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All tables.

    Attributes:
        tables: in the order of ``tables.md``.
        models: the table of ``models.md``, or None without scans.
        notes: paragraphs at the head.
        blocks: what the plots are drawn from.
        detectors: scanners that ran.
    """

    tables: tuple[Table, ...]
    models: Table | None
    notes: tuple[str, ...]
    blocks: tuple[Block, ...]
    detectors: tuple[str, ...]

    def files(self) -> dict[str, str]:
        """Return the text of each file by its name; the same rows give the same bytes."""
        parts = ["# Tables", *self.notes]
        files = {}
        for table in (*self.tables, *((self.models,) if self.models else ())):
            if table.records:
                files[f"{table.name}.csv"] = table.to_csv()
            if table is not self.models:
                parts.append(table.to_markdown().rstrip("\n"))
        files["tables.md"] = "\n\n".join(parts) + "\n"
        if self.models is not None:
            files["models.md"] = self.models.to_markdown(level=1)
        return dict(sorted(files.items()))


def build(
    scans: Sequence[ScanRow],
    repairs: Sequence[RepairRow] = (),
    *,
    cards: Mapping[str, ModelCard] | None = None,
    populations: Sequence[Population] = (),
) -> Report:
    """Return every table of some rows.

    Args:
        scans: rows of `bench scan`.
        repairs: rows of `bench repair`.
        cards: model cards by id; they add models that were not scanned and the gate's reasons.
        populations: reference populations that the verdicts rest on, as in a scan.

    Raises:
        ConfigError: rows contradict each other.
    """
    cards = cards or {}
    papers = read_papers()
    every = population.group(scans, populations=populations)
    headline = population.headline(every)
    chosen = headline.scans
    found = population.blocks(chosen)
    shown = population.detectors(chosen)
    # B as a whole and its two parts overlap.
    disjoint = [b for b in found if b.id != "B" or not any(o.id == "B_held" for o in found)]
    facts = _facts(every, repairs, cards)
    tables: list[Table] = []
    if chosen:
        tables += [
            detection_table(block, shown, papers, has_notes=block is disjoint[0])
            for block in disjoint
        ]
        parts = population.by_data(found)
        tables += [
            false_alarm_table(parts, shown),
            ranking_table(parts, shown),
            naming_table(found, shown),
            weak_attacks_table(disjoint, shown),
            misses_table(disjoint, shown),
            comparison_table(found, shown),
            cost_table(chosen, shown),
        ]
        if len({(s.clean_set, s.model.dataset) for s in every}) > len(
            {s.model.dataset for s in every}
        ):
            tables.append(clean_set_table(every))
    if facts:
        tables += [trained_table(facts, cards), gate_failures_table(facts, cards)]
    tables += repair_tables(repairs, papers)
    return Report(
        tables=tuple(tables),
        models=models_table(chosen, shown) if chosen else None,
        notes=_notes(headline, populations),
        blocks=found,
        detectors=shown,
    )


def _facts(
    scans: Sequence[ModelScan], repairs: Sequence[RepairRow], cards: Mapping[str, ModelCard]
) -> tuple[tuple[ModelFacts, Truth], ...]:
    """Return each model once: as its rows say, or as its card says if it has no row."""
    facts: dict[str, tuple[ModelFacts, Truth]] = {
        card.id: _of_card(card) for card in cards.values()
    }
    facts |= {row.model.id: (row.model, row.truth) for row in repairs}
    facts |= {scan.model.id: (scan.model, scan.truth) for scan in scans}
    return tuple(facts[id_] for id_ in sorted(facts))


def _of_card(card: ModelCard) -> tuple[ModelFacts, Truth]:
    return (
        ModelFacts(
            id=card.id,
            population=card.population or _UNKNOWN,
            dataset=card.dataset,
            architecture=card.architecture,
            width=card.width,
            classes=card.classes,
        ),
        Truth(
            attack=card.attack,
            label_map=card.label_map,
            target=card.target,
            acc=card.acc,
            twin_acc=card.twin_acc,
            asr=card.asr,
            benign_asr=card.benign_asr,
            gate_passed=card.gate_passed,
        ),
    )


def _notes(chosen: Headline, populations: Sequence[Population]) -> tuple[str, ...]:
    scans, notes = chosen.scans, []
    if scans:
        clean = sum(s.is_clean for s in scans)
        attacked = sum(not s.is_clean and s.counts for s in scans)
        notes.append(
            f"{len(scans)} models: {clean} clean, {attacked} attacked that passed the gate, "
            f"{len(scans) - clean - attacked} attacked that did not and count nowhere. Each is "
            "shown on the size of clean set that most models of its data had."
        )
        sets = sorted({(s.clean_set.name, s.clean_set.images, s.model.dataset) for s in scans})
        notes.append(
            "Clean sets: "
            + "; ".join(f"{name}, {n} images, {data}" for name, n, data in sets)
            + "."
        )
        names = ", ".join(p.id for p in populations) or "none"
        notes.append(
            f"Verdicts are decided again from the rows, with the reference populations: {names}. "
            "What they hold of population A was seen when they were made: only B measures them. "
            "They match "
            + ", ".join(
                f"{sum(s.combined.match is match for s in scans)} models {words}"
                for match, words in _MATCHES
            )
            + "."
        )
        if not any(s.model.population == "A" for s in scans):
            notes.append(
                "No row of population A was given, so it cannot be told which cells of B it holds."
            )
    if chosen.repeated:
        notes.append(
            f"{chosen.repeated} further scans of the same models (other seeds or clean sets of the "
            "same size) were given and are not shown."
        )
    if chosen.absent:
        notes.append(
            f"{len(chosen.absent)} models were scanned on other clean sets alone and count in none "
            f"of the tables of scans but that of clean sets: {', '.join(chosen.absent)}."
        )
    return tuple(notes)
