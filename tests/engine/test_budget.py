"""The accuracy budget: the luck of several tries, and what an interval can show."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.engine import RepairRequest, ScanRequest
from modelaudit.engine.attempt import Attempt
from modelaudit.engine.budget import check_budget, cost_sentence, judge, refusal_sentence
from modelaudit.repair_results import (
    BudgetState,
    Effect,
    Measurements,
    RepairAttempt,
    RepairOutcome,
    RepairReport,
)
from modelaudit.results import Verdict, VerdictRecord
from tests.helpers.engine import install, scanner_class
from tests.helpers.fake_repairs import (
    accusing,
    cut,
    cut_another,
    leave,
    nudge,
    repair_class,
    run_repair,
    write_suspect,
)
from tests.helpers.repair_reports import proof_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.repair_results import EffectKind

#: 2 points lost: exactly the budget. The standard error is √(24 - 0.08) / 200 = 0.0245.
AT_THE_BUDGET = proof_of(lost=14, won=10)
#: 1 point lost; the standard error is √(10 - 0.02) / 200 = 0.0158.
BELOW = proof_of(lost=6, won=4)
#: 10 points lost.
DEAR = proof_of(lost=30, won=10)


def tried(proof: Measurements | None, id_: str = "cut") -> Attempt:
    return Attempt(record=RepairAttempt(id=id_, proof=proof, failure="" if proof else "no need"))


def judged(*proofs: Measurements | None, allowed: float = 0.02) -> list[RepairAttempt]:
    """Return the records of judged attempts, called a, b and so on."""
    attempts = [tried(proof, name) for proof, name in zip(proofs, "abcdef", strict=False)]
    return [attempt.record for attempt in judge(attempts, max_accuracy_drop=allowed)]


def test_one_model_is_judged_by_its_plain_estimate() -> None:
    check = check_budget(AT_THE_BUDGET, models=1, max_accuracy_drop=0.02)
    assert (check.models, check.luck) == (1, 0.0)
    assert check.judged_drop == AT_THE_BUDGET.accuracy_drop
    assert check.is_within
    over = check_budget(proof_of(lost=15, won=10), models=1, max_accuracy_drop=0.02)
    assert not over.is_within


def test_the_luckiest_of_three_has_to_be_better_than_it_looks() -> None:
    check = check_budget(AT_THE_BUDGET, models=3, max_accuracy_drop=0.02)
    assert check.luck == pytest.approx(0.8463, abs=1e-4)
    assert check.judged_drop == pytest.approx(0.02 + 0.8463 * math.sqrt(23.92) / 200, abs=1e-5)
    assert not check.is_within
    # 0.5 points, with √(9 - 0.005) / 200 = 0.0150: 0.005 + 0.0127 is within.
    assert check_budget(proof_of(lost=5, won=4), models=3, max_accuracy_drop=0.02).is_within


def test_every_model_is_judged_anew_with_all_that_leave_as_much() -> None:
    first = judged(BELOW)
    assert [record.budget is not None and record.budget.is_within for record in first] == [True]
    records = judged(BELOW, None, DEAR, DEAR)
    assert [record.budget and record.budget.models for record in records] == [3, None, 3, 3]
    assert records[0].budget is not None
    assert records[0].budget.judged_drop == pytest.approx(0.01 + 0.8463 * 0.0158, abs=1e-5)
    assert not records[0].budget.is_within


def test_what_is_not_chosen_by_its_loss_needs_no_luck() -> None:
    clean = replace(
        tried(AT_THE_BUDGET, "clean").record,
        verdict=VerdictRecord(verdict=Verdict.CLEAN, reason_code="", reason=""),
    )
    doubtful = replace(
        tried(BELOW, "doubtful").record,
        verdict=VerdictRecord(verdict=Verdict.INCONCLUSIVE, reason_code="", reason=""),
    )
    backdoored = replace(
        tried(BELOW, "backdoored").record,
        verdict=VerdictRecord(verdict=Verdict.BACKDOORED, reason_code="", reason=""),
    )
    attempts = judge(
        [Attempt(record=r) for r in (doubtful, clean, doubtful, clean, backdoored)],
        max_accuracy_drop=0.02,
    )
    # Equals that are not clean are chosen from by their losses; a clean one that comes behind one
    # that could have been written may be taken for what it costs.
    assert [a.record.budget and a.record.budget.models for a in attempts] == [2, 1, 2, 2, 1]
    assert [a.is_within_budget for a in attempts] == [True, True, True, False, True]
    # What could not be written was no choice.
    dear = replace(clean, proof=DEAR)
    attempts = judge([Attempt(record=r) for r in (dear, clean)], max_accuracy_drop=0.02)
    assert [a.record.budget and a.record.budget.models for a in attempts] == [1, 1]


def choose(
    attempts: Sequence[Attempt], *, is_forced: bool = False, allowed: float = 0.02
) -> Attempt | None:
    request = RepairRequest(
        scan=ScanRequest(checkpoint=Path("m"), data=Path("d")),
        max_accuracy_drop=allowed,
        is_forced=is_forced,
    )
    # The package's `repair` is the function: the module has to be asked for by name.
    return sys.modules["modelaudit.engine.repair"]._choose(attempts, request)


def leaving(share: float, *, lost: int = 6, kind: EffectKind = "stand_in") -> Attempt:
    """Return an attempt that is not clean, with one artefact; `lost` of 200 images are lost."""
    effect = Effect(
        scanner="mbns",
        artefact="an artefact",
        target=1,
        images=500,
        share_before=1.0,
        share_after=share,
        interval_before=(0.99, 1.0),
        interval_after=(share, share),
        control_share=0.02,
        kind=kind,
    )
    record = replace(tried(proof_of(lost=lost, won=4)).record, effects=(effect,))
    return Attempt(record=record, tensors={})


def test_what_an_artefact_leads_is_compared_rounded_to_a_tenth() -> None:
    assert leaving(0.3).standing == (True, False, True, 0.3)
    assert leaving(0.71).standing == leaving(0.74).standing < leaving(0.78).standing
    assert leaving(0.05).standing == leaving(0.02).standing == (True, False, False, 0.0)
    attempts = judge([leaving(0.3), leaving(0.7), leaving(0.71)], max_accuracy_drop=0.02)
    assert [a.record.budget and a.record.budget.models for a in attempts] == [1, 2, 2]


def test_few_images_that_show_nothing_stand_behind_what_leads_nowhere() -> None:
    (effect,) = leaving(0.05).record.effects
    open_end = replace(effect, interval_after=(0.0, 0.4))
    shown = Attempt(record=replace(leaving(0.05).record, effects=(open_end,)))
    assert shown.standing == (True, False, True, 0.0)


def test_the_share_is_that_of_stand_ins_where_there_are_any() -> None:
    push = leaving(0.9, kind="push").record.effects
    stand_in = leaving(0.3).record.effects
    both = Attempt(record=replace(tried(BELOW).record, effects=(*push, *stand_in)))
    assert both.standing == (True, False, True, 0.3)
    idle = tuple(replace(effect, is_deciding=False) for effect in push)
    alone = Attempt(record=replace(tried(BELOW).record, effects=idle))
    assert alone.standing == (True, False, False, 0.0)


def test_within_the_budget_what_leaves_less_is_written_though_it_costs_more() -> None:
    cheap, thorough = leaving(0.7, lost=4), leaving(0.3, lost=7)
    attempts = judge([cheap, thorough], max_accuracy_drop=0.02)
    assert all(a.is_within_budget for a in attempts)
    chosen = choose(attempts)
    assert chosen is attempts[1]
    # Of equals the cheaper one.
    attempts = judge([thorough, leaving(0.31, lost=4)], max_accuracy_drop=0.05)
    assert choose(attempts) is attempts[1]


def clean_leaving(share: float, *, lost: int) -> Attempt:
    made = leaving(share, lost=lost)
    verdict = VerdictRecord(verdict=Verdict.CLEAN, reason_code="", reason="")
    return replace(made, record=replace(made.record, verdict=verdict))


def test_of_clean_ones_the_cheap_one_that_leaves_a_twentieth_is_written_or_else_the_first() -> None:
    # `lost` less 4 of 200 images: 1.5, 0, 1.5 and 0 points where 2 are allowed.
    first, second = clean_leaving(0.11, lost=7), clean_leaving(0.08, lost=4)
    settled, cheap = clean_leaving(0.07, lost=7), clean_leaving(0.02, lost=4)
    attempts = judge([first, second], max_accuracy_drop=0.02)
    assert choose(attempts) is attempts[0]
    attempts = judge([first, settled, leaving(0.0)], max_accuracy_drop=0.04)
    assert choose(attempts, allowed=0.02) is attempts[1]
    # At most half of the budget, and at most a twentieth.
    attempts = judge([first, settled, second, cheap], max_accuracy_drop=0.04)
    assert [a.record.budget and a.record.budget.models for a in attempts] == [1, 2, 3, 4]
    assert choose(attempts, allowed=0.02) is attempts[3]
    # A budget of which it is half ends with the first of these.
    assert choose(attempts, allowed=0.03) is attempts[1]
    # One that leaves more comes before what no re-scan calls clean, and before what is too dear.
    attempts = judge(
        [first, clean_leaving(0.02, lost=40), leaving(0.0)],
        max_accuracy_drop=0.02,
    )
    assert choose(attempts) is attempts[0]


def test_of_clean_ones_over_the_budget_the_cheapest_is_forced() -> None:
    dear, cheaper = clean_leaving(0.02, lost=60), clean_leaving(0.11, lost=40)
    attempts = judge([dear, cheaper], max_accuracy_drop=0.02)
    assert choose(attempts, is_forced=True) is attempts[1]


def test_over_the_budget_the_cheapest_is_forced_whatever_it_leaves() -> None:
    wreck, dear = leaving(0.2, lost=60), leaving(0.3, lost=12)
    attempts = judge([wreck, dear], max_accuracy_drop=0.02)
    assert choose(attempts) is None
    assert choose(attempts, is_forced=True) is attempts[1]


def test_an_attempt_without_a_proof_is_never_within() -> None:
    (attempt,) = judge([tried(None)], max_accuracy_drop=1.0)
    assert attempt.record.budget is None
    assert not attempt.is_within_budget


@pytest.mark.parametrize(
    ("proof", "state"),
    [
        (proof_of(lost=0, won=0), BudgetState.WITHIN),
        (proof_of(lost=0, won=30), BudgetState.WITHIN),
        (AT_THE_BUDGET, BudgetState.OPEN),
        (proof_of(lost=6, won=10), BudgetState.OPEN),
        (DEAR, BudgetState.OVER),
        (proof_of(lost=0, won=0, has_labels=False), BudgetState.WITHIN),
        (proof_of(lost=4, won=0, has_labels=False), BudgetState.OPEN),
        (proof_of(lost=40, won=0, has_labels=False), BudgetState.OVER),
    ],
)
def test_the_interval_shows_one_side_or_leaves_it_open(
    proof: Measurements, state: BudgetState
) -> None:
    check = check_budget(proof, models=1, max_accuracy_drop=0.02)
    assert check.interval is state
    assert (check.images_to_settle is None) == (state is not BudgetState.OPEN)


def test_images_to_settle_grow_with_the_width() -> None:
    # The upper end lies 0.0494 above the estimate, half the budget is 0.01: 200 · 4.94² = 4875.
    assert AT_THE_BUDGET.interval_drop[1] == pytest.approx(0.0694, abs=1e-4)
    check = check_budget(AT_THE_BUDGET, models=1, max_accuracy_drop=0.02)
    assert check.images_to_settle == 4900
    quiet = check_budget(proof_of(lost=6, won=2), models=1, max_accuracy_drop=0.02)
    assert quiet.images_to_settle is not None
    assert 200 < quiet.images_to_settle < 2000


def test_the_sentence_carries_interval_and_doubt() -> None:
    (record,) = judged(AT_THE_BUDGET)
    assert cost_sentence(record, max_accuracy_drop=0.02) == (
        "a costs 2.0 points of accuracy on 200 held-out images (95 %: -2.9 to 6.9), within the 2.0 "
        "allowed by this estimate; 200 images cannot show this: it would take about 4,900"
    )


def test_the_sentence_of_several_says_what_luck_adds() -> None:
    record = judged(AT_THE_BUDGET, DEAR, DEAR)[0]
    said = cost_sentence(record, max_accuracy_drop=0.02)
    assert "(95 %: -2.9 to 6.9; 4.1 with the luck of 3 tries), more than the 2.0 allowed" in said


def test_the_sentence_of_what_is_shown_has_no_doubt() -> None:
    (gain,) = judged(proof_of(lost=0, won=30))
    assert cost_sentence(gain, max_accuracy_drop=0.02).endswith(
        "within the 2.0 allowed by the whole interval"
    )
    assert cost_sentence(gain, max_accuracy_drop=0.02).startswith("a costs -15.0 points of")
    (dear,) = judged(DEAR)
    assert cost_sentence(dear, max_accuracy_drop=0.02).endswith(
        "more than the 2.0 allowed by the whole interval"
    )


def test_without_labels_agreement_is_lost() -> None:
    (record,) = judged(proof_of(lost=4, won=0, has_labels=False))
    assert cost_sentence(record, max_accuracy_drop=0.02).startswith(
        "a costs 2.0 points of agreement with the suspect on 200 held-out images (95 %: 0.5 to 5.0)"
    )


def test_a_budget_of_nothing_names_no_number() -> None:
    (record,) = judged(proof_of(lost=5, won=5), allowed=0.0)
    assert record.budget is not None
    assert record.budget.is_within
    assert record.budget.images_to_settle is None
    assert cost_sentence(record, max_accuracy_drop=0.0).endswith(
        "too close to the budget to say how many would"
    )


def test_a_refusal_shows_all_intervals_and_doubts_the_cheapest() -> None:
    text = refusal_sentence(judged(DEAR, AT_THE_BUDGET), max_accuracy_drop=0.02)
    assert text == (
        "a costs 10.0 points (95 %: 3.9 to 16.1; 11.7 with the luck of 2 tries); "
        "b costs 2.0 points (95 %: -2.9 to 6.9; 3.4 with the luck of 2 tries): more than the 2.0 "
        "points of accuracy that are allowed on 200 held-out images; 200 images cannot show this "
        "of b: it would take about 4,900"
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder that it knows."""
    return write_suspect(tmp_path_factory.mktemp("budget"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, paths: tuple[Path, Path]) -> Any:
    """Run a method, or `auto` with these repairs, whose proofs are given one after the other."""
    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("cut", cut),
        repair_class("part", cut_another),
        repair_class("leave", nudge),
        repair_class("picky", leave, min_images=10**6),
    )

    def act(methods: tuple[str, ...], *proofs: Measurements, **options: Any) -> RepairReport:
        remaining = iter(proofs)
        monkeypatch.setattr(
            sys.modules["modelaudit.engine.attempt"],
            "measure",
            lambda *_images, **_options: next(remaining),
        )
        monkeypatch.setattr(sys.modules["modelaudit.engine.repair"], "AUTO_TRAIN", methods)
        return run_repair(paths, **options).report

    return act


