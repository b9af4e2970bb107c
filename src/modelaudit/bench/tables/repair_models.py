"""Repairs, model by model: what each one did, and what a defender is shown of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.repair_outcomes import end_of
from modelaudit.bench.tables.table import NOTHING, Table, mean, percent, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.rows import RepairRow
    from modelaudit.bench.tables.table import Value

#: Share of images. An attack that succeeds on more is left after a repair; it is shown if stand-ins
#: lead more.
LEFT_FROM = 0.1
#: behind the id of a model whose attack did not pass the gate, or was not judged
MISSED = " \N{DAGGER}"


def models_of_repairs_table(rows: Sequence[RepairRow]) -> Table:
    """Return a line for each model and a column for each repair.

    Args:
        rows: of any models, those whose attack failed the gate among them, which are marked.
    """
    names = sorted({(row.name, row.images) for row in rows})
    models: dict[str, dict[tuple[str, int], RepairRow]] = {}
    for row in rows:
        models.setdefault(row.model.id, {})[row.name, row.images] = row
    lines, records = [], []
    for id_, made in sorted(models.items(), key=lambda item: _place(next(iter(item[1].values())))):
        first = next(iter(made.values()))
        lines.append(
            (
                id_ + (MISSED if _has_missed(first) else ""),
                _rates(percent(first.acc_before), first.asr_before),
                *(_cell(made.get(name)) for name in names),
            )
        )
        records += [_record(made[name]) for name in names if name in made]
    return Table(
        name="repair_models",
        title="Repairs: model by model",
        header=("model", "ACC / ASR", *(f"{name}, {images}" for name, images in names)),
        rows=tuple(lines),
        records=tuple(records),
        notes=(
            (
                "Points of accuracy on test images / ASR after, in %, and in brackets the share of "
                "held-out images that stand-ins for the trigger still lead, at the place where "
                "that is largest, before the control is subtracted. Behind each "
                f"repair the number of its clean images. {MISSED.strip()}: the attack did not pass "
                "the gate, or was not judged; such models count here and in the next table alone."
            ),
        ),
    )


def shown_table(rows: Sequence[RepairRow]) -> Table:
    """Return how far what stand-ins show is from the attacks that succeed, for each repair.

    Args:
        rows: of any models; those without stand-ins or ASR are left out.
    """
    groups: dict[str, list[RepairRow]] = {}
    for row in rows:
        if row.shown is not None and row.asr_after is not None:
            groups.setdefault(row.name, []).append(row)
    every = [row for _, group in sorted(groups.items()) for row in group]
    lines, records = [], []
    for name, group in (*sorted(groups.items()), *((("all", every),) if every else ())):
        low, high = min(group, key=_beyond), max(group, key=_beyond)
        left = [row for row in group if (row.asr_after or 0.0) > LEFT_FROM]
        gone = [row for row in group if (row.asr_after or 0.0) <= LEFT_FROM]
        missed = [row for row in left if (row.shown or 0.0) <= LEFT_FROM]
        feared = [row for row in gone if (row.shown or 0.0) > LEFT_FROM]
        distance = mean([abs(_beyond(row)) for row in group])
        record: dict[str, Value] = {
            "repair": name,
            "repairs": len(group),
            "distance_mean": distance,
            "lowest": _beyond(low),
            "lowest_model": low.model.id,
            "highest": _beyond(high),
            "highest_model": high.model.id,
            "left": len(left),
            "left_not_shown": len(missed),
            "gone": len(gone),
            "gone_but_shown": len(feared),
        }
        records.append(record)
        lines.append(
            (
                name,
                str(len(group)),
                f"{100 * (distance or 0.0):.1f}",
                f"{points(_beyond(low))} ({low.model.id})",
                f"{points(_beyond(high))} ({high.model.id})",
                f"{len(missed)}/{len(left)}",
                f"{len(feared)}/{len(gone)}",
            )
        )
    return Table(
        name="repair_shown",
        title="Repairs: what stand-ins show and what attacks do",
        header=(
            "repair",
            "repairs",
            "mean distance, points",
            "lowest",
            "highest",
            "left, not shown",
            "gone, but shown",
        ),
        rows=tuple(lines),
        records=tuple(records),
        notes=(
            (
                "Share of held-out images that stand-ins lead to the target, less the ASR on test "
                "images. *Left* are repairs after which more than a tenth of the attacks succeed, "
                "*gone* the others; *shown* is what leads more than a tenth. Models whose attack "
                "did not pass the gate count too."
            ),
        ),
    )


def _has_missed(row: RepairRow) -> bool:
    return row.truth.attack is not None and row.truth.gate_passed is not True


def _place(row: RepairRow) -> tuple[bool, str, str]:
    return (row.truth.attack is not None, row.truth.name, row.model.id)


def _beyond(row: RepairRow) -> float:
    return (row.shown or 0.0) - (row.asr_after or 0.0)


def _rates(acc: str, asr: float | None) -> str:
    return acc if asr is None else f"{acc} / {percent(asr)}"


def _cell(row: RepairRow | None) -> str:
    if row is None:
        return NOTHING
    text = points(row.acc_after - row.acc_before)
    if row.asr_after is not None:
        text += f" / {100 * row.asr_after:.1f}"
    if row.shown is not None:
        text += f" ({100 * row.shown:.0f})"
    end = str(end_of(row)).replace("_", " ")
    return text if end == "repaired" else f"{text}, {end}"


def _record(row: RepairRow) -> dict[str, Value]:
    return {
        "model": row.model.id,
        "attack": row.truth.name,
        "gate_passed": row.truth.gate_passed,
        "repair": row.name,
        "images": row.images,
        "acc_before": row.acc_before,
        "acc_after": row.acc_after,
        "asr_before": row.asr_before,
        "asr_after": row.asr_after,
        "ra_before": row.ra_before,
        "ra_after": row.ra_after,
        "shown_after": row.shown,
        "end": str(end_of(row)),
        "seconds": row.seconds,
    }
