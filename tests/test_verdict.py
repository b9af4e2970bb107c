from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest

from modelaudit.results import (
    CombinedScore,
    ExitStatus,
    FailedScan,
    Finding,
    Match,
    Obstacle,
    Pattern,
    ScannerResult,
    ScanOutcome,
    SkippedScan,
    Verdict,
)
from modelaudit.verdict import EXIT_STATUS, agrees, decide

NONE, SUSPICIOUS, STRONG, NO_POWER = (
    Finding.NONE,
    Finding.SUSPICIOUS,
    Finding.STRONG,
    Finding.NO_POWER,
)
CLEAN, BACKDOORED, INCONCLUSIVE = Verdict.CLEAN, Verdict.BACKDOORED, Verdict.INCONCLUSIVE
ALL_TO_ONE, ALL_TO_ALL, SEVERAL = Pattern.ALL_TO_ONE, Pattern.ALL_TO_ALL, Pattern.SEVERAL


def result(
    id_: str,
    family: str,
    finding: Finding,
    *targets: int,
    sees_all_to_all: bool = False,
    pattern: Pattern | None = None,
    is_confirmed: bool = False,
    is_refuted: bool = False,
    is_calibrated: bool = True,
    score: float | None = None,
    threshold: float | None = None,
    class_p_values: tuple[float, ...] = (),
) -> ScannerResult:
    return ScannerResult(
        id=id_,
        version="1",
        family=family,
        finding=finding,
        target_labels=targets,
        sees_all_to_all=sees_all_to_all,
        pattern=pattern,
        is_confirmed=is_confirmed,
        is_refuted=is_refuted,
        is_calibrated=is_calibrated,
        score=score,
        threshold=threshold,
        class_p_values=class_p_values,
    )


def ban(finding: Finding, *targets: int, **options: object) -> ScannerResult:
    given = {"sees_all_to_all": True} | options
    return result("ban", "parameter_noise", finding, *targets, **given)  # type: ignore[arg-type]  # passed on


def mbns(finding: Finding, *targets: int, **options: object) -> ScannerResult:
    given = {"sees_all_to_all": True} | options
    return result("mbns", "bn_statistics", finding, *targets, **given)  # type: ignore[arg-type]  # passed on


def dde(finding: Finding, *targets: int, **options: object) -> ScannerResult:
    return result("dde", "bn_statistics", finding, *targets, **options)  # type: ignore[arg-type]  # passed on


def mm_bd(finding: Finding, *targets: int, **options: object) -> ScannerResult:
    return result("mm_bd", "margin", finding, *targets, **options)  # type: ignore[arg-type]  # passed on


