from __future__ import annotations

import dataclasses

import pytest

from modelaudit.report.terminal import render
from modelaudit.report.words import CLEAN_MEANING
from modelaudit.results import CombinedScore, Match, StaticFinding, SuspectRecord, Verdict
from tests.helpers.reports import all_reports, backdoored, clean, failure, scanner_result


def one_line(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("name", list(all_reports()))
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_page(name: str, encoding: str) -> None:
    for width in (20, 80, 100, 500):
        text = render(all_reports()[name], width=width, encoding=encoding)
        assert max(len(line) for line in text.splitlines()) <= max(80, min(width, 120))


@pytest.mark.parametrize("name", list(all_reports()))
def test_the_verdict_is_in_the_first_line(name: str) -> None:
    report = all_reports()[name]
    assert report.verdict.verdict.upper() in render(report).splitlines()[0]


def test_the_checksum_is_printed_whole_on_one_line() -> None:
    assert any("0123456789abcdef" * 4 in line for line in render(backdoored()).splitlines())


def test_backdoored_report_holds_everything_it_rests_on() -> None:
    text = one_line(render(backdoored()))
    for part in (
        "a backdoor leads from every class to label 3 (cat)",
        "ban is strong and mbns",
        "false-positive rate not measured",
        "confirmed on held-out images",
        "own p = 0.0021",
        "dde skipped needs --mixture",
        "third_party failed RuntimeError: no such layer",
        "preprocessing cifar10_0.2023 +2.1 points of accuracy; next best imagenet",
        "architecture cifar_resnet18 given",
        "needs class net.ResNet, which was not imported (data.pkl, byte 28)",
        "accuracy 91.5% (95 % interval 87.0% to 95.0%)",
        "12,345 image passes forward, 56,789 forward and backward, 14.2 s on cpu",
        "seconds: load 0.1, fit 1.5, ban 9.8",
        "seed 3, alpha 0.05, budget 120 s",
        "bfloat16 weights were widened to float32",
        "next: modelaudit repair models/suspect.pt --data clean",
    ):
        assert part in text


def test_clean_report_says_what_it_is_worth() -> None:
    assert CLEAN_MEANING in one_line(render(clean()))


def test_a_bare_failure_has_no_empty_parts() -> None:
    text = render(failure(Verdict.REFUSED, 3))
    for heading in ("Scanners", "Evidence", "Skipped", "How the", "In the file", "Notes", "next:"):
        assert heading not in text
    assert "model.pt: no such file" in text


def test_a_verdict_without_a_reason_is_its_headline() -> None:
    assert "stopped before" in render(failure(Verdict.INTERRUPTED, 130, ""))


def test_plain_text_has_no_escape_sequences_and_colour_has() -> None:
    assert "\x1b" not in render(backdoored())
    colored = render(backdoored(), has_color=True)
    assert "\x1b[" in colored


def test_ascii_pages_are_ascii() -> None:
    report = backdoored(notes=("naïve",))
    assert render(report, encoding="ascii").isascii()


def test_no_string_from_outside_reaches_the_terminal_raw() -> None:
    hostile = "\x1b]0;owned\x07[red]x[/red]\u202e\n:smile:"
    report = backdoored()
    report = dataclasses.replace(
        report,
        suspect=SuspectRecord(path=hostile, sha256="0" * 64, format=hostile, hints=(hostile,)),
        clean_set=dataclasses.replace(report.clean_set, path=hostile, class_names=(hostile,) * 10),
        static_findings=(StaticFinding(code=hostile, message=hostile, location=hostile),),
        notes=(hostile,),
        device=hostile,
        stage_seconds={hostile: 1.0},
        verdict=dataclasses.replace(report.verdict, reason=hostile, next_step=hostile),
    )
    text = render(report)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[red]x[/red]" in text
    assert ":smile:" in text
    assert "\n:smile:" not in text


def test_uncalibrated_scanners_and_measured_rates_are_named() -> None:
    result = dataclasses.replace(
        scanner_result(),
        is_calibrated=False,
        false_positive_rate=0.02,
        reference_population="cifar-a",
        p_value=None,
    )
    unnamed = dataclasses.replace(result, id="other", reference_population=None)
    text = one_line(render(clean(scanners=(result, unnamed))))
    assert "not calibrated: does not move the verdict" in text
    assert "false-positive rate 0.02 on cifar-a" in text
    assert "false-positive rate 0.02 on an unnamed population" in text


def test_a_scanner_with_nothing_to_explain_has_no_line() -> None:
    result = dataclasses.replace(scanner_result(), score_name="", p_value=None, score=None)
    assert "ban:" not in render(clean(scanners=(result,)))


def test_large_counts_are_shortened() -> None:
    cost = dataclasses.replace(scanner_result().cost, forward=9_999, forward_backward=2_500_000)
    result = dataclasses.replace(scanner_result(), cost=cost)
    assert "9,999 / 2.5M" in render(clean(scanners=(result,)))


def test_a_choice_may_have_no_rival_and_a_finding_no_place() -> None:
    report = clean()
    choice = dataclasses.replace(report.clean_set.choices[0], margin="")
    alone = dataclasses.replace(choice, name="labels", runner_up="", value="folders")
    text = render(
        dataclasses.replace(
            report,
            clean_set=dataclasses.replace(report.clean_set, choices=(choice, alone)),
            static_findings=(StaticFinding(code="MA-S1", message="an odd class"),),
            budget_seconds=None,
            stage_seconds={},
        )
    )
    assert "cifar10_0.2023  next best imagenet" in text
    assert "an odd class\n" in text
    assert "budget" not in text
    assert "seconds:" not in text


def test_the_reference_population_and_the_corrected_p_values_are_shown() -> None:
    combined = CombinedScore(
        match=Match.MATCHED,
        population="cifar-a",
        clean_models=30,
        scanners=("ban",),
        score=9.87,
        suspicious=3.6,
        strong=5.1,
        predictive_p_value=1e-5,
    )
    text = one_line(render(backdoored(combined=combined, adjusted_p_values={"ban": 0.0063})))
    assert "own p = 0.0021 (Holm 0.0063)" in text
    assert "reference matched: cifar-a, 30 clean models; combined score 9.87 of ban" in text
    assert "p = 1e-05 Student-t" in text
    assert "reference" not in one_line(render(backdoored())).replace("reference population", "")
