from __future__ import annotations

import copy
import inspect
import re
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from modelaudit import verdict
from modelaudit.engine import ScanRequest, rescan
from modelaudit.engine.effects import NOISE_FAMILY, deciding, is_disproved
from modelaudit.engine.intake import Opened
from modelaudit.engine.rescan import (
    explained_traces,
    keeps_statistics,
    read_rescan,
    unwitnessed_pushes,
)
from modelaudit.repair_results import Effect, ScanSummary
from modelaudit.results import (
    CleanSetRecord,
    Finding,
    Pattern,
    ScannerResult,
    SuspectRecord,
    Verdict,
)
from modelaudit.verdict import decide
from tests.helpers import models


def mbns(finding: Finding = Finding.STRONG, score: float = 70.0, **fields: Any) -> ScannerResult:
    return ScannerResult(
        id="mbns",
        version="1",
        family="bn_statistics",
        finding=finding,
        sees_all_to_all=True,
        score=score,
        threshold=25.0,
        **fields,
    )


def other(finding: Finding, *targets: int) -> ScannerResult:
    return ScannerResult(
        id="mm_bd",
        version="1",
        family="margins",
        finding=finding,
        sees_all_to_all=False,
        target_labels=targets,
    )


def summary(*results: ScannerResult) -> ScanSummary:
    return ScanSummary(verdict=decide(results), scanners=results)


def effect(share: float, *, scanner: str = "mbns", is_of_rescan: bool = False) -> Effect:
    return Effect(
        scanner=scanner,
        artefact="20 channels pushed",
        target=None if is_of_rescan else 2,
        images=200,
        share_before=0.99,
        share_after=share,
        interval_before=(0.97, 1.0),
        interval_after=(max(0.0, share - 0.06), min(1.0, share + 0.06)),
        control_share=None if share <= 0.1 else 0.02,
        is_of_rescan=is_of_rescan,
    )


BEFORE = summary(
    mbns(score=200.0, target_labels=(2,), pattern=Pattern.ALL_TO_ONE, is_confirmed=True)
)
AFTER = summary(mbns(), other(Finding.NONE))
NOWHERE = (effect(0.02), effect(0.05, is_of_rescan=True))


@pytest.fixture
def opened() -> Opened:
    """As much of it as a verdict takes."""
    suspect = models.suspect_of(models.tiny_bn())
    return cast(
        "Opened",
        types.SimpleNamespace(
            suspect=suspect,
            suspect_record=SuspectRecord(path="m", architecture="tiny"),
            clean_record=CleanSetRecord(path="d", images=500),
            clean=types.SimpleNamespace(has_labels=True),
            obstacles=(),
            obstacles_to_clean=(),
        ),
    )


REQUEST = ScanRequest(checkpoint=cast("Any", "m"), data=cast("Any", "d"))


def explained(
    before: ScanSummary = BEFORE,
    after: ScanSummary = AFTER,
    effects: tuple[Effect, ...] = NOWHERE,
    *,
    are_statistics_kept: bool = True,
    are_weights_trained: bool = False,
    unwitnessed: tuple[str, ...] = (),
) -> tuple[str, ...]:
    return explained_traces(
        before,
        after,
        effects,
        are_statistics_kept=are_statistics_kept,
        are_weights_trained=are_weights_trained,
        unwitnessed=unwitnessed,
    )


def test_what_was_trained_against_bears_no_witness(opened: Opened) -> None:
    assert explained(unwitnessed=("dde",)) == ("mbns",)
    assert explained(unwitnessed=("mbns",)) == ()
    quiet = summary(mbns(Finding.NONE))
    for after, answered in ((AFTER, ()), (quiet, ()), (AFTER, ("mbns",))):
        verdict = read_rescan(after, NOWHERE, answered, opened, REQUEST, unwitnessed=("mbns",))
        assert verdict.verdict is Verdict.INCONCLUSIVE
        assert "has trained against the pushes of mbns" in verdict.reason
        assert "no stand-in for the trigger bears witness" in verdict.reason
    verdict = read_rescan(quiet, NOWHERE, (), opened, REQUEST, unwitnessed=("mbns",))
    assert verdict.reason_code == "MA-V512"
    assert read_rescan(quiet, NOWHERE, (), opened, REQUEST).verdict is Verdict.CLEAN