def skipped(id_: str, *, is_declared_need: bool) -> SkippedScan:
    return SkippedScan(id=id_, reason="a reason", is_declared_need=is_declared_need)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the scanners said, and what follows."""

    outcomes: tuple[ScanOutcome, ...]
    verdict: Verdict
    code: str
    targets: tuple[int, ...] = ()
    pattern: Pattern | None = None


FAILED = FailedScan(id="dde", error="RuntimeError: broken")
AT_THREE = (0.5, 0.4, 0.6, 0.02, 0.9)
NOWHERE = (0.5, 0.4, 0.6, 0.3, 0.9)
CASES: dict[str, Case] = {
    "a label that a strong finding names is out of line for another family": Case(
        outcomes=(
            mbns(STRONG, 3, pattern=ALL_TO_ONE),
            mm_bd(NONE, class_p_values=AT_THREE),
            ban(NONE, class_p_values=NOWHERE),
        ),
        verdict=BACKDOORED,
        code="MA-V105",
        targets=(3,),
        pattern=ALL_TO_ONE,
    ),
    "a suspicion of another label does not keep a family from backing this one": Case(
        outcomes=(mbns(STRONG, 3), mm_bd(SUSPICIOUS, 1, class_p_values=AT_THREE)),
        verdict=BACKDOORED,
        code="MA-V105",
        targets=(3,),
        pattern=ALL_TO_ONE,
    ),
    "the label that is out of line is another": Case(
        outcomes=(mbns(STRONG, 2), mm_bd(NONE, class_p_values=AT_THREE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "a strong finding that names several labels asks of none": Case(
        outcomes=(mbns(STRONG, 2, 3), mm_bd(NONE, class_p_values=AT_THREE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "one family is asked twice and does not back itself": Case(
        outcomes=(mbns(STRONG, 3), dde(NONE, class_p_values=AT_THREE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "a suspicion alone asks of nothing": Case(
        outcomes=(mbns(SUSPICIOUS, 3), mm_bd(NONE, class_p_values=AT_THREE)),
        verdict=CLEAN,
        code="MA-V001",
    ),
    "a label that controls lead to as well is asked of nobody": Case(
        outcomes=(mbns(STRONG, 3, is_refuted=True), mm_bd(NONE, class_p_values=AT_THREE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "a scanner that could not see backs nobody": Case(
        outcomes=(mbns(STRONG, 3), mm_bd(NO_POWER, class_p_values=AT_THREE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "the first label of an all-to-all finding is asked of nobody": Case(
        outcomes=(
            mbns(STRONG, 3, pattern=ALL_TO_ALL),
            mm_bd(NONE, class_p_values=AT_THREE),
        ),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "who is asked of one label does not say how many there are": Case(
        outcomes=(
            mbns(STRONG, 3),
            mm_bd(SUSPICIOUS, 1, 2, pattern=SEVERAL, class_p_values=AT_THREE),
        ),
        verdict=BACKDOORED,
        code="MA-V105",
        targets=(3,),
        pattern=ALL_TO_ONE,
    ),
    "an uncalibrated plug-in backs nobody": Case(
        outcomes=(
            mbns(STRONG, 3),
            mm_bd(NONE, class_p_values=AT_THREE, is_calibrated=False),
        ),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "a strong finding that another family shares": Case(
        outcomes=(ban(STRONG, 3), mm_bd(SUSPICIOUS, 3)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
    ),
    "two strong findings of two families": Case(
        outcomes=(ban(STRONG, 3), mbns(STRONG, 3)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
    ),
    "agreement names the shared target alone": Case(
        outcomes=(ban(STRONG, 1, 3), mm_bd(SUSPICIOUS, 3, 5)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
    ),
    "a third witness of another of the targets takes nothing away": Case(
        outcomes=(ban(STRONG, 1, 3), mbns(SUSPICIOUS, 3), mm_bd(SUSPICIOUS, 1)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
    ),
    "a strong finding of the second scanner counts as much": Case(
        outcomes=(ban(SUSPICIOUS, 3), mm_bd(STRONG, 3)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
    ),
    "two families that both say all-to-all": Case(
        outcomes=(
            ban(STRONG, pattern=ALL_TO_ALL),
            mbns(SUSPICIOUS, pattern=ALL_TO_ALL),
        ),
        verdict=BACKDOORED,
        code="MA-V101",
        pattern=ALL_TO_ALL,
    ),
    "all-to-all beside all-to-one is no agreement": Case(
        outcomes=(ban(STRONG, pattern=ALL_TO_ALL), mbns(SUSPICIOUS, 3, pattern=ALL_TO_ONE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "the pattern is the strong scanner's": Case(
        outcomes=(ban(STRONG, 3, pattern=SEVERAL), mm_bd(SUSPICIOUS, 3, pattern=ALL_TO_ONE)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
        pattern=SEVERAL,
    ),
    "a scanner without a pattern borrows its witness's": Case(
        outcomes=(ban(STRONG, 3), mm_bd(SUSPICIOUS, 3, pattern=ALL_TO_ONE)),
        verdict=BACKDOORED,
        code="MA-V101",
        targets=(3,),
        pattern=ALL_TO_ONE,
    ),
    "a confirmed strong finding alone": Case(
        outcomes=(ban(STRONG, 3, is_confirmed=True, pattern=ALL_TO_ONE), mm_bd(NONE)),
        verdict=BACKDOORED,
        code="MA-V102",
        targets=(3,),
        pattern=ALL_TO_ONE,
    ),
    "a confirmed strong finding against a different one": Case(
        outcomes=(ban(STRONG, 3, is_confirmed=True), mm_bd(SUSPICIOUS, 5)),
        verdict=BACKDOORED,
        code="MA-V102",
        targets=(3,),
    ),
    "a backdoor is found though another scanner failed or did not run": Case(
        outcomes=(
            mbns(STRONG, 3, is_confirmed=True),
            FAILED,
            skipped("ban", is_declared_need=False),
        ),
        verdict=BACKDOORED,
        code="MA-V102",
        targets=(3,),
    ),
    "an unconfirmed strong finding alone": Case(
        outcomes=(ban(STRONG, 3), mm_bd(NONE)), verdict=INCONCLUSIVE, code="MA-V502"
    ),
    "a strong finding on another target than the suspicious one": Case(
        outcomes=(ban(STRONG, 3), mm_bd(SUSPICIOUS, 5)), verdict=INCONCLUSIVE, code="MA-V502"
    ),
    "a strong finding without a target agrees with nobody": Case(
        outcomes=(ban(STRONG), mm_bd(SUSPICIOUS, 5)), verdict=INCONCLUSIVE, code="MA-V502"
    ),
    "two of one family never confirm each other": Case(
        outcomes=(mbns(STRONG, 3), dde(STRONG, 3), ban(NONE)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "two suspicious findings on one target": Case(
        outcomes=(ban(SUSPICIOUS, 3), mm_bd(SUSPICIOUS, 3)), verdict=INCONCLUSIVE, code="MA-V503"
    ),
    "confirmation of a suspicious finding does not accuse and does not clear": Case(
        outcomes=(ban(SUSPICIOUS, 3, is_confirmed=True), mm_bd(NONE)),
        verdict=INCONCLUSIVE,
        code="MA-V511",
    ),
    "nothing found": Case(
        outcomes=(ban(NONE), mbns(NONE), mm_bd(NONE)), verdict=CLEAN, code="MA-V001"
    ),
    "one suspicious finding is clean": Case(
        outcomes=(ban(NONE), mm_bd(SUSPICIOUS, 3)), verdict=CLEAN, code="MA-V001"
    ),
    "a scanner without power beside one that has it": Case(
        outcomes=(ban(NONE), dde(NO_POWER)), verdict=CLEAN, code="MA-V001"
    ),
    "no power of the only scanner that sees all-to-all": Case(
        outcomes=(ban(NO_POWER), mm_bd(NONE)), verdict=INCONCLUSIVE, code="MA-V506"
    ),
    "no power does not accuse": Case(
        outcomes=(ban(STRONG, 3), dde(NO_POWER, 3)), verdict=INCONCLUSIVE, code="MA-V502"
    ),
    "only scanners that are blind to all-to-all": Case(
        outcomes=(mm_bd(NONE), dde(NONE)), verdict=INCONCLUSIVE, code="MA-V506"
    ),
    "no scanner at all": Case(outcomes=(), verdict=INCONCLUSIVE, code="MA-V506"),
    "a declared need that is unmet": Case(
        outcomes=(ban(NONE), skipped("mbns", is_declared_need=True)),
        verdict=CLEAN,
        code="MA-V001",
    ),
    "every need unmet": Case(
        outcomes=(
            skipped("ban", is_declared_need=True),
            skipped("mbns", is_declared_need=True),
        ),
        verdict=INCONCLUSIVE,
        code="MA-V506",
    ),
    "a scanner that the budget stopped": Case(
        outcomes=(mbns(NONE), skipped("ban", is_declared_need=False)),
        verdict=INCONCLUSIVE,
        code="MA-V505",
    ),
    "a scanner that failed": Case(
        outcomes=(ban(NONE), FAILED), verdict=INCONCLUSIVE, code="MA-V504"
    ),
    "an uncalibrated strong finding, confirmed": Case(
        outcomes=(ban(STRONG, 3, is_confirmed=True, is_calibrated=False), mbns(NONE)),
        verdict=CLEAN,
        code="MA-V001",
    ),
    "an uncalibrated witness": Case(
        outcomes=(ban(STRONG, 3), mm_bd(STRONG, 3, is_calibrated=False)),
        verdict=INCONCLUSIVE,
        code="MA-V502",
    ),
    "an uncalibrated scanner clears nothing": Case(
        outcomes=(ban(NONE, is_calibrated=False), mm_bd(NONE)),
        verdict=INCONCLUSIVE,
        code="MA-V506",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    case = CASES[name]
    found = decide(case.outcomes)
    assert (found.verdict, found.reason_code) == (case.verdict, case.code)
    assert found.target_labels == case.targets
    assert found.pattern is case.pattern
    assert found.reason
    assert found.next_step


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_scanners_decides_nothing(name: str) -> None:
    case = CASES[name]
    for order in itertools.permutations(case.outcomes):
        found = decide(order)
        assert (found.verdict, found.reason_code) == (case.verdict, case.code)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("finding", list(Finding))
def test_an_uncalibrated_result_never_moves_a_verdict(name: str, finding: Finding) -> None:
    case = CASES[name]
    loud = result(
        "loud",
        "somebodys",
        finding,
        *range(10),
        sees_all_to_all=True,
        pattern=ALL_TO_ALL,
        is_confirmed=True,
        is_calibrated=False,
        score=9.0,
        threshold=1.0,
    )
    assert decide((*case.outcomes, loud)) == decide(case.outcomes)
    assert decide((loud, *case.outcomes)) == decide(case.outcomes)


@pytest.mark.parametrize("name", CASES)
def test_an_obstacle_rules_out_any_verdict(name: str) -> None:
    found = decide(CASES[name].outcomes, obstacles=("3 images are few", "one class is empty"))
    assert (found.verdict, found.reason_code) == (INCONCLUSIVE, "MA-V501")
    assert found.reason == "3 images are few; one class is empty"
    assert found.target_labels == ()


OPEN = Obstacle(
    reason_code="MA-V507", reason="preprocessing is open", next_step="give what is missing"
)


@pytest.mark.parametrize("name", CASES)
def test_an_obstacle_to_clean_rules_out_clean_alone(name: str) -> None:
    case = CASES[name]
    found = decide(case.outcomes, obstacles_to_clean=(OPEN,))
    if case.verdict is BACKDOORED:
        assert found == decide(case.outcomes)
    else:
        assert found.verdict is INCONCLUSIVE
        assert "preprocessing is open" in found.reason
    if case.verdict is CLEAN:
        assert (found.reason_code, found.next_step) == ("MA-V507", "give what is missing")


@pytest.mark.parametrize("name", CASES)
def test_turning_a_finding_into_no_power_never_makes_a_suspect_clean(name: str) -> None:
    case = CASES[name]
    if case.verdict is CLEAN:
        return
    results = [o for o in case.outcomes if isinstance(o, ScannerResult) and o.sees_all_to_all]
    if not results or any(r.finding not in {STRONG, SUSPICIOUS} for r in results):
        return
    blind = [
        replace(o, finding=NO_POWER) if isinstance(o, ScannerResult) else o for o in case.outcomes
    ]
    assert decide(blind).verdict is INCONCLUSIVE


MATCHED = CombinedScore(
    match=Match.MATCHED, population="small", score=2.0, suspicious=3.0, strong=5.0
)
BORROWED = replace(MATCHED, match=Match.BORROWED, reason="small holds cifar_vgg")
NO_MATCH = CombinedScore(match=Match.NONE, reason="there is no reference population at all")


@pytest.mark.parametrize("name", CASES)
def test_a_matched_population_that_finds_nothing_changes_nothing(name: str) -> None:
    outcomes = CASES[name].outcomes
    assert decide(outcomes, combined=MATCHED) == decide(outcomes)


@pytest.mark.parametrize("combined", [BORROWED, NO_MATCH])
@pytest.mark.parametrize("name", CASES)
def test_without_a_matched_population_only_confirmation_accuses(
    name: str, combined: CombinedScore
) -> None:
    case = CASES[name]
    found, plain = decide(case.outcomes, combined=combined), decide(case.outcomes)
    strong = [o for o in case.outcomes if isinstance(o, ScannerResult) and o.finding is STRONG]
    if plain.verdict is BACKDOORED and not any(r.is_confirmed for r in strong):
        assert (found.verdict, found.reason_code) == (INCONCLUSIVE, "MA-V508")
        assert combined.reason in found.reason
        assert "modelaudit calibrate" in found.next_step
    else:
        assert found == plain


@pytest.mark.parametrize("combined", [BORROWED, NO_MATCH])
def test_confirmed_agreement_needs_no_population(combined: CombinedScore) -> None:
    found = decide((ban(STRONG, 3), mbns(STRONG, 3, is_confirmed=True)), combined=combined)
    assert (found.verdict, found.reason_code) == (BACKDOORED, "MA-V101")
    assert found.target_labels == (3,)


def test_a_high_combined_score_keeps_from_clean() -> None:
    high = replace(MATCHED, score=3.0)
    found = decide((ban(NONE), mbns(NONE)), combined=high)
    assert (found.verdict, found.reason_code) == (INCONCLUSIVE, "MA-V509")
    assert found.reason == "the combined score 3 is higher than clean models of small have (3)"
    below = replace(MATCHED, score=2.999)
    assert decide((ban(NONE), mbns(NONE)), combined=below).verdict is CLEAN


@pytest.mark.parametrize("name", CASES)
def test_a_high_combined_score_alone_never_accuses(name: str) -> None:
    outcomes = CASES[name].outcomes
    found = decide(outcomes, combined=replace(MATCHED, score=99.0))
    assert (found.verdict is BACKDOORED) is (decide(outcomes).verdict is BACKDOORED)
    assert found.verdict is not CLEAN


@pytest.mark.parametrize("match", [Match.BORROWED, Match.NONE])
def test_a_borrowed_combined_score_does_not_keep_from_clean(match: Match) -> None:
    high = replace(MATCHED, match=match, score=99.0)
    assert decide((ban(NONE), mbns(NONE)), combined=high).verdict is CLEAN


def test_a_supported_strong_finding_is_backdoored() -> None:
    supported = replace(MATCHED, score=9.0, supported=("mbns",))
    found = decide((ban(NONE), mbns(STRONG, 3, pattern=ALL_TO_ONE)), combined=supported)
    assert (found.verdict, found.reason_code) == (BACKDOORED, "MA-V103")
    assert (found.target_labels, found.pattern) == ((3,), ALL_TO_ONE)
    assert "combined score of the other families" in found.reason
    assert decide((ban(STRONG, 3), mbns(NONE)), combined=supported).verdict is INCONCLUSIVE


def test_the_level_of_a_named_label_is_shared_by_the_families_that_can_say() -> None:
    def verdict(p_value: float, *others: ScannerResult) -> Verdict:
        backer = mm_bd(NONE, class_p_values=(0.9, 0.9, 0.9, p_value, 0.9))
        return decide((mbns(STRONG, 3), backer, *others)).verdict

    assert verdict(0.05) is BACKDOORED
    assert verdict(0.0501) is INCONCLUSIVE
    assert verdict(0.03, ban(NONE)) is BACKDOORED
    assert verdict(0.03, ban(NONE, class_p_values=NOWHERE)) is INCONCLUSIVE
    assert verdict(0.025, ban(NONE, class_p_values=NOWHERE)) is BACKDOORED
    # Two scanners of one family share its part.
    second = result("mm_bd2", "margin", NONE, class_p_values=NOWHERE)
    assert verdict(0.05, second) is BACKDOORED


def test_a_strong_finding_of_another_label_is_told_though_it_backs_this_one() -> None:
    found = decide((mbns(STRONG, 3), ban(STRONG, 1, class_p_values=AT_THREE)))
    assert (found.reason_code, found.target_labels) == ("MA-V105", (3,))
    assert "ban is strong too and names output 1 instead" in found.reason


def test_what_backs_a_named_label_is_said() -> None:
    found = decide((mbns(STRONG, 3), mm_bd(NONE, class_p_values=AT_THREE)))
    assert found.reason == (
        "mbns is strong and names output 3, which is out of line for mm_bd (p = 0.02) too, asked "
        "of it alone"
    )
    assert found.next_step.endswith("evidence: mbns, mm_bd")


@pytest.mark.parametrize(
    "lost",
    [
        FailedScan(id="loud", error="RuntimeError: broken", is_calibrated=False),
        SkippedScan(id="loud", reason="no time", is_declared_need=False, is_calibrated=False),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_what_has_no_vote_does_not_move_the_verdict_by_its_absence(
    name: str, lost: ScanOutcome
) -> None:
    case = CASES[name]
    assert decide((*case.outcomes, lost)) == decide(case.outcomes)
    assert decide((lost, *case.outcomes), combined=MATCHED) == decide(case.outcomes)


def test_agreement_by_two_families_ranks_above_confirmation() -> None:
    found = decide((ban(STRONG, 3, is_confirmed=True), mm_bd(SUSPICIOUS, 3)))
    assert found.reason_code == "MA-V101"


def test_a_reason_names_scanners_score_and_threshold() -> None:
    strong = ban(STRONG, 3, score=0.41234, threshold=0.2)
    found = decide((strong, mm_bd(SUSPICIOUS, 3)))
    assert found.reason == "ban is strong and agrees with mm_bd (score 0.412, threshold 0.2)"
    assert found.next_step == "keep the model out of the registry; evidence: ban, mm_bd"


def test_a_confirmation_is_told_in_words() -> None:
    found = decide((ban(STRONG, 3, is_confirmed=True),))
    assert found.reason == (
        "ban is strong and confirmed on held-out clean images with its controls"
    )


def test_a_strong_finding_of_another_label_is_told() -> None:
    confirmed = dde(STRONG, 3, is_confirmed=True)
    found = decide((confirmed, ban(STRONG, 0), mm_bd(SUSPICIOUS, 5)))
    assert (found.verdict, found.target_labels) == (BACKDOORED, (3,))
    assert found.reason == (
        "dde is strong and confirmed on held-out clean images with its controls; ban is strong too "
        "and names output 0 instead: one of these labels is wrong, or there are two backdoors"
    )


@pytest.mark.parametrize(
    "others",
    [
        (ban(SUSPICIOUS, 0),),
        (ban(STRONG),),
        (ban(STRONG, 3),),
        (ban(STRONG, 0, 3),),
    ],
)
def test_what_names_no_other_label_for_sure_is_not_told(others: tuple[ScannerResult, ...]) -> None:
    found = decide((dde(STRONG, 3, is_confirmed=True), *others))
    assert "instead" not in found.reason


def test_a_lone_suspicion_is_shown_in_a_clean_verdict() -> None:
    found = decide((ban(NONE), mm_bd(SUSPICIOUS, 3), dde(NO_POWER)))
    assert found.reason == "no strong finding by ban, mm_bd; mm_bd is suspicious, alone"


def test_a_lone_suspicion_that_was_confirmed_is_not_clean() -> None:
    found = decide((ban(NONE), mbns(SUSPICIOUS, 3, is_confirmed=True)))
    assert (found.verdict, found.reason_code) == (INCONCLUSIVE, "MA-V511")
    assert "mbns is suspicious, alone" in found.reason
    assert "confirmed on held-out clean images" in found.reason
    assert "500" in found.next_step
    # Without a vote it is shown, and that is all.
    other = replace(mbns(SUSPICIOUS, 3, is_confirmed=True), is_calibrated=False)
    assert decide((ban(NONE), dde(NONE), other)).verdict is CLEAN


def test_a_clean_verdict_never_says_safe() -> None:
    found = decide((ban(NONE), mbns(NONE)))
    assert "safe" not in f"{found.reason} {found.next_step}"


def test_every_reason_is_told_and_the_first_gives_code_and_step() -> None:
    found = decide(
        (mm_bd(STRONG, 3), FAILED, skipped("ban", is_declared_need=False)),
        obstacles_to_clean=(OPEN,),
    )
    assert found.reason_code == "MA-V502"
    assert found.reason.split("; ") == [
        "strong finding of mm_bd that no other family shares and that was not confirmed",
        "dde failed",
        "ban did not run",
        "no scanner that sees all-to-all backdoors could judge this model",
        "preprocessing is open",
    ]
    assert found.next_step.startswith("scan again with more clean images, or with 500 others")


def test_agreement_is_symmetric() -> None:
    pairs = [
        (ban(STRONG, 3), mm_bd(STRONG, 3), True),
        (ban(STRONG, 3), mm_bd(STRONG, 4), False),
        (mbns(STRONG, 3), dde(STRONG, 3), False),
        (ban(STRONG, pattern=ALL_TO_ALL), mbns(STRONG, pattern=ALL_TO_ALL), True),
        (mbns(STRONG, pattern=ALL_TO_ALL), dde(STRONG, pattern=ALL_TO_ALL), False),
        (ban(STRONG), mbns(STRONG), False),
    ]
    for first, second, expected in pairs:
        assert agrees(first, second) is agrees(second, first) is expected


def test_every_verdict_has_the_exit_status_of_the_table() -> None:
    assert EXIT_STATUS == {
        Verdict.CLEAN: 0,
        Verdict.BACKDOORED: 1,
        Verdict.USAGE: 2,
        Verdict.REFUSED: 3,
        Verdict.UNREADABLE: 4,
        Verdict.INCONCLUSIVE: 5,
        Verdict.ERROR: 70,
        Verdict.INTERRUPTED: 130,
    }
    assert set(EXIT_STATUS) == set(Verdict)
    assert ExitStatus.OUTPUT_FAILED not in EXIT_STATUS.values()
