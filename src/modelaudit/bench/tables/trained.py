"""The models themselves: accuracy, attack success rate, and which attacks passed the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.table import (
    NOTHING,
    Table,
    mean,
    percent,
    points,
    rate_fields,
    spread_text,
)
from modelaudit.functional.rates import rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.tables.rows import ModelFacts, Truth
    from modelaudit.bench.tables.table import Value


def trained_table(models: Sequence[tuple[ModelFacts, Truth]]) -> Table:
    """Return ACC and ASR per attack, as means over seeds, with the gate's passes and failures.

    Args:
        models: each model once.
    """
    cells: dict[tuple[str, str, str, int, bool, str], list[Truth]] = {}
    for model, truth in models:
        key = (
            model.population,
            model.dataset,
            model.architecture,
            model.width,
            truth.attack is not None,
            truth.name,
        )
        cells.setdefault(key, []).append(truth)
    rows, records = [], []
    for (population, dataset, architecture, width, is_attacked, attack), found in sorted(
        cells.items()
    ):
        passed = [t for t in found if t.gate_passed is True]
        shown = passed if is_attacked else found
        failed = sum(t.gate_passed is False for t in found)
        acc, asr, benign, drop = _columns(shown)
        rows.append(
            (
                population,
                dataset,
                f"{architecture} w{width}",
                attack,
                str(len(found)),
                f"{len(passed)} / {failed}" if is_attacked else NOTHING,
                spread_text(acc),
                points(mean(drop)),
                spread_text(asr),
                percent(mean(benign)),
            )
        )
        records.append(
            {
                "population": population,
                "dataset": dataset,
                "architecture": architecture,
                "width": width,
                "attack": attack,
                "models": len(found),
                **rate_fields("gate", rate(len(passed), len(found)) if is_attacked else None),
                "acc_mean": mean(acc),
                "acc_minus_twin_mean": mean(drop),
                "asr_mean": mean(asr),
                "asr_lowest": min(asr, default=None),
                "benign_asr_mean": mean(benign),
            }
        )
    return Table(
        name="trained",
        title="The models themselves",
        header=(
            "population",
            "data",
            "architecture",
            "attack",
            "models",
            "gate passed / failed",
            "ACC",
            "ACC minus twin, points",
            "ASR",
            "benign ASR",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=(
            (
                "Means ± sample standard deviation over seeds, of the models that passed the gate. "
                "*Benign ASR*: how often the clean twin itself gives the attacker's label on "
                "triggered images."
            ),
        ),
    )


def gate_failures_table(
    models: Sequence[tuple[ModelFacts, Truth]], cards: Mapping[str, ModelCard]
) -> Table:
    """Return every attacked model that did not pass the gate; it counts nowhere else.

    Args:
        models: each model once.
        cards: by model id; they hold the gate's reasons.
    """
    failed = sorted(
        (
            (model, truth)
            for model, truth in models
            if truth.attack is not None and truth.gate_passed is not True
        ),
        key=lambda pair: pair[0].id,
    )
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Value]] = []
    for model, truth in failed:
        card = cards.get(model.id)
        reasons = "; ".join(card.gate_reasons) if card is not None else ""
        state = "failed" if truth.gate_passed is False else "not judged"
        rows.append(
            (
                model.population,
                model.id,
                truth.name,
                state,
                percent(truth.acc),
                percent(truth.twin_acc),
                percent(truth.asr),
                percent(truth.benign_asr),
                reasons or NOTHING,
            )
        )
        records.append(
            {
                "population": model.population,
                "model": model.id,
                "attack": truth.name,
                "gate": state,
                "acc": truth.acc,
                "twin_acc": truth.twin_acc,
                "asr": truth.asr,
                "benign_asr": truth.benign_asr,
                "reasons": reasons,
            }
        )
    return Table(
        name="gate_failures",
        title="Attacked models that did not pass the gate",
        header=(
            "population",
            "model",
            "attack",
            "gate",
            "ACC",
            "twin's ACC",
            "ASR",
            "benign ASR",
            "reasons",
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=("None of them is counted as a detected or missed backdoor in any table.",),
    )


def _columns(
    truths: Sequence[Truth],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return ACC, ASR, benign ASR, and ACC minus the twin's, each of the models that have it."""
    return (
        [t.acc for t in truths],
        [t.asr for t in truths if t.asr is not None],
        [t.benign_asr for t in truths if t.benign_asr is not None],
        [t.acc - t.twin_acc for t in truths if t.twin_acc is not None],
    )