def test_what_is_left_and_what_shows_nothing_are_both_said(opened: Opened) -> None:
    left = (effect(0.3), effect(0.05, is_of_rescan=True))
    quiet = summary(mbns(Finding.NONE))
    verdict = read_rescan(quiet, left, (), opened, REQUEST, unwitnessed=("mbns",))
    assert (verdict.verdict, verdict.reason_code) == (Verdict.INCONCLUSIVE, "MA-V510")
    assert "still leads 30%" in verdict.reason
    assert "has trained against the pushes of mbns" in verdict.reason


def test_only_a_stand_in_that_works_at_the_pushes_place_bears_witness_for_them() -> None:
    # What has accused nobody was not silenced.
    asked = ("mbns", "dde")
    assert unwitnessed_pushes((), BEFORE, NOWHERE) == ()
    assert unwitnessed_pushes(asked, BEFORE, NOWHERE) == ("mbns",)
    assert unwitnessed_pushes(asked, summary(mbns(Finding.NONE)), NOWHERE) == ()
    assert unwitnessed_pushes(asked, summary(mbns()), (stand_in(0.02),)) == ("mbns",)
    assert unwitnessed_pushes(asked, BEFORE, (stand_in(0.02), *NOWHERE)) == ()
    assert unwitnessed_pushes(asked, BEFORE, (stand_in(0.02, before=0.4),)) == ("mbns",)
    elsewhere = replace(stand_in(0.02), target=1)
    assert unwitnessed_pushes(asked, BEFORE, (elsewhere,)) == ("mbns",)
    shift = summary(mbns(pattern=Pattern.ALL_TO_ALL))
    assert unwitnessed_pushes(("mbns",), shift, (stand_in(0.02),)) == ("mbns",)
    assert unwitnessed_pushes(("mbns",), shift, (replace(elsewhere, target=None),)) == ()


def test_traces_that_lead_nowhere_do_not_keep_a_rescan_from_being_clean(opened: Opened) -> None:
    assert AFTER.verdict.verdict is Verdict.INCONCLUSIVE
    assert explained() == ("mbns",)
    verdict = read_rescan(AFTER, NOWHERE, explained(), opened, REQUEST)
    assert verdict.verdict is Verdict.CLEAN
    assert verdict.reason_code == "MA-V002"
    assert "traces of before in running statistics, and these lead nowhere" in verdict.reason


def test_traces_that_are_explained_back_nobody(opened: Opened) -> None:
    at_two = {"class_p_values": (0.5, 0.5, 0.001, 0.5, 0.5)}
    accused = summary(other(Finding.STRONG, 2), mbns(**at_two))
    assert accused.verdict.reason_code == "MA-V105"
    assert explained(after=accused) == ("mbns",)
    verdict = read_rescan(accused, NOWHERE, ("mbns",), opened, REQUEST)
    assert (verdict.verdict, verdict.reason_code) == (Verdict.INCONCLUSIVE, "MA-V502")


def accused_nobody() -> ScanSummary:
    return summary(mbns(Finding.NONE, 3.0))


