from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelaudit.bench.tables import read_rows
from modelaudit.errors import ConfigError
from modelaudit.results import Obstacle
from tests.helpers.bench_rows import facts, nothing, repair_row, result, scan_rows, stand_in, write

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_are_read_and_sorted_whatever_their_order(tmp_path: Path) -> None:
    rows = scan_rows(facts("a"), nothing()) + scan_rows(facts("b"), nothing())
    forward = read_rows([write(tmp_path / "one", rows)])
    backward = read_rows(
        [write(tmp_path / "two", rows[2:]), write(tmp_path / "three", rows[1::-1])]
    )

    assert [(r.model.id, r.detector) for r in forward[0]] == [
        (r.model.id, r.detector) for r in backward[0]
    ]
    assert {(r.model.id, r.detector) for r in forward[0]} == {
        (id_, scanner) for id_ in "ab" for scanner in ("ban", "mbns")
    }


def test_a_variant_and_changed_settings_are_detectors_of_their_own(tmp_path: Path) -> None:
    outcomes = [
        result("ban", 1.0),
        result("ban@paper_code", 1.0),
        result("ban", 1.0, config_set=["steps", "restarts"]),
    ]
    scans, _ = read_rows([write(tmp_path / "rows", scan_rows(facts("a"), outcomes))])

    assert {r.detector for r in scans} == {
        "ban",
        "ban@paper_code",
        "ban with other steps, restarts",
    }


def test_the_same_row_twice_counts_once_with_the_shorter_time(tmp_path: Path) -> None:
    slow = scan_rows(facts("a"), [result("ban", 1.0, cost=(1, 1, 9.0))])
    fast = scan_rows(facts("a"), [result("ban", 1.0, cost=(1, 1, 4.0))])
    for rows in (slow + fast, fast + slow):
        ((row,), _) = read_rows([write(tmp_path / "rows", rows)])
        assert row.outcome.cost.seconds == 4.0  # type: ignore[union-attr]  # it is a result


def test_rows_of_one_key_that_disagree_are_refused(tmp_path: Path) -> None:
    rows = scan_rows(facts("a"), [result("ban", 1.0)]) + scan_rows(facts("a"), [result("ban", 2.0)])

    with pytest.raises(ConfigError, match=r"line 1 of .* and line 2 of .* one key"):
        read_rows([write(tmp_path / "rows", rows)])


def test_two_versions_of_a_method_are_not_averaged(tmp_path: Path) -> None:
    rows = scan_rows(facts("a"), [result("ban", 1.0)])
    rows += scan_rows(facts("b"), [result("ban", 1.0, version="2")])

    with pytest.raises(ConfigError, match="of ban version"):
        read_rows([write(tmp_path / "rows", rows)])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", scan_rows(facts("a"), nothing()))
    path.write_text(path.read_text() + '{"key": {"check', encoding="utf-8")

    assert len(read_rows([path])[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken\n", "line 1 of .*, found Expecting"),
        ("[1]\n", "expected a JSON object in line 1 .*, found list"),
        ("{}\n", "expected 'key' of type dict in line 1"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=message):
        read_rows([path])


def test_a_missing_field_and_a_broken_outcome_are_named(tmp_path: Path) -> None:
    row = scan_rows(facts("a"), nothing())[0]
    without = json.loads(json.dumps(row))
    del without["model"]["width"]
    with pytest.raises(ConfigError, match="expected 'width' of type int in line 1"):
        read_rows([write(tmp_path / "rows", [without])])
    with pytest.raises(ConfigError, match=r"line 1 of .*: expected an outcome"):
        read_rows([write(tmp_path / "rows", [{**row, "outcome": "guess"}])])


def test_there_is_no_third_population(tmp_path: Path) -> None:
    rows = scan_rows(facts("a", population="../C"), nothing())

    with pytest.raises(ConfigError, match="expected 'population' to be one of"):
        read_rows([write(tmp_path / "rows", rows)])


def test_obstacles_to_clean_are_read(tmp_path: Path) -> None:
    obstacle = {"reason_code": "MA-V507", "reason": "open", "next_step": "give it"}
    rows = [row | {"obstacles_to_clean": [obstacle]} for row in scan_rows(facts("a"), nothing())]
    scans, _ = read_rows([write(tmp_path / "rows", rows)])
    assert {row.obstacles_to_clean for row in scans} == {(Obstacle(**obstacle),)}
    for wrong, said in (([3], "an obstacle with .*, got 3"), (3, "a list of obstacles, got 3")):
        rows[1]["obstacles_to_clean"] = wrong
        with pytest.raises(ConfigError, match=rf"rows.*: expected {said}"):
            read_rows([write(tmp_path / "rows", rows)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected JSON Lines in .*nowhere"):
        read_rows([tmp_path / "nowhere"])


def test_repairs_are_read_beside_scans(tmp_path: Path) -> None:
    about = facts("a", attack="badnets", target=0)
    row = repair_row(about, "nad", acc=(0.8, 0.79), asr=(0.99, 0.02), variant="paper_code")
    scans, (repair,) = read_rows([write(tmp_path / "rows", [row, *scan_rows(about, nothing())])])

    assert len(scans) == 2
    assert (repair.name, repair.passes, repair.pruned) == ("nad@paper_code", 150, 7)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_equal_repairs_the_faster_one_counts(tmp_path: Path, order: int) -> None:
    about = facts("a", attack="blend", target=0)
    rows = [
        repair_row(about, "nad", acc=(0.8, 0.79), asr=(0.99, 0.02)) | {"seconds": seconds}
        for seconds in (3.0, 5.0)
    ]
    _, (repair,) = read_rows([write(tmp_path / "rows", rows[::order])])
    assert repair.seconds == 3.0


def test_what_stand_ins_show_is_part_of_a_result(tmp_path: Path) -> None:
    about = facts("a", attack="blend", target=0)
    rows = [
        repair_row(about, "nad", acc=(0.8, 0.79), effects=[stand_in(share)]) for share in (0.1, 0.2)
    ]
    with pytest.raises(ConfigError, match="repair 'a' by 'nad' with different results"):
        read_rows([write(tmp_path / "rows", rows)])


@pytest.mark.parametrize(
    "effect", [{"kind": "stand_in"}, {"kind": "stand_in", "interval_before": None}, 3]
)
def test_effects_of_another_form_are_refused(tmp_path: Path, effect: object) -> None:
    about = facts("a", attack="blend", target=0)
    row = repair_row(about, "nad", acc=(0.8, 0.79), effects=[effect])
    with pytest.raises(ConfigError, match="expected effects of a repair in line 1"):
        read_rows([write(tmp_path / "rows", [row])])
    row = repair_row(about, "auto", acc=(0.8, 0.79), attempts=[3])
    with pytest.raises(ConfigError, match="expected effects of a repair in line 1"):
        read_rows([write(tmp_path / "rows", [row])])


def test_two_results_of_one_repair_are_refused(tmp_path: Path) -> None:
    about = facts("a", attack="badnets", target=0)
    rows = [repair_row(about, "nad", acc=(0.8, after), asr=(0.99, 0.02)) for after in (0.79, 0.78)]

    with pytest.raises(ConfigError, match="repair 'a' by 'nad' with different results"):
        read_rows([write(tmp_path / "rows", rows)])
