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


#: columns that are left out where no model has the rate
_COVER, _NON_VICTIM = "cover ACC", "non-victim ACC"
_DROP = "lowest non-victim ACC minus ACC, points"


def trained_table(
    models: Sequence[tuple[ModelFacts, Truth]], cards: Mapping[str, ModelCard]
) -> Table:
    """Return ACC and ASR per attack, as means over seeds, with the gate's passes and failures.

    Args:
        models: each model once.
        cards: by model id; they hold what the trigger, or something like it, must not do.
    """
    cells: dict[tuple[str, str, str, int, bool, str], list[tuple[Truth, ModelCard | None]]] = {}
    for model, truth in models:
        key = (
            model.population,
            model.dataset,
            model.architecture,
            model.width,
            truth.attack is not None,
            truth.name,
        )
        cells.setdefault(key, []).append((truth, _own(cards.get(model.id), truth)))
    every = [card for found in cells.values() for _, card in found if card is not None]
    has = {
        _COVER: any(card.cover_acc is not None for card in every),
        **dict.fromkeys(
            (_NON_VICTIM, _DROP), any(card.non_victim_acc is not None for card in every)
        ),
    }
    rows, records = [], []
    for (population, dataset, architecture, width, is_attacked, attack), found in sorted(
        cells.items()
    ):
        passed = [pair for pair in found if pair[0].gate_passed is True]
        shown = passed if is_attacked else found
        failed = sum(truth.gate_passed is False for truth, _ in found)
        acc, asr, benign, drop = _columns([truth for truth, _ in shown])
        owned = [card for _, card in shown if card is not None]
        cover = [c.cover_acc for c in owned if c.cover_acc is not None]
        non_victim = [c.non_victim_acc for c in owned if c.non_victim_acc is not None]
        lowest = min(
            (c.non_victim_acc - c.acc for c in owned if c.non_victim_acc is not None), default=None
        )
        optional = {
            _COVER: spread_text(cover),
            _NON_VICTIM: spread_text(non_victim),
            _DROP: points(lowest),
        }
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
                *(text for name, text in optional.items() if has[name]),
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
                "cover_acc_mean": mean(cover),
                "non_victim_acc_mean": mean(non_victim),
                "non_victim_acc_minus_acc_lowest": lowest,
            }
        )
    notes = (
        (
            "Means ± sample standard deviation over seeds, of the models that passed the gate. "
            "*Benign ASR*: how often the clean twin itself gives the attacker's label on "
            "triggered images."
        ),
        (
            "*Cover ACC*: test images that keep their label under something like the trigger that "
            "must not work. *Non-victim ACC*: images of other classes than the victim that keep "
            "theirs under the trigger; more than five points below ACC, it acts on them too. Both "
            "are of the cards, where a model is still that of its card."
        ),
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
            *(name for name, is_shown in has.items() if is_shown),
        ),
        rows=tuple(rows),
        records=tuple(records),
        notes=notes if any(has.values()) else notes[:1],
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


def _own(card: ModelCard | None, truth: Truth) -> ModelCard | None:
    """Return a card if it is of this very model: trained anew under its id it has other rates."""
    return card if card is not None and (card.acc, card.asr) == (truth.acc, truth.asr) else None