@pytest.mark.parametrize(
    "changed",
    [
        {"are_statistics_kept": False},
        {"before": accused_nobody()},
        {"before": summary(mbns(score=60.0, target_labels=(2,)))},
        {"before": ScanSummary(verdict=BEFORE.verdict)},
        {"after": summary(mbns(target_labels=(2,)))},
        {"after": summary(mbns(pattern=Pattern.ALL_TO_ALL))},
        {"after": summary(mbns(is_confirmed=True))},
        {"after": summary(replace(mbns(), family="another"))},
        {"effects": (effect(0.02), effect(0.2, is_of_rescan=True))},
        {"effects": (effect(0.2), effect(0.02, is_of_rescan=True))},
        {"effects": (*NOWHERE, effect(0.3, scanner="ban"))},
        {"effects": NOWHERE[:1]},
        {"effects": NOWHERE[1:]},
        {"effects": ()},
    ],
    ids=[
        "the statistics are others",
        "it did not accuse before",
        "it is louder than before",
        "it did not run before",
        "it names a target",
        "it sees all-to-all",
        "it is confirmed",
        "it reads no statistics",
        "its own push leads a fifth",
        "the push of before leads a fifth",
        "another scanner's artefact leads",
        "its own push was not tried",
        "the push of before was not tried",
        "nothing was tried",
    ],
)
def test_a_single_missing_condition_explains_nothing(changed: dict[str, Any]) -> None:
    assert explained(**changed) == ()


def test_what_is_not_explained_keeps_its_verdict(opened: Opened) -> None:
    assert read_rescan(AFTER, NOWHERE, (), opened, REQUEST) == AFTER.verdict


def test_another_scanner_is_heard_as_ever(opened: Opened) -> None:
    after = summary(mbns(), other(Finding.STRONG, 2))
    verdict = read_rescan(after, NOWHERE, explained(after=after), opened, REQUEST)
    assert verdict.verdict is Verdict.INCONCLUSIVE
    assert "mm_bd" in verdict.reason
    assert "mbns" not in verdict.reason


@pytest.mark.parametrize(
    ("share", "verdict", "code"),
    [
        (0.08, Verdict.CLEAN, "MA-V001"),
        (0.2, Verdict.INCONCLUSIVE, "MA-V510"),
        (0.9, Verdict.BACKDOORED, "MA-V104"),
    ],
)
def test_what_still_leads_somewhere_outweighs_silent_scanners(
    opened: Opened, share: float, verdict: Verdict, code: str
) -> None:
    after = summary(mbns(Finding.NONE, 2.0), other(Finding.NONE))
    judged = read_rescan(after, (effect(share),), (), opened, REQUEST)
    assert (judged.verdict, judged.reason_code) == (verdict, code)
    if verdict is not Verdict.CLEAN:
        assert judged.target_labels == (2,)
        assert f"still leads {share:.0%} of 200 held-out images to output 2" in judged.reason


def test_a_partial_effect_is_said_beside_what_is_inconclusive_anyway(opened: Opened) -> None:
    verdict = read_rescan(AFTER, (effect(0.2),), (), opened, REQUEST)
    assert verdict == replace(AFTER.verdict, reason=verdict.reason)
    assert verdict.reason == (
        f"{AFTER.verdict.reason}; what mbns found still leads 20% of 200 held-out images to output "
        "2 (99% before the repair)"
    )


def test_a_partial_effect_leaves_an_accusation_alone(opened: Opened) -> None:
    after = summary(mbns(target_labels=(2,), is_confirmed=True))
    assert read_rescan(after, (effect(0.2),), (), opened, REQUEST) == after.verdict


def test_a_rescan_that_says_backdoored_stays_so(opened: Opened) -> None:
    after = summary(mbns(target_labels=(2,), is_confirmed=True))
    verdict = read_rescan(after, (effect(0.9),), (), opened, REQUEST)
    assert verdict == after.verdict


def test_statistics_are_kept_only_bit_for_bit() -> None:
    old = models.tiny_bn()
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    assert keeps_statistics(old, new)
    norm = cast("torch.nn.BatchNorm2d", new.get_submodule("norm2"))
    assert norm.running_var is not None
    norm.running_var[3] = torch.nextafter(norm.running_var[3], torch.tensor(9.0))
    assert not keeps_statistics(old, new)


def test_other_layers_are_other_statistics() -> None:
    old = models.tiny_bn()
    new = copy.deepcopy(old)
    new.norm2 = torch.nn.BatchNorm2d(64, track_running_stats=False)
    assert not keeps_statistics(old, new)
    new.norm2 = torch.nn.Identity()
    assert not keeps_statistics(old, new)


