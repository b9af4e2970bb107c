from __future__ import annotations

import dataclasses

import pytest

from modelaudit.report import words
from modelaudit.results import (
    CleanSetRecord,
    CombinedScore,
    Match,
    Pattern,
    ScanReport,
    Verdict,
)
from tests.helpers.reports import backdoored, clean, failure


def with_verdict(report: ScanReport, **changes: object) -> ScanReport:
    record = dataclasses.replace(report.verdict, **changes)  # type: ignore[arg-type] # fields by name
    return dataclasses.replace(report, verdict=record)


def test_control_and_bidirectional_characters_are_escaped() -> None:
    assert words.safe("a\x1b[2J\u202eb\nc") == "a\\x1b[2J\\u202eb\\nc"


def test_an_already_escaped_name_is_not_escaped_again() -> None:
    once = words.safe("a\x1bb")
    assert words.safe(once) == once


def test_long_names_are_cut_at_the_limit() -> None:
    assert words.safe("x" * 300) == "x" * 199 + "…"
    assert words.safe("\x1b" * 300, 50) == "\\x1b" * 12 + "…"
    assert words.safe("x" * 200) == "x" * 200


def test_sentences_keep_their_advice() -> None:
    text = "x" * 1000 + "; pass --arch"
    assert words.sentence(text) == text


@pytest.mark.parametrize(
    ("labels", "pattern", "expected"),
    [
        ((3,), Pattern.ALL_TO_ONE, "a backdoor leads from every class to label 3 (cat)"),
        ((3,), None, "a backdoor leads to label 3 (cat)"),
        ((3, 5), Pattern.SEVERAL, "a backdoor leads to labels 3 (cat), 5 (dog)"),
        ((), None, "a backdoor; its target label could not be named"),
        ((), Pattern.ALL_TO_ALL, "a backdoor maps the labels to one another (all-to-all)"),
        ((77,), None, "a backdoor leads to label 77"),
    ],
)
def test_backdoor_headline_names_the_labels(
    labels: tuple[int, ...], pattern: Pattern | None, expected: str
) -> None:
    report = with_verdict(backdoored(), target_labels=labels, pattern=pattern)
    assert words.headline(report) == expected


def test_clean_headline_names_only_scanners_that_could_see() -> None:
    assert words.headline(clean()) == "no backdoor found by ban"


def test_no_headline_says_safe() -> None:
    for verdict in Verdict:
        headline = words.headline(with_verdict(backdoored(), verdict=verdict))
        assert "safe" not in headline
        assert headline


def test_numeric_class_names_are_not_repeated() -> None:
    report = clean(clean_set=CleanSetRecord(path="clean", class_names=("0", "", "x")))
    assert [words.label_text(report, k) for k in (0, 1, 2, -1)] == ["0", "1", "2 (x)", "-1"]


def test_false_positive_rate_names_its_population_or_says_unmeasured() -> None:
    assert words.false_positive_text(clean()) == (
        "false-positive rate not measured (no reference population fits)"
    )
    measured = clean(false_positive_rate=0.021, calibration="cifar-a")
    assert words.false_positive_text(measured) == "false-positive rate 0.021 on cifar-a"
    assert words.false_positive_text(clean(false_positive_rate=0.5)) == "false-positive rate 0.5"


COMBINED = CombinedScore(
    match=Match.MATCHED,
    population="cifar-a",
    clean_models=30,
    scanners=("ban", "mbns"),
    missing=("mm_bd",),
    score=1.234,
    suspicious=3.6,
    strong=5.1,
    p_value=0.0323,
    predictive_p_value=0.00412,
)


def test_a_measured_rate_has_its_interval_and_models() -> None:
    combined = dataclasses.replace(
        COMBINED, false_positive_interval=(0.0, 0.1157), false_positive_models=30
    )
    report = clean(combined=combined, calibration="cifar-a", false_positive_rate=0.0)
    assert words.false_positive_text(report) == (
        "false-positive rate 0 (95 % interval 0 to 0.116, 30 clean models) on cifar-a"
    )


def test_an_unmeasured_rate_says_why() -> None:
    matched = words.false_positive_text(clean(combined=COMBINED))
    assert matched == "false-positive rate not measured (cifar-a has none for this scan)"
    borrowed = dataclasses.replace(COMBINED, match=Match.BORROWED)
    assert "cifar-a is of another architecture" in words.false_positive_text(
        clean(combined=borrowed)
    )


def test_the_combined_score_is_told_with_thresholds_p_values_and_what_is_missing() -> None:
    assert words.combined_text(clean(combined=COMBINED)) == (
        "matched: cifar-a, 30 clean models; combined score 1.23 of ban, mbns; suspicious from "
        "3.6, strong 5.1; p = 0.032 empirical, 0.0041 Student-t; without mm_bd"
    )
    few = dataclasses.replace(
        COMBINED, match=Match.BORROWED, p_value=None, missing=(), reason="cifar-a holds x, no y"
    )
    assert words.combined_text(clean(combined=few)) == (
        "borrowed: cifar-a, 30 clean models; combined score 1.23 of ban, mbns; suspicious from "
        "3.6, strong 5.1; p = 0.0041 Student-t; cifar-a holds x, no y"
    )


def test_without_a_population_the_reason_is_told_and_without_a_scan_nothing() -> None:
    none = CombinedScore(match=Match.NONE, reason="there is no reference population at all")
    assert words.combined_text(clean(combined=none)) == none.reason
    assert words.combined_text(clean()) is None


def test_clean_set_text_states_accuracy_with_its_interval() -> None:
    text = words.clean_set_text(clean())
    assert text == (
        "500 images of 620 in 10 classes, 2 other files passed over, "
        "accuracy 91.5% (95 % interval 87.0% to 95.0%)"
    )


def test_clean_set_text_without_labels_never_states_an_accuracy() -> None:
    unlabelled = clean(clean_set=CleanSetRecord(path="clean", images=100, available=100))
    assert words.clean_set_text(unlabelled) == "100 images, accuracy unknown (no labels)"


def test_clean_set_text_before_the_accuracy_is_known() -> None:
    early = clean(clean_set=CleanSetRecord(path="clean", images=100, available=100, classes=4))
    assert words.clean_set_text(early) == "100 images in 4 classes"


def test_clean_set_text_with_accuracy_but_no_interval() -> None:
    record = CleanSetRecord(path="clean", images=9, available=9, classes=3, accuracy=1.0)
    assert words.clean_set_text(clean(clean_set=record)) == "9 images in 3 classes, accuracy 100.0%"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(7, "7 bytes"), (2_803_112, "2.8 MB"), (1500, "1.5 kB"), (4_000_000_000, "4.0 GB")],
)
def test_sizes_have_units(size: int, expected: str) -> None:
    assert words.bytes_text(size) == expected


def test_failure_headline_of_a_refusal_says_that_nothing_ran() -> None:
    assert "nothing in it was executed" in words.headline(failure(Verdict.REFUSED, 3))
