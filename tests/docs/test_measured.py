from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.bench.tables import read_rows
from tests.helpers import docs, measured
from tests.helpers.bench_rows import facts, repair_row, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables import RepairRow


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that the tables are made from, without rows so far."""

    def repairs_of(stem: str) -> tuple[RepairRow, ...]:
        return read_rows([tmp_path / f"{stem}.jsonl"])[1]

    for stem in measured.REPAIRS:
        (tmp_path / f"{stem}.jsonl").touch()
    monkeypatch.setattr(measured, "ROWS", tmp_path)
    monkeypatch.setattr(measured, "repairs_of", repairs_of)
    return tmp_path


def repaired(id_: str, method: str, acc: float, asr: float, **ended: object) -> dict[str, Any]:
    about = facts(id_, attack="badnets", target=0)
    return repair_row(
        about, method, acc=(0.8, acc), asr=(0.9, asr), ra_before=0.0, ra_after=0.5, **ended
    )


def timed(rows: Path, times: Sequence[tuple[str, str, str, float]]) -> None:
    made = [
        {
            "repair": repair,
            "version": version,
            "hardware": {"cpu": cpu},
            "seconds": seconds,
            "forward": 1200,
            "forward_backward": 0,
            "acc": [0.80, 0.79],
            "asr": [0.99, 0.50],
        }
        for repair, version, cpu, seconds in times
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in made)
    (rows / "repair_times.jsonl").write_text(text, encoding="utf-8")


def test_pages_ask_for_the_tables_of_the_rows() -> None:
    def asked(page: str) -> list[str]:
        text = (docs.ROOT / "docs/results" / page).read_text(encoding="utf-8")
        return [match["name"] for match in docs.MEASURED.finditer(text)]

    assert asked("rounds.md") == ["covers"]
    assert asked("repairs.md") == [
        "auto",
        "repairs/repair_models",
        "repairs/repair_goals",
        "repair_papers",
        "repairs_walked_back/kept",
        "repairs_several_views/kept",
        "repairs_paper_code/repair_models",
        "repairs/repair_shown",
        "repair_times",
        "repairs_a/repair_models",
        "repairs_b/repair_models",
    ]


def test_a_table_of_one_file_is_written_and_a_number_that_differs_is_seen() -> None:
    marker = "<!-- measured: repairs/repair_goals -->\n"
    page = docs.filled(marker)

    assert page.startswith(f"{marker}| goal | models | not met by |\n")
    changed = page.replace("9/10", "10/10")
    assert changed != page
    assert docs.filled(changed) == page


def test_of_each_repair_and_processor_the_newest_time_is_shown(rows: Path) -> None:
    timed(
        rows,
        [
            ("mcr", "0", "one", 3.0),
            ("prune_linf", "1", "one", 1.0),
            ("mcr", "1", "one", 2.0),
            ("mcr", "0", "another", 9.0),
        ],
    )

    assert [row[:4] for row in measured.times_table().rows] == [
        ("`mcr`", "0 (today 1)", "another", "9.0"),
        ("`prune_linf`", "1", "one", "1.0"),
        ("`mcr`", "1", "one", "2.0"),
    ]
    assert measured.times_table().rows[0][4:] == ("1,200", "0", "-1.0 / 50.0")


def test_what_walks_back_is_shown_with_what_it_kept(rows: Path) -> None:
    kept = {"details": {"kept_share": 0.3}}
    made = [
        repaired("bad", "nad", 0.78, 0.04, **kept),
        repaired("bad", "finetune", 0.77, 0.5, is_within_budget=False, **kept),
        repaired("bad", "mcr", 0.7, 0.9),
        repair_row(facts("clean"), "nad", acc=(0.8, 0.8), details={"kept_share": 0.02}),
    ]
    write(rows / "repairs.jsonl", made)
    table = measured.kept_table("repairs")

    assert table.header == ("model", "ACC / ASR", "finetune", "nad")
    assert table.rows == (
        ("clean", "80.0 %", "–", "+0.0 (2 %)"),
        ("bad", "80.0 % / 90.0 %", "-3.0 / 50.0 (30 %), over", "**-2.0 / 4.0** (30 %)"),
    )


def test_beside_the_papers_stand_the_newest_rows(rows: Path) -> None:
    write(rows / "repairs_a.jsonl", [repaired("a", "nad", 0.7, 0.8)])
    # the papers print nothing of this one
    write(rows / "repairs_b.jsonl", [repaired("a", "prune_recover", 0.7, 0.8)])
    write(rows / "repairs.jsonl", [repaired("b", "nad", 0.8, 0.2), repaired("c", "nad", 0.7, 0.1)])
    origin, newest = measured.papers_table().rows

    assert origin[:2] == ("badnets", "none")
    assert "93.86/100.00 (DDE22 T1)" in origin[-2]
    assert newest == (
        "badnets",
        "nad",
        "cifar_resnet18 w16",
        "500",
        "2",
        "-5.0",
        "90.0 → 15.0 (RA 0.0 → 50.0)",
        "93.36/2.43 (DDE22 T1)",
        "repairs",
    )