def stand_in(share: float, *, before: float = 0.97, target: int | None = 2) -> Effect:
    """A stand-in for the trigger, put on images."""
    return replace(
        effect(share),
        kind="stand_in",
        artefact="a stand-in",
        target=target,
        share_before=before,
        interval_before=(before - 0.04, min(1.0, before + 0.03)),
    )


def ban(finding: Finding = Finding.STRONG, score: float = 0.1, *targets: int) -> ScannerResult:
    return ScannerResult(
        id="ban",
        version="1",
        family=NOISE_FAMILY,
        finding=finding,
        sees_all_to_all=False,
        score=score,
        target_labels=targets or (2,),
    )


def dde(*targets: int) -> ScannerResult:
    return replace(mbns(target_labels=targets, pattern=Pattern.ALL_TO_ONE), id="dde")


NAMED_AFTER = mbns(target_labels=(2,), pattern=Pattern.ALL_TO_ONE, is_confirmed=True)
#: what a deep push of kept statistics does in every network
LEADING_PUSHES = (effect(0.9), effect(0.9, is_of_rescan=True), effect(0.4, scanner="ban"))


def test_a_stand_in_that_leads_nowhere_answers_findings_that_follow_statistics(
    opened: Opened,
) -> None:
    before = summary(*BEFORE.scanners, ban())
    after = summary(replace(NAMED_AFTER, score=300.0), ban(), other(Finding.NONE))
    assert after.verdict.verdict is Verdict.BACKDOORED
    tried = (stand_in(0.03), *LEADING_PUSHES)
    read = explained(before, after, tried)
    assert read == ("mbns", "ban")
    verdict = read_rescan(after, tried, read, opened, REQUEST)
    assert (verdict.verdict, verdict.reason_code) == (Verdict.CLEAN, "MA-V002")
    assert "a stand-in for the trigger leads 3% of 200 held-out images there" in verdict.reason


def test_statistics_of_the_suspect_need_no_power_on_the_repaired_model(opened: Opened) -> None:
    after = summary(mbns(Finding.NO_POWER, 300.0), other(Finding.NONE))
    tried = (stand_in(0.03), *LEADING_PUSHES)
    read = explained(after=after, effects=tried)
    assert read == ("mbns",)
    assert read_rescan(after, tried, read, opened, REQUEST).verdict is Verdict.CLEAN
    assert explained(after=after) == ()


SHIFTING = mbns(
    score=200.0, pattern=Pattern.ALL_TO_ALL, is_confirmed=True, evidence={"arrows": [1, 2, 0]}
)


@pytest.mark.parametrize("arrows", [[2, 0, 1], [1, 2, 1], None])
def test_faded_traces_shift_classes_as_they_did(arrows: list[int] | None) -> None:
    changed = replace(SHIFTING, score=150.0, evidence={"arrows": arrows} if arrows else {})
    given: dict[str, Any] = {
        "before": summary(SHIFTING),
        "effects": (stand_in(0.03, target=None),),
        "are_statistics_kept": False,
        "are_weights_trained": True,
    }
    assert explained(after=summary(replace(SHIFTING, score=150.0)), **given) == ("mbns",)
    assert explained(after=summary(changed), **given) == ()


def test_noise_is_heard_where_statistics_have_moved(opened: Opened) -> None:
    # Judged by statistics of its own, it shows what the weights still do.
    before = summary(*BEFORE.scanners, replace(ban(score=0.5), is_confirmed=True))
    after = summary(mbns(Finding.NONE, 3.0), replace(ban(score=0.45), is_confirmed=True))
    tried = (stand_in(0.03), effect(0.4, scanner="ban"))
    read = explained(before, after, tried, are_statistics_kept=False, are_weights_trained=True)
    assert read == ()
    assert read_rescan(after, tried, read, opened, REQUEST).verdict is Verdict.BACKDOORED