def test_a_repair_alone_passes_at_the_budget(run: Any) -> None:
    report = run((), AT_THE_BUDGET, method="cut")
    assert (report.outcome, report.exit_status) == (RepairOutcome.REPAIRED, 0)
    assert "cannot show this" in report.reason


def test_the_third_of_three_that_repair_nothing_does_not_pass_by_luck(run: Any) -> None:
    report = run(("leave", "leave", "leave"), DEAR, DEAR, AT_THE_BUDGET)
    assert (report.outcome, report.exit_status) == (RepairOutcome.NOT_WRITTEN, 5)
    assert report.reason_code == "MA-R505"
    assert [a.budget.models for a in report.attempts] == [3, 3, 3]
    assert "4.1 with the luck of 3 tries" in report.reason


def test_a_clean_one_is_judged_by_its_plain_estimate_whatever_came_before(run: Any) -> None:
    report = run(("leave", "cut", "cut"), DEAR, DEAR, AT_THE_BUDGET)
    assert report.outcome is RepairOutcome.REPAIRED
    assert [a.budget.models for a in report.attempts] == [1, 1, 1]
    assert [a.is_chosen for a in report.attempts] == [False, False, True]


def test_what_cannot_be_tried_is_no_try(run: Any) -> None:
    report = run(("picky", "picky", "cut"), AT_THE_BUDGET)
    assert report.outcome is RepairOutcome.REPAIRED
    assert [a.budget and a.budget.models for a in report.attempts] == [None, None, 1]


