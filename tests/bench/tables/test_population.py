from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelaudit.bench.tables import build, read_rows
from modelaudit.bench.tables.population import group, headline
from tests.helpers.bench_rows import facts, found, nothing, scan_rows, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelaudit.bench.tables.population import Headline


def headline_of(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> Headline:
    scans, _ = read_rows([write(tmp_path / "rows", rows)])
    return headline(group(scans))


def test_the_headline_uses_the_clean_set_that_most_models_of_the_data_have(tmp_path: Path) -> None:
    rows = [row for id_ in "abc" for row in scan_rows(facts(id_), nothing())]
    rows += scan_rows(facts("b"), found(1), images=1000)
    rows += scan_rows(facts("d"), nothing(), images=1000)
    rows += scan_rows(facts("e"), nothing(), degradation="jpeg_50")
    rows += scan_rows(facts("f", dataset="gtsrb"), nothing(), images=1000)
    chosen = headline_of(tmp_path, rows)

    assert [(s.model.id, s.clean_set.images) for s in chosen.scans] == [
        ("a", 500),
        ("b", 500),
        ("c", 500),
        ("f", 1000),
    ]
    assert (chosen.repeated, chosen.absent) == (0, ("d", "e"))


def test_of_two_clean_sets_that_as_many_models_have_the_larger_one_is_used(tmp_path: Path) -> None:
    rows = scan_rows(facts("b"), found(1), images=100) + scan_rows(facts("b"), nothing())
    chosen = headline_of(tmp_path, rows)

    assert [s.clean_set.images for s in chosen.scans] == [500]
    assert (chosen.repeated, chosen.absent) == (0, ())


def test_models_of_other_clean_sets_are_named_and_count_in_their_table(tmp_path: Path) -> None:
    rows = [row for id_ in "abc" for row in scan_rows(facts(id_), nothing())]
    for id_ in "de":
        rows += scan_rows(facts(id_, attack="sig", target=0), nothing(), images=100)
    report = build(*read_rows([write(tmp_path / "rows", rows)]))

    assert report.notes[0].startswith("3 models: 3 clean, 0 attacked")
    assert "on the size of clean set that most models of its data had" in report.notes[0]
    assert report.notes[-1] == (
        "2 models were scanned on other clean sets alone and count in none of the tables of scans "
        "but that of clean sets: d, e."
    )
    tables = {table.name: table for table in report.tables}
    found_of = {row[3]: row[5] for row in tables["clean_sets"].rows}
    assert found_of["500"].startswith("0/0")
    assert found_of["100"].startswith("0/2")
    assert {row["attack"]: row["models"] for row in tables["trained"].records} == {
        "clean": 3,
        "sig": 2,
    }
    assert report.models is not None
    assert [row["model"] for row in report.models.records] == ["a", "b", "c"]