def test_traces_that_training_has_faded_are_answered(opened: Opened) -> None:
    before = summary(SHIFTING)
    faded = replace(SHIFTING, score=150.0, evidence={"arrows": [1, 2, -1]})
    after = summary(faded, other(Finding.NONE))
    assert after.verdict.verdict is Verdict.BACKDOORED
    tried = (stand_in(0.03, target=None), replace(effect(0.9, is_of_rescan=True), target=None))
    read = explained(before, after, tried, are_statistics_kept=False, are_weights_trained=True)
    assert read == ("mbns",)
    verdict = read_rescan(after, tried, read, opened, REQUEST)
    assert (verdict.verdict, verdict.reason_code) == (Verdict.CLEAN, "MA-V002")


@pytest.mark.parametrize(
    "changed",
    [
        {"are_weights_trained": False},
        {"effects": ()},
        {"effects": (stand_in(0.2),)},
        {"effects": (stand_in(0.03), replace(effect(0.3), target=1))},
        {"before": accused_nobody()},
        {"before": summary(mbns(score=60.0, target_labels=(2,)))},
        {"before": summary(mbns(score=70.0, target_labels=(2,)))},
        {"after": summary(mbns(Finding.NO_POWER))},
        {"after": summary(replace(NAMED_AFTER, target_labels=(1,)))},
        {
            "after": summary(
                mbns(
                    target_labels=(1,),
                    pattern=Pattern.ALL_TO_ONE,
                    config={"max_accuracy_drop": 0.06},
                    evidence={"pruned_accuracy_drop": 0.3},
                )
            )
        },
    ],
    ids=[
        "the repair has not trained",
        "nothing was tried",
        "the stand-in leads a fifth",
        "a push to another target leads",
        "it did not accuse before",
        "it is louder than before",
        "it is as loud as before",
        "it has no power",
        "it names another target",
        "it names another target, which its controls disprove",
    ],
)
def test_what_moved_statistics_show_besides_is_not_answered(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "after": summary(NAMED_AFTER),
        "effects": (stand_in(0.03),),
        "are_statistics_kept": False,
        "are_weights_trained": True,
    }
    assert explained(**given) == ("mbns",)
    assert explained(**{**given, **changed}) == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"are_statistics_kept": False},
        {"effects": (stand_in(0.2),)},
        {"effects": (stand_in(0.03, before=0.5),)},
        {"effects": (stand_in(0.03, target=1),)},
        {"effects": (stand_in(0.03, target=None),)},
        {"effects": (stand_in(0.03), replace(effect(0.3), target=1))},
        {"effects": (replace(stand_in(0.08), interval_after=(0.01, 0.3)),)},
        {"before": accused_nobody()},
        {"before": summary(mbns(score=200.0))},
        {"before": summary(mbns(score=200.0, target_labels=(1, 2)))},
        {"after": summary(replace(NAMED_AFTER, target_labels=(1,)))},
        {"after": summary(replace(NAMED_AFTER, target_labels=(), pattern=Pattern.ALL_TO_ALL))},
        {"after": summary(replace(NAMED_AFTER, family="another"))},
    ],
    ids=[
        "the statistics are others",
        "the stand-in leads a fifth",
        "it hardly leads the suspect's",
        "it was searched for another target",
        "it was searched for a shift of classes",
        "a push to another target leads",
        "too few images show it",
        "it did not accuse before",
        "it named nothing before",
        "it named another target too before",
        "it names another target",
        "it sees all-to-all",
        "it reads no statistics",
    ],
)
def test_a_stand_in_answers_nothing_else(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"after": summary(NAMED_AFTER), "effects": (stand_in(0.03),)}
    assert explained(**given) == ("mbns",)
    assert explained(**{**given, **changed}) == ()


@pytest.mark.parametrize(
    ("share", "verdict", "code"),
    [
        (0.08, Verdict.CLEAN, "MA-V001"),
        (0.2, Verdict.INCONCLUSIVE, "MA-V510"),
        (0.9, Verdict.BACKDOORED, "MA-V104"),
    ],
)
def test_a_stand_in_outweighs_silent_scanners_and_what_acts_within_the_network(
    opened: Opened, share: float, verdict: Verdict, code: str
) -> None:
    after = summary(mbns(Finding.NONE, 2.0), other(Finding.NONE))
    pushes = (effect(0.02),) if share > 0.5 else LEADING_PUSHES
    judged = read_rescan(after, (stand_in(share), *pushes), (), opened, REQUEST)
    assert (judged.verdict, judged.reason_code) == (verdict, code)
    if verdict is not Verdict.CLEAN:
        assert f"a stand-in for the trigger still leads {share:.0%}" in judged.reason


