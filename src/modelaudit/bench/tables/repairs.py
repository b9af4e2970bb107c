"""Repairs: accuracy and attack success before and after, beside the papers' figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.repair_models import models_of_repairs_table, shown_table
from modelaudit.bench.tables.repair_outcomes import ends_of, outcomes_table, shortfall_text
from modelaudit.bench.tables.table import (
    NOTHING,
    Table,
    mean,
    percent,
    points,
    rate_fields,
    rate_text,
)
from modelaudit.functional.rates import rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelaudit.bench.papers import Papers, RepairFigure
    from modelaudit.bench.tables.rows import RepairRow, Truth
    from modelaudit.bench.tables.table import Value

#: goals of a repair, fractions: ASR after it, and what it may cost in accuracy
MAX_ASR = 0.05
MAX_DROP = 0.015
MAX_DROP_AUTO = 0.02
MAX_DROP_CLEAN = 0.01

#: id of the repair that chooses for itself
AUTO = "auto"

#: the architecture whose models every paper repairs
REPAIRED_BY_PAPERS = "cifar_resnet18"

#: 0.94 - 0.925 is more than 0.015 in floating point
_ROUNDING = 1e-9

_Cell = tuple[str, str, int, str, int]


def repair_tables(rows: Sequence[RepairRow], papers: Papers) -> tuple[Table, ...]:
    """Return what became of the repairs, the goals, every model, and a table per attack.

    Args:
        rows: of any models; those that failed the gate count in the two tables of all models alone.
            Without rows there is no table.
        papers: figures to show beside.
    """
    if not rows:
        return ()
    counting = [r for r in rows if r.truth.attack is None or r.truth.gate_passed is True]
    attacks: dict[tuple[bool, str], list[RepairRow]] = {}
    for row in counting:
        attacks.setdefault((row.truth.attack is not None, row.truth.name), []).append(row)
    found = [_attack_table(name, group, papers) for (_, name), group in sorted(attacks.items())]
    counted = (outcomes_table(counting), goals_table(counting)) if counting else ()
    return (*counted, models_of_repairs_table(rows), shown_table(rows), *found)


def goals_table(rows: Sequence[RepairRow]) -> Table:
    """Return how many models meet the goals: by the best method, by `auto`, and on clean ones."""
    attacked = [r for r in rows if r.truth.attack is not None]
    clean = [r for r in rows if r.truth.attack is None]
    goals: tuple[tuple[str, list[RepairRow], Callable[[RepairRow], bool], bool], ...] = (
        (
            (
                f"attacked, best of the methods: ASR ≤ {percent(MAX_ASR, 0)}, "
                f"ACC loses ≤ {100 * MAX_DROP:g} points"
            ),
            [r for r in attacked if r.method != AUTO],
            lambda r: _is_clean_after(r) and _loses_at_most(r, MAX_DROP),
            True,
        ),
        (
            (
                f"attacked, `{AUTO}`: ASR ≤ {percent(MAX_ASR, 0)}, "
                f"ACC loses ≤ {100 * MAX_DROP_AUTO:g} points"
            ),
            [r for r in attacked if r.method == AUTO],
            meets_auto_goal,
            True,
        ),
        (
            f"clean, every method: ACC loses ≤ {100 * MAX_DROP_CLEAN:g} point",
            clean,
            lambda r: _loses_at_most(r, MAX_DROP_CLEAN),
            False,
        ),
    )
    lines, records = [], []
    for name, group, is_met, is_any in goals:
        models: dict[str, list[bool]] = {}
        for row in group:
            models.setdefault(row.model.id, []).append(is_met(row))
        met = [any(flags) if is_any else all(flags) for flags in models.values()]
        share = rate(sum(met), len(met))
        short = ", ".join(sorted(i for i, ok in zip(models, met, strict=True) if not ok))
        lines.append((name, rate_text(share), short or NOTHING))
        records.append({"goal": name, **rate_fields("models", share), "not_met": short})
    return Table(
        name="repair_goals",
        title="Repairs: the goals",
        header=("goal", "models", "not met by"),
        rows=tuple(lines),
        records=tuple(records),
        notes=(
            (
                "The best method of a model is chosen with its test ASR, which a user does not "
                "have: that line says what is possible, the one of `auto` what a user gets."
            ),
        ),
    )


def figures_of(
    papers: Papers, repair: str, truth: Truth, dataset: str, architecture: str
) -> tuple[str, ...]:
    """Return what the papers print of a repair against an attack, each figure as text.

    Where they print nothing of the architecture, what they print of ResNet-18, and its name.
    """
    for name in (architecture, REPAIRED_BY_PAPERS) if truth.attack is not None else ():
        found = papers.repairs_of(
            repair=repair, attack=truth.key, architecture=name, dataset=dataset
        )
        if found:
            return tuple(_figure_text(f, is_of_another=name != architecture) for f in found)
    return ()


def _attack_table(attack: str, rows: Sequence[RepairRow], papers: Papers) -> Table:
    cells: dict[_Cell, list[RepairRow]] = {}
    for row in rows:
        model = row.model
        key = (model.dataset, model.architecture, model.width, row.name, row.images)
        cells.setdefault(key, []).append(row)
    lines, records = [], []
    for (dataset, architecture, width, name, images), group in sorted(cells.items()):
        figures = figures_of(papers, name.partition("@")[0], rows[0].truth, dataset, architecture)
        before, after = [r.asr_before for r in group], [r.asr_after for r in group]
        asr_before = [value for value in before if value is not None]
        asr_after = [value for value in after if value is not None]
        ra_before = mean([r.ra_before for r in group if r.ra_before is not None])
        ra_after = mean([r.ra_after for r in group if r.ra_after is not None])
        record: dict[str, Value] = {
            "dataset": dataset,
            "architecture": architecture,
            "width": width,
            "attack": attack,
            "repair": name,
            "images": images,
            "models": len(group),
            "acc_before_mean": mean([r.acc_before for r in group]),
            "acc_after_mean": mean([r.acc_after for r in group]),
            "acc_drop_largest": max(map(_drop, group)),
            "asr_before_mean": mean(asr_before),
            "asr_after_mean": mean(asr_after),
            "asr_after_largest": max(asr_after, default=None),
            "ra_before_mean": ra_before,
            "ra_after_mean": ra_after,
            "pruned_mean": mean([r.pruned for r in group]),
            "passes_mean": mean([r.passes for r in group]),
            "seconds_mean": mean([r.seconds for r in group]),
            **{str(end): number for end, number in ends_of(group).items()},
            "papers": "; ".join(figures),
        }
        records.append(record)
        worst_asr = max(asr_after, default=None)
        lines.append(
            (
                dataset,
                f"{architecture} w{width}",
                name,
                str(images),
                str(len(group)),
                (
                    f"{percent(mean([r.acc_before for r in group]))} → "
                    f"{percent(mean([r.acc_after for r in group]))}"
                ),
                points(max(map(_drop, group))),
                f"{percent(mean(asr_before))} → {percent(mean(asr_after))}",
                percent(worst_asr),
                f"{percent(ra_before)} → {percent(ra_after)}",
                f"{mean([r.pruned for r in group]) or 0:.0f}",
                f"{mean([r.passes for r in group]) or 0:,.0f}",
                f"{mean([r.seconds for r in group]) or 0:.1f}",
                shortfall_text(group),
                "; ".join(figures) or NOTHING,
            )
        )
    origin = sorted(
        {
            figure
            for dataset, architecture, *_ in cells
            for figure in figures_of(papers, "", rows[0].truth, dataset, architecture)
        }
    )
    stem = "".join(c if c.isalnum() else "_" for c in attack).strip("_")
    return Table(
        name=f"repair_{stem}",
        title=f"Repairs: {attack}",
        header=(
            "data",
            "architecture",
            "repair",
            "images",
            "models",
            "ACC",
            "largest loss, points",
            "ASR",
            "largest ASR",
            "RA",
            "pruned",
            "passes",
            "seconds",
            "not repaired",
            "papers: ACC/ASR after",
        ),
        rows=tuple(lines),
        records=tuple(records),
        notes=(
            "Means over models; *largest* are the worst models. *RA*: triggered images that get "
            "their own label. Where the papers print nothing of an architecture, what they print "
            "of ResNet-18 stands there."
            + (f" The papers' models before any repair: {'; '.join(origin)}." if origin else ""),
        ),
    )


def _drop(row: RepairRow) -> float:
    return row.acc_before - row.acc_after


def meets_auto_goal(row: RepairRow) -> bool:
    """Return whether a repair leaves as few of the attacks, for as little, as `auto` should."""
    return _is_clean_after(row) and _loses_at_most(row, MAX_DROP_AUTO)


def _loses_at_most(row: RepairRow, limit: float) -> bool:
    return _drop(row) <= limit + _ROUNDING


def _is_clean_after(row: RepairRow) -> bool:
    return row.asr_after is not None and row.asr_after <= MAX_ASR


def _figure_text(figure: RepairFigure, *, is_of_another: bool) -> str:
    """Return a paper's figure with its place: ``92.06/1.97 (BAN24 T3)``."""
    table = figure.table if not figure.table.isdigit() else f"T{figure.table}"
    details = [f"{figure.paper} {table}"]
    if is_of_another:
        details.append(figure.row_architecture)
    if figure.column.startswith("FT ("):
        details.append(f"lr {figure.column[4:-1]}")
    if figure.poisoning_rate is not None:
        details.append(f"{float(figure.poisoning_rate):.0%} poisoned")
    if figure.clean_fraction is not None:
        details.append(f"{float(figure.clean_fraction):.1%} clean data")
    return f"{figure.acc}/{figure.asr} ({', '.join(details)})"