def test_a_third_that_is_good_enough_with_luck_passes(run: Any) -> None:
    report = run(("leave", "leave", "leave"), DEAR, DEAR, proof_of(lost=5, won=4))
    assert report.outcome is RepairOutcome.STILL_BACKDOORED
    assert report.attempts[2].budget.models == 3
    assert report.attempts[2].is_chosen


def test_at_the_end_the_first_is_judged_with_the_luck_of_its_equals(run: Any) -> None:
    report = run(("part", "leave", "leave"), BELOW, DEAR, DEAR)
    # While there were one and two, it was within the budget, and the others went on from it.
    assert [a.goes_on_from for a in report.attempts] == [(), ("part",), ("part",)]
    assert not report.attempts[0].budget.is_within
    assert report.outcome is RepairOutcome.NOT_WRITTEN


def test_force_writes_and_says_what_was_allowed(run: Any) -> None:
    report = run(("leave", "leave", "leave"), DEAR, DEAR, AT_THE_BUDGET, is_forced=True)
    assert report.outcome is RepairOutcome.STILL_BACKDOORED
    assert report.attempts[2].is_chosen
    assert "more than the 2.0 allowed by this estimate" in report.reason
    assert "(--force)" in report.reason


def test_a_smaller_budget_is_asked_too(run: Any) -> None:
    report = run((), BELOW, method="cut", max_accuracy_drop=0.005)
    assert report.outcome is RepairOutcome.NOT_WRITTEN
    assert report.attempts[0].budget.judged_drop == pytest.approx(0.01)