def test_what_points_nowhere_is_answered_for_the_scanner_that_had_named_the_target() -> None:
    unnamed = replace(effect(0.9, is_of_rescan=True), target=None)
    assert deciding((stand_in(0.02), effect(0.9), unnamed)) == (stand_in(0.02),)
    foreign = replace(unnamed, scanner="dde")
    earlier = replace(effect(0.9), target=None)
    for kept in (foreign, earlier):
        assert deciding((stand_in(0.02), kept)) == (stand_in(0.02), kept)
    weak = stand_in(0.02, before=0.5)
    assert deciding((weak, unnamed)) == (weak, unnamed)


#: a push that the controls of `mbns` speak against: the network needs these channels
NEEDED = {"pruned_accuracy_drop": 0.2}
DRIFTED = mbns(
    target_labels=(1,),
    pattern=Pattern.ALL_TO_ONE,
    evidence=NEEDED,
    config={"max_accuracy_drop": 0.06},
)
PUSHED = replace(effect(0.99, is_of_rescan=True), target=1, is_disproved=True)


def test_what_drifted_weights_are_pushed_to_is_answered_where_controls_disprove_it(
    opened: Opened,
) -> None:
    tried = (stand_in(0.02), effect(0.9), PUSHED)
    after = summary(DRIFTED, other(Finding.NONE))
    assert deciding(tried, have_weights_drifted=True) == (stand_in(0.02),)
    assert explained(after=after, effects=tried, are_weights_trained=True) == ("mbns",)
    verdict = read_rescan(after, tried, ("mbns",), opened, REQUEST, have_weights_drifted=True)
    assert verdict.verdict is Verdict.CLEAN
    assert "mbns points to output 1 now, which its own controls disprove" in verdict.reason
    assert explained(after=after, effects=tried) == ()
    assert deciding(tried) == (stand_in(0.02), PUSHED)


@pytest.mark.parametrize(
    "changed",
    [
        {"is_confirmed": True},
        {"pattern": Pattern.ALL_TO_ALL, "target_labels": ()},
        {"evidence": {"pruned_accuracy_drop": 0.01}},
        {"evidence": {}},
        {"config": {"max_accuracy_drop": 0.3}},
    ],
    ids=[
        "confirmed",
        "all-to-all",
        "nothing speaks against it",
        "no controls",
        "the user lets removal cost more",
    ],
)
def test_what_controls_do_not_disprove_is_not_answered(changed: dict[str, Any]) -> None:
    after = summary(replace(DRIFTED, **changed))
    given: dict[str, Any] = {"effects": (stand_in(0.02),), "are_weights_trained": True}
    assert explained(after=summary(DRIFTED), **given) == ("mbns",)
    assert explained(after=after, **given) == ()


def test_controls_that_lead_there_as_well_disprove_a_push() -> None:
    cheap = replace(DRIFTED, evidence={"pruned_accuracy_drop": 0.0})
    assert not is_disproved(cheap)
    assert is_disproved(replace(cheap, is_refuted=True))


@pytest.mark.parametrize(
    "changed", [{"is_disproved": False}, {"is_of_rescan": False}, {"scanner": "dde"}]
)
def test_other_pushes_of_drifted_weights_decide(changed: dict[str, Any]) -> None:
    real = replace(PUSHED, **changed)
    assert real in deciding((stand_in(0.02), effect(0.9), real), have_weights_drifted=True)


#: what a re-scan finds elsewhere, and where it leads by the repair's doing
ELSEWHERE = mbns(target_labels=(1,), pattern=Pattern.ALL_TO_ONE, is_confirmed=True)
MADE = replace(effect(0.99, is_of_rescan=True), target=1, is_by_repair=True)


