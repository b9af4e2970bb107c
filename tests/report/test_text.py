from __future__ import annotations

import pytest

from modelaudit.report import short_verdict
from modelaudit.report.words import CLEAN_MEANING
from modelaudit.results import Verdict
from tests.helpers.reports import all_reports, backdoored, clean, failure


def test_backdoored_names_label_evidence_and_next_step() -> None:
    first, second, third = short_verdict(backdoored()).splitlines()
    assert first == "backdoored: a backdoor leads from every class to label 3 (cat)"
    assert "ban strong (score 0.93, threshold 0.4)" in second
    assert "mbns suspicious" in second
    assert "mm_bd" not in second
    assert "false-positive rate not measured" in second
    assert third == "next: modelaudit repair models/suspect.pt --data clean"


def test_clean_says_what_it_is_worth() -> None:
    assert CLEAN_MEANING in short_verdict(clean())


def test_evidence_without_a_score_is_the_finding_alone() -> None:
    import dataclasses

    report = backdoored()
    bare = dataclasses.replace(report.scanners[0], score=None)
    assert "evidence: ban strong; " in short_verdict(dataclasses.replace(report, scanners=(bare,)))


@pytest.mark.parametrize("name", list(all_reports()))
def test_every_verdict_is_one_to_three_lines_that_begin_with_its_word(name: str) -> None:
    report = all_reports()[name]
    lines = short_verdict(report).splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith(f"{report.verdict.verdict}: ")


def test_a_failure_without_reason_is_one_line() -> None:
    assert short_verdict(failure(Verdict.INTERRUPTED, 130, "")).count("\n") == 1


def test_a_hostile_reason_stays_on_its_line() -> None:
    text = short_verdict(failure(Verdict.REFUSED, 3, "calls x\nclean: \x1b[2Jall is well"))
    assert len(text.splitlines()) == 2
    assert "\x1b" not in text
