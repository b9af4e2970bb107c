from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.bench.tables import Report, build, read_rows
from modelaudit.errors import ConfigError
from modelaudit.functional.rates import auroc
from tests.helpers.bench_rows import (
    facts,
    found,
    nothing,
    repair_row,
    result,
    scan_rows,
    skipped,
    stand_in,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelaudit.bench.tables import Table


def report_of(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> Report:
    return build(*read_rows([write(tmp_path / "rows.jsonl", rows)]))


def table(report: Report, name: str) -> Table:
    return next(t for t in report.tables if t.name == name)


def records(report: Report, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.files()[f"{name}.csv"])))


def lines(report: Report, name: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Return a table's rows by their first two cells."""
    shown = table(report, name)
    return {row[:2]: dict(zip(shown.header, row, strict=True)) for row in shown.rows}


def small_population() -> list[dict[str, Any]]:
    """Return A: clean, badnets. B: clean, badnets found, blend missed, all-to-all, a failure."""
    rows = scan_rows(facts("a_clean", population="A"), nothing())
    rows += scan_rows(facts("a_bad", population="A", attack="badnets", target=3), found(3))
    rows += scan_rows(facts("b_clean_1"), nothing(ban=0.2))
    rows += scan_rows(
        facts("b_clean_2"), [result("ban", 3.0, "suspicious", named=[4]), result("mbns", 2.0)]
    )
    rows += scan_rows(facts("b_bad_1", attack="badnets", target=5), found(5))
    rows += scan_rows(facts("b_bad_2", attack="badnets", target=6), found(1))
    rows += scan_rows(facts("b_blend", attack="blend", target=7), nothing(ban=0.3))
    every = [
        result("ban", 0.1),
        result("mbns", 80.0, "strong", pattern="all_to_all", is_confirmed=True),
    ]
    rows += scan_rows(facts("b_all", attack="badnets", label_map="all"), every)
    rows += scan_rows(facts("b_failed", attack="sig", target=0, gate=False, asr=0.4), nothing())
    return rows


def test_b_is_reported_in_cells_that_a_holds_and_cells_that_it_does_not(tmp_path: Path) -> None:
    report = report_of(tmp_path, small_population())

    assert {b.id: [s.model.id for s in b.scans] for b in report.blocks} == {
        "B_held": ["b_bad_1", "b_bad_2", "b_clean_1", "b_clean_2"],
        "B_new": ["b_all", "b_blend", "b_failed"],
        "B": ["b_all", "b_bad_1", "b_bad_2", "b_blend", "b_clean_1", "b_clean_2", "b_failed"],
        "A": ["a_bad", "a_clean"],
    }


@pytest.mark.parametrize(
    "other",
    [{"architecture": "cifar_vgg16"}, {"dataset": "gtsrb"}, {"attack": "blend"}],
)
def test_a_cell_is_attack_architecture_and_data(tmp_path: Path, other: dict[str, str]) -> None:
    a = facts("a", population="A", attack="badnets", target=1)
    same = facts("same", attack="badnets", target=2)
    fresh = facts("fresh", **{"attack": "badnets", "target": 2, **other})  # type: ignore[arg-type]
    rows = [row for about in (a, same, fresh) for row in scan_rows(about, found(1))]

    report = report_of(tmp_path, rows)
    blocks = {b.id: [s.model.id for s in b.scans] for b in report.blocks}
    assert (blocks["B_held"], blocks["B_new"]) == (["same"], ["fresh"])


def test_a_cell_of_failed_models_is_not_held(tmp_path: Path) -> None:
    a = facts("a", population="A", attack="badnets", target=1, gate=False)
    b = facts("b", attack="badnets", target=1)
    clean = facts("clean", population="A")
    rows = scan_rows(a, nothing()) + scan_rows(b, found(1)) + scan_rows(clean, nothing())

    blocks = {block.id for block in report_of(tmp_path, rows).blocks}
    assert blocks == {"B_new", "B", "A"}


def test_without_population_a_nothing_is_called_held(tmp_path: Path) -> None:
    rows = [row for row in small_population() if row["model"]["population"] == "B"]
    report = report_of(tmp_path, rows)

    assert [b.id for b in report.blocks] == ["B"]
    assert "cannot be told which cells of B it holds" in report.files()["tables.md"]


def test_detection_counts_as_bans_first_table_does(tmp_path: Path) -> None:
    report = report_of(tmp_path, small_population())
    shown = table(report, "detection_B_held")

    assert shown.header == (
        "data", "architecture", "attack", "models", "verdict", "ban, paper", "ban", "mbns",
    )  # fmt: skip
    assert shown.rows == (
        ("cifar10", "cifar_resnet18 w16", "clean", "2",
         "0 · 100 %", "0 of 20 · 100 %", "1 · 50 %", "0 · 100 %"),
        ("cifar10", "cifar_resnet18 w16", "badnets", "2",
         "2 · 100 %", "20 of 20 · 100 %", "2 · 100 %", "2 · 100 %"),
        ("mean of cells", "", "", "", "100.0 %", "100.0 %", "75.0 %", "100.0 %"),
    )  # fmt: skip
    ours = [r for r in records(report, "detection_B_held") if r["detector"] == "ban"]
    assert [(r["attack"], r["flagged_count"], r["accuracy"]) for r in ours] == [
        ("clean", "1", "0.5"),
        ("badnets", "2", "1"),
    ]
    assert [r["paper_flagged"] for r in ours] == ["0", "20"]


def test_failed_models_stand_apart_and_count_nowhere(tmp_path: Path) -> None:
    report = report_of(tmp_path, small_population())

    assert "sig" not in table(report, "detection_B_new").to_markdown()
    assert [row[1] for row in table(report, "gate_failures").rows] == ["b_failed"]
    trained = {(r["population"], r["attack"]): r for r in records(report, "trained")}
    assert trained["B", "sig"]["gate_count"] == "0"
    assert trained["B", "sig"]["acc_mean"] == ""
    assert trained["B", "badnets"]["gate_count"] == "2"


def test_false_alarms_carry_the_clopper_pearson_interval(tmp_path: Path) -> None:
    rates = lines(report_of(tmp_path, small_population()), "false_alarms")

    # 0 of 2: the upper end is 1 - 0.025^(1/2) = 0.8419; 1 of 2: 1 - 0.975^(1/2) = 0.0126.
    assert rates["B, all", "verdict"]["clean models flagged"] == "0/2, 0.0 % (0.0 to 84.2)"
    assert rates["B, all", "ban"]["clean models flagged"] == "1/2, 50.0 % (1.3 to 98.7)"
    # Found: both badnets and the all-to-all one, not blend; sig failed its gate.
    assert rates["B, all", "verdict"]["attacked models flagged"].startswith("3/4, 75.0 %")
    assert rates["B, all", "ban"]["attacked models flagged"].startswith("2/4, 50.0 %")


def test_auroc_is_that_of_the_scores(tmp_path: Path) -> None:
    ranking = {
        (r["block"], r["score"]): r
        for r in records(report_of(tmp_path, small_population()), "ranking")
    }

    expected = auroc([5.0, 5.0, 0.3, 0.1], [0.2, 3.0])
    assert float(ranking["B", "ban"]["auroc"]) == pytest.approx(expected.value)
    assert float(ranking["B", "ban"]["auroc_low"]) == pytest.approx(expected.low)
    # 5 and 5 beat both, 0.3 beats one: 5 of 6
    assert float(ranking["B", "ban"]["auroc_single_target"]) == pytest.approx(5 / 6)
    # The block of new cells holds no clean model: those of B stand in.
    assert ranking["B_new", "ban"]["clean"] == "2"
    assert float(ranking["B_new", "ban"]["auroc"]) == pytest.approx(0.25)


def test_a_rate_that_the_clean_models_do_not_resolve_is_not_printed(tmp_path: Path) -> None:
    rows = [
        row
        for i in range(20)
        for row in scan_rows(facts(f"clean_{i:02}"), nothing(ban=0.01 * i, mbns=1.0))
    ]
    rows += scan_rows(facts("bad_1", attack="badnets", target=1), found(1, ban=0.185))
    rows += scan_rows(facts("bad_2", attack="badnets", target=1), found(1, ban=0.17))
    rows += scan_rows(
        facts("bad_3", attack="badnets", target=1),
        [skipped("ban"), result("mbns", 50.0, "strong", named=[1])],
    )
    ranking = lines(report_of(tmp_path, rows), "ranking")["B", "ban"]

    # One false alarm of 20 is allowed: above 0.18. The skipped model counts as not found.
    assert ranking["found at 5 % FPR"].startswith("1/3, 33.3 %")
    assert ranking["found at 1 % FPR"] == "not resolved by 20 clean"
    assert ranking["attacked (without score)"] == "3 (1)"


def test_naming_tells_right_from_wrong_and_all_to_all(tmp_path: Path) -> None:
    naming = lines(report_of(tmp_path, small_population()), "naming")["B, all", "verdict"]

    assert naming["single target: named alone"].startswith("1/2, 50.0 %")
    assert naming["another named"] == "1"
    assert naming["all-to-all: called so"].startswith("1/1")


def test_the_scanner_that_names_several_is_not_right(tmp_path: Path) -> None:
    outcomes = [
        result("ban", 5.0, "strong", named=[1, 2]),
        result("mbns", 50.0, "strong"),
    ]
    report = report_of(tmp_path, scan_rows(facts("b", attack="badnets", target=2), outcomes))

    naming = lines(report, "naming")
    assert naming["B", "ban"]["among others"] == "1"
    assert naming["B", "mbns"]["none named"] == "1"


def test_weak_attacks_and_misses_are_named_with_every_score(tmp_path: Path) -> None:
    report = report_of(tmp_path, small_population())

    assert [row[:2] for row in table(report, "weak_attacks").rows] == [("B, other cells", "blend")]
    misses = {row[1]: row for row in table(report, "misses").rows}
    assert set(misses) == {"b_blend", "b_bad_2"}
    assert misses["b_blend"][2:5] == ("blend → 7", "clean (MA-V001)", "MISSED")
    assert misses["b_blend"][-2:] == ("0.3 –", "2 –")
    assert misses["b_bad_2"][4] == "found, target not"
    assert misses["b_bad_2"][-2:] == ("5 S → 1", "50 S → 1")


def test_weak_attacks_count_a_scanner_only_where_it_could_judge(tmp_path: Path) -> None:
    rows = scan_rows(
        facts("b_1", attack="badnets", target=1),
        [result("ban", 5.0, "strong", named=[1]), result("mbns", None, "no_power")],
    )
    rows += scan_rows(
        facts("b_2", attack="badnets", target=1), [result("ban", 1.0), result("mbns", 1.0)]
    )
    report = report_of(tmp_path, rows)

    assert [row[-1] for row in table(report, "weak_attacks").rows] == ["ban 1 of 2, mbns 0 of 1"]
    (record,) = records(report, "weak_attacks")
    assert (record["flagged_by_mbns"], record["judged_by_mbns"]) == ("0", "1")


def test_nine_of_ten_is_not_weak(tmp_path: Path) -> None:
    rows = [
        row
        for i in range(10)
        for row in scan_rows(
            facts(f"b_{i}", attack="badnets", target=1), found(1) if i else nothing()
        )
    ]

    assert table(report_of(tmp_path, rows), "weak_attacks").rows == ()


def test_a_scanner_without_power_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    rows = scan_rows(facts("b_1"), [result("ban", None, "no_power"), result("mbns", 2.0)])
    rows += scan_rows(facts("b_2", attack="badnets", target=1), [skipped("mm_bd"), *found(1)])
    report = report_of(tmp_path, rows)

    clean, attacked, mean = table(report, "detection_B").rows
    column = table(report, "detection_B").header.index("ban")
    assert (clean[column], attacked[column], mean[column]) == (
        "no power",
        "1 · 100 %",
        "100.0 %",
    )
    # mm_bd ran nowhere: it has no column.
    assert "mm_bd" not in table(report, "detection_B").header


def test_paper_code_stands_beside_the_default_over_the_same_models(tmp_path: Path) -> None:
    rows = []
    for id_, attack, score in (("b_1", None, 1.0), ("b_2", "badnets", 2.0), ("b_3", None, 9.0)):
        outcomes = [result("ban", score, cost=(100, 300, 10.0)), result("mbns", 1.0)]
        if id_ != "b_3":
            outcomes.append(result("ban@paper_code", 1.0, cost=(0, 1200, 25.0)))
        rows += scan_rows(facts(id_, attack=attack, target=0), outcomes)
    beside = lines(report_of(tmp_path, rows), "paper_code")

    assert beside["B", "ban"]["models"] == "2"
    assert beside["B", "ban"]["AUROC"].startswith("1.000")
    assert beside["B", "ban@paper_code"]["AUROC"].startswith("0.500")
    ratio = beside["B", "ban@paper_code ÷ ban"]
    assert ratio["passes"] == "3.00"
    assert "seconds" not in ratio  # the two may stem from different machines


def test_the_cost_is_the_mean_per_model_and_data(tmp_path: Path) -> None:
    rows = scan_rows(facts("b_1"), [result("ban", 1.0, cost=(10, 20, 1.0))])
    rows += scan_rows(facts("b_2"), [result("ban", 1.0, cost=(30, 40, 2.0))])
    rows += scan_rows(facts("b_3", dataset="gtsrb"), [result("ban", 1.0, cost=(1, 2, 3.0))])
    cost = lines(report_of(tmp_path, rows), "cost")

    assert cost["cifar10", "ban"]["forward"] == "20"
    assert cost["cifar10", "ban"]["forward+backward"] == "30"
    assert (cost["cifar10", "ban"]["seconds"], cost["cifar10", "ban"]["longest"]) == ("1.5", "2.0")
    assert cost["gtsrb", "ban"]["models"] == "1"


def test_acc_and_asr_are_means_over_the_models_that_passed(tmp_path: Path) -> None:
    rows = scan_rows(facts("b_1", attack="sig", target=0, acc=0.80, asr=0.98), nothing())
    rows += scan_rows(facts("b_2", attack="sig", target=0, acc=0.82, asr=0.96), nothing())
    rows += scan_rows(
        facts("b_3", attack="sig", target=0, acc=0.10, asr=0.10, gate=False), nothing()
    )
    (row,) = records(report_of(tmp_path, rows), "trained")

    assert (row["models"], row["gate_count"]) == ("3", "2")
    assert float(row["acc_mean"]) == pytest.approx(0.81)
    assert float(row["asr_mean"]) == pytest.approx(0.97)
    shown = table(report_of(tmp_path, rows), "trained").rows[0]
    # sample standard deviation of 0.80 and 0.82: 0.02 / √2
    assert shown[6:9] == ("81.0 ± 1.4 %", "+0.0", "97.0 ± 1.4 %")


def test_degraded_clean_sets_have_a_table_and_no_part_in_the_others(tmp_path: Path) -> None:
    bad = facts("b_bad", attack="badnets", target=1)
    rows = scan_rows(bad, found(1)) + scan_rows(facts("b_clean"), nothing())
    rows += scan_rows(bad, nothing(), degradation="jpeg_50")
    rows += scan_rows(bad, found(1), images=100)
    report = report_of(tmp_path, rows)

    assert table(report, "detection_B").rows[1][3] == "1"
    sets = {(r["images"], r["degradation"]): r for r in records(report, "clean_sets")}
    assert sets["500", ""]["found_count"] == "1"
    assert sets["500", "jpeg_50"]["found_count"] == "0"
    assert sets["100", ""]["found_count"] == "1"
    assert sets["500", "jpeg_50"]["false_alarms_of"] == "0"


def test_one_clean_set_makes_no_table_of_clean_sets(tmp_path: Path) -> None:
    report = report_of(tmp_path, small_population())

    assert "clean_sets.csv" not in report.files()


def test_further_seeds_are_left_out_and_counted(tmp_path: Path) -> None:
    about = facts("b")
    rows = scan_rows(about, nothing()) + scan_rows(about, found(1), seed=1)
    report = report_of(tmp_path, rows)

    assert [s.verdict.verdict for b in report.blocks for s in b.scans] == ["clean"]
    assert "1 further scans" in report.files()["tables.md"]


def test_changed_settings_never_vote(tmp_path: Path) -> None:
    changed = result("ban", 9.0, "strong", named=[1], is_confirmed=True, config_set=["steps"])
    report = report_of(tmp_path, scan_rows(facts("b"), [*nothing(), changed]))

    assert report.blocks[0].scans[0].verdict.verdict == "clean"
    assert "ban with other steps" in report.detectors


def test_rows_without_a_default_scanner_are_refused(tmp_path: Path) -> None:
    rows = scan_rows(facts("b"), [result("ban@paper_code", 1.0)])

    with pytest.raises(ConfigError, match="no scanner in its default form for model 'b'"):
        report_of(tmp_path, rows)


def test_rows_that_disagree_on_the_truth_are_refused(tmp_path: Path) -> None:
    rows = scan_rows(facts("b", acc=0.8), [result("ban", 1.0)])
    rows += scan_rows(facts("b", acc=0.7), [result("mbns", 1.0)])

    with pytest.raises(ConfigError, match="disagree on what the checkpoint"):
        report_of(tmp_path, rows)


def test_several_data_sets_are_ranked_together_and_apart(tmp_path: Path) -> None:
    rows = []
    for dataset in ("cifar10", "gtsrb"):
        rows += scan_rows(facts(f"clean_{dataset}", dataset=dataset), nothing())
        rows += scan_rows(
            facts(f"bad_{dataset}", dataset=dataset, attack="sig", target=0), found(0)
        )
    ranking = lines(report_of(tmp_path, rows), "ranking")

    assert ("B", "ban") in ranking
    assert ranking["B, gtsrb", "ban"]["clean (without score)"] == "1 (0)"


def test_repairs_stand_beside_the_papers_figures(tmp_path: Path) -> None:
    rows = [
        repair_row(facts(id_, attack="blend", target=0), "finetune_noise", acc=acc, asr=asr)
        for id_, acc, asr in (
            ("b_1", (0.80, 0.79), (1.0, 0.02)),
            ("b_2", (0.82, 0.80), (0.98, 0.04)),
        )
    ]
    report = report_of(tmp_path, rows)
    (row,) = table(report, "repair_blend").rows

    assert row[:5] == ("cifar10", "cifar_resnet18 w16", "finetune_noise", "500", "2")
    assert row[5:9] == ("81.0 % → 79.5 %", "+2.0", "99.0 % → 3.0 %", "4.0 %")
    assert row[9] == "– → –"
    assert row[-1] == "92.72/4.10 (BAN24 T3); 92.61/1.04 (BAN24 T11)"
    assert "94.60/100 (BAN24 T3)" in table(report, "repair_blend").notes[0]


def test_the_goals_of_repairs_are_counted_by_model(tmp_path: Path) -> None:
    def about(id_: str) -> dict[str, Any]:
        return facts(id_, attack="badnets", target=0)

    rows = [
        # met by one of two methods; the loss is exactly a point and a half
        repair_row(about("b_1"), "nad", acc=(0.94, 0.925), asr=(0.99, 0.05)),
        repair_row(about("b_1"), "finetune", acc=(0.94, 0.94), asr=(0.99, 0.90)),
        # not met: too dear
        repair_row(about("b_2"), "nad", acc=(0.94, 0.92), asr=(0.99, 0.00)),
        repair_row(about("b_2"), "auto", acc=(0.94, 0.92), asr=(0.99, 0.00)),
        repair_row(facts("clean"), "nad", acc=(0.94, 0.935)),
        repair_row(facts("clean"), "finetune", acc=(0.94, 0.92)),
        repair_row(
            facts("failed", attack="sig", target=0, gate=False), "nad", acc=(0.9, 0.9), asr=(0.4, 0)
        ),
    ]
    goals = table(report_of(tmp_path, rows), "repair_goals").rows

    assert [(row[1].split(",")[0], row[2]) for row in goals] == [
        ("1/2", "b_2"),
        ("1/1", "–"),
        ("0/1", "clean"),
    ]
    assert "repair_sig.csv" not in report_of(tmp_path, rows).files()
    assert [row[0] for row in table(report_of(tmp_path, rows[-1:]), "repair_models").rows] == [
        "failed †"
    ]


def test_what_became_of_every_repair_is_counted_with_its_reasons(tmp_path: Path) -> None:
    def row(id_: str, method: str, **ended: object) -> dict[str, Any]:
        about = facts(id_, attack="badnets", target=0)
        return repair_row(about, method, acc=(0.9, 0.9), asr=(0.9, 0.9), **ended)

    need = "needs 50 clean images, got 20"
    rows = [
        row("b_1", "nad"),
        row("b_2", "nad", is_within_budget=False),
        row("b_3", "nad", outcome="unmet_need", failure=need, is_within_budget=None),
        row("b_4", "nad", outcome="unmet_need", failure=need, is_within_budget=None),
        row("b_5", "nad", outcome="failed", failure="RuntimeError: out of luck"),
        row("b_1", "auto", outcome="repaired"),
        row("b_2", "auto", outcome="not_needed", reason="the scan is clean"),
        row("b_3", "auto", outcome="not_written", reason="no repair was good enough"),
        row("b_4", "auto", outcome="still_backdoored", reason="the re-scan found it"),
        row("b_5", "auto", outcome="inconclusive", reason="no verdict"),
        row("b_6", "auto", outcome="error", reason="something else"),
        repair_row(facts("weak", attack="sig", target=0, gate=False), "nad", acc=(0.9, 0.9)),
    ]
    report = report_of(tmp_path, rows)
    auto, nad = records(report, "repair_outcomes")

    counts = ("tried", "repaired", "over_budget", "refused", "failed", "not_needed", "not_clean")
    assert [nad[name] for name in counts] == ["5", "1", "1", "2", "1", "0", "0"]
    assert [auto[name] for name in counts] == ["6", "1", "0", "1", "1", "1", "2"]
    assert nad["reasons"] == f"2 × {need}; 1 × RuntimeError: out of luck"
    assert auto["reasons"] == "1 × no repair was good enough; 1 × something else"
    shown = {line[2]: line[-2] for line in table(report, "repair_badnets").rows}
    assert shown == {
        "auto": "1 refused, 1 failed, 1 not needed, 2 not clean",
        "nad": "1 over budget, 2 refused, 1 failed",
    }
    assert records(report, "repair_badnets")[1]["over_budget"] == "1"


def test_every_model_has_a_line_with_what_each_repair_did_and_what_is_shown_of_it(
    tmp_path: Path,
) -> None:
    bad = facts("b_1", attack="badnets", target=0)
    weak = facts("weak", attack="sig", target=0, gate=False)
    attempts = [
        {"id": "prune_mbns", "effects": [stand_in(0.6)]},
        {"id": "unlearn_triggers", "effects": [stand_in(0.04)]},
    ]
    rows = [
        # what hardly worked in the suspect, and what is no stand-in, shows nothing
        repair_row(
            bad,
            "nad",
            acc=(0.94, 0.92),
            asr=(1.0, 0.3),
            effects=[stand_in(0.2), stand_in(0.9, before=0.55), stand_in(1.0, kind="push")],
        ),
        repair_row(
            bad,
            "auto",
            acc=(0.94, 0.93),
            asr=(1.0, 0.02),
            outcome="repaired",
            chosen="unlearn_triggers",
            attempts=attempts,
        ),
        repair_row(facts("clean"), "nad", acc=(0.94, 0.94), effects=[]),
        repair_row(weak, "nad", acc=(0.9, 0.89), asr=(0.5, 0.1), is_within_budget=False),
        # an older row, and one of which nothing was written
        repair_row(
            weak,
            "auto",
            acc=(0.9, 0.9),
            asr=(0.5, 0.5),
            outcome="not_written",
            chosen=None,
            attempts=[{"id": "prune_mbns"}, {"id": "unlearn_triggers", "effects": [stand_in(0.6)]}],
        ),
        repair_row(facts("unjudged", attack="wanet", target=0, gate=None), "nad", acc=(0.9, 0.9)),
    ]
    report = report_of(tmp_path, rows)

    assert table(report, "repair_models").header == ("model", "ACC / ASR", "auto, 500", "nad, 500")
    assert table(report, "repair_models").rows == (
        ("clean", "94.0 %", "–", "+0.0"),
        ("b_1", "94.0 % / 100.0 %", "-1.0 / 2.0 (4)", "-2.0 / 30.0 (20)"),
        ("weak †", "90.0 % / 50.0 %", "+0.0 / 50.0, refused", "-1.0 / 10.0, over budget"),
        ("unjudged †", "90.0 %", "–", "+0.0"),
    )
    assert [r["shown_after"] for r in records(report, "repair_models")] == [
        "",
        "0.04",
        "0.2",
        "",
        "",
        "",
    ]


def test_what_stand_ins_show_is_held_against_the_attacks_that_succeed(tmp_path: Path) -> None:
    def row(id_: str, asr: float, shown: float) -> dict[str, Any]:
        about = facts(id_, attack="badnets", target=0)
        return repair_row(about, "nad", acc=(0.9, 0.9), asr=(1.0, asr), effects=[stand_in(shown)])

    rows = [row("b_1", 0.30, 0.05), row("b_2", 0.02, 0.12), row("b_3", 0.04, 0.04)]
    rows.append(repair_row(facts("b_4", attack="badnets", target=0), "nad", acc=(0.9, 0.9)))
    report = report_of(tmp_path, rows)

    line = ("3", "11.7", "-25.0 (b_1)", "+10.0 (b_2)", "1/1", "1/2")
    assert table(report, "repair_shown").rows == (("nad", *line), ("all", *line))
    none = report_of(tmp_path, rows[-1:])
    assert table(none, "repair_shown").rows == ()


def test_the_head_says_what_was_counted(tmp_path: Path) -> None:
    head = report_of(tmp_path, small_population()).notes

    assert head[0].startswith(
        "9 models: 3 clean, 5 attacked that passed the gate, 1 attacked that did not"
    )
    assert "9 models not at all" in head[2]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = small_population()

    assert report_of(tmp_path, rows).files() == report_of(tmp_path, rows[::-1]).files()


def test_markdown_cells_cannot_break_their_table(tmp_path: Path) -> None:
    rows = scan_rows(facts("b|x\ny", attack="sig", target=0), nothing())
    text = report_of(tmp_path, rows).files()["models.md"]

    (line,) = [line for line in text.splitlines() if "b\\|x y" in line]
    header = next(line for line in text.splitlines() if line.startswith("| population"))
    assert len(re.split(r"(?<!\\)\|", line)) == len(re.split(r"(?<!\\)\|", header))
