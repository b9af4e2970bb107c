from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.bench.cards import read_card
from modelaudit.bench.tables import build, read_rows
from tests.helpers.bench_rows import facts, nothing, scan_rows, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.tables import Table

CARD = Path("benchmarks/results/cards/ssdt_vgg16w16_s252_t8.json")


def card(id_: str, **changes: Any) -> ModelCard:
    """Return the card of an attacked model as `facts` describes it."""
    rates = {"acc": 0.80, "asr": 0.99, "gate_passed": True} | changes
    return replace(read_card(CARD), id=id_, architecture="cifar_resnet18", **rates)


def trained(path: Path, ids: Sequence[str], cards: Sequence[ModelCard]) -> Table:
    rows = [
        row
        for id_ in ids
        for row in scan_rows(
            facts(id_, attack="ssdt", label_map="source", target=0, gate=id_ != "failed"), nothing()
        )
    ]
    scans, _ = read_rows([write(path / "rows", rows)])
    report = build(scans, cards={made.id: made for made in cards})
    return next(table for table in report.tables if table.name == "trained")


def test_what_a_trigger_must_not_do_is_shown_of_the_models_that_passed(tmp_path: Path) -> None:
    cards = [
        card("b_1", cover_acc=0.74, non_victim_acc=0.78),
        card("b_2", cover_acc=0.78, non_victim_acc=0.74),
        # it did not pass the gate, and b_3 was trained anew since its card was written
        card("failed", cover_acc=0.1, non_victim_acc=0.1, gate_passed=False),
        card("b_3", cover_acc=0.2, non_victim_acc=0.2, acc=0.79),
    ]
    shown = trained(tmp_path, [made.id for made in cards], cards)

    assert shown.header[-3:] == (
        "cover ACC",
        "non-victim ACC",
        "lowest non-victim ACC minus ACC, points",
    )
    (row,) = shown.rows
    # sample standard deviation of 0.74 and 0.78: 0.04 / √2
    assert row[-3:] == ("76.0 ± 2.8 %", "76.0 ± 2.8 %", "-6.0")
    (record,) = shown.records
    assert record["cover_acc_mean"] == pytest.approx(0.76)
    assert record["non_victim_acc_mean"] == pytest.approx(0.76)
    assert record["non_victim_acc_minus_acc_lowest"] == pytest.approx(-0.06)
    assert "keep their label under something like the trigger" in shown.notes[-1]


def test_what_no_model_has_is_no_column(tmp_path: Path) -> None:
    without = card("b", cover_acc=None, non_victim_acc=None)
    covered = card("b", cover_acc=0.7, non_victim_acc=None)

    assert trained(tmp_path, ["b"], [without]).header[-1] == "benign ASR"
    assert trained(tmp_path, ["b"], [covered]).header[-1] == "cover ACC"
    assert trained(tmp_path, ["b"], []).records[0]["cover_acc_mean"] is None