@pytest.mark.parametrize("are_kept", [True, False], ids=["pruned", "trained"])
def test_a_place_that_a_push_leads_to_by_the_repairs_doing_is_answered(
    opened: Opened, *, are_kept: bool
) -> None:
    after = summary(ELSEWHERE, other(Finding.NONE))
    assert after.verdict.verdict is Verdict.BACKDOORED
    tried = (stand_in(0.02), effect(0.9), MADE)
    assert deciding(tried) == (stand_in(0.02),)
    read = explained(
        after=after, effects=tried, are_statistics_kept=are_kept, are_weights_trained=not are_kept
    )
    assert read == ("mbns",)
    verdict = read_rescan(after, tried, read, opened, REQUEST)
    assert (verdict.verdict, verdict.reason_code) == (Verdict.CLEAN, "MA-V002")
    assert "mbns points to output 1 now, by channels that carried no trace before" in verdict.reason


@pytest.mark.parametrize(
    "changed",
    [
        {"effects": (stand_in(0.02), effect(0.9))},
        {"effects": (stand_in(0.02), effect(0.9), replace(MADE, is_by_repair=False))},
        {"effects": (stand_in(0.02), effect(0.9), replace(MADE, scanner="dde"))},
        {"effects": (stand_in(0.02), effect(0.9), replace(MADE, target=3))},
        {"effects": (stand_in(0.2), effect(0.9), MADE)},
        {"effects": (stand_in(0.02, before=0.5), effect(0.9), MADE)},
        {"effects": (MADE,)},
        {"after": summary(replace(ELSEWHERE, target_labels=(1, 3)))},
        {"after": summary(replace(ELSEWHERE, target_labels=(), pattern=Pattern.ALL_TO_ALL))},
        {"are_statistics_kept": False},
    ],
    ids=[
        "nothing was tried there",
        "channels of before lead there",
        "another scanner's push",
        "it leads elsewhere",
        "the stand-in leads a fifth",
        "it hardly leads the suspect's",
        "there is no stand-in",
        "it names a third place too",
        "it sees all-to-all",
        "the statistics are others, and nothing was trained",
    ],
)
def test_a_new_place_is_not_answered_otherwise(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {
        "after": summary(ELSEWHERE),
        "effects": (stand_in(0.02), effect(0.9), MADE),
    }
    assert explained(**given) == ("mbns",)
    assert explained(**{**given, **changed}) == ()


def test_without_a_stand_in_what_the_repair_has_made_is_heard(opened: Opened) -> None:
    after = summary(replace(ELSEWHERE, finding=Finding.SUSPICIOUS, is_confirmed=False))
    verdict = read_rescan(after, (MADE,), (), opened, REQUEST)
    assert (verdict.verdict, verdict.reason_code) == (Verdict.BACKDOORED, "MA-V104")


def test_noise_or_a_mixture_that_points_elsewhere_is_not_answered() -> None:
    for before, after in ((ban(), ban(Finding.STRONG, 0.1, 1)), (dde(2), dde(1))):
        read = explained(
            summary(*BEFORE.scanners, before),
            summary(NAMED_AFTER, after),
            (stand_in(0.02),),
            are_weights_trained=True,
        )
        assert read == ("mbns",)


def test_a_push_to_a_target_without_a_stand_in_counts_as_ever(opened: Opened) -> None:
    after = summary(mbns(Finding.NONE, 2.0), other(Finding.NONE))
    tried = (stand_in(0.02), replace(effect(0.9), target=1))
    judged = read_rescan(after, tried, (), opened, REQUEST)
    assert (judged.reason_code, judged.target_labels) == ("MA-V104", (1,))


def test_a_reason_code_has_one_meaning() -> None:
    codes = [
        set(re.findall(r"MA-V\d+", Path(inspect.getfile(module)).read_text(encoding="utf-8")))
        for module in (verdict, rescan)
    ]
    assert codes[0]
    assert codes[1]
    assert not codes[0] & codes[1]
