from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.calibration import MeasuredRates, judge, measure
from modelaudit.results import Finding, Match, Pattern, Verdict
from tests.helpers.calibration import (
    CIFAR,
    attacked_model,
    clean_models,
    model,
    outcomes,
    population,
    result,
)

if TYPE_CHECKING:
    from modelaudit.calibration import Population

STRONG: dict[str, Any] = {"finding": Finding.STRONG, "target_labels": (3,)}


@pytest.fixture(scope="module")
def small() -> Population:
    return population()


def test_a_model_is_judged_as_a_scan_would(small: Population) -> None:
    assert judge(clean_models(1)[0], [small]).verdict.verdict is Verdict.CLEAN
    found = judge(attacked_model(), [small])
    assert (found.verdict.verdict, found.verdict.reason_code) == (Verdict.BACKDOORED, "MA-V101")
    assert found.combined.match is Match.MATCHED
    assert found.is_target_named


def test_without_a_population_the_same_evidence_needs_confirmation() -> None:
    found = judge(attacked_model(), [])
    assert (found.verdict.verdict, found.verdict.reason_code) == (Verdict.INCONCLUSIVE, "MA-V508")
    assert not found.is_target_named


def test_a_wrong_label_is_no_named_target(small: Population) -> None:
    assert not judge(attacked_model(target=4), [small]).is_target_named
    assert not judge(attacked_model(label_map="all", target=None), [small]).is_target_named
    mapped = [replace(o, pattern=Pattern.ALL_TO_ALL) for o in attacked_model().outcomes]
    everywhere = attacked_model(label_map="all", target=None, outcomes=tuple(mapped))
    assert judge(everywhere, [small]).is_target_named


def test_rates_count_clean_and_attacked_models_that_match(small: Population) -> None:
    fresh = [replace(m, id=f"b_{m.id}") for m in clean_models(7)]
    alarm = model("alarm", attacked_model().outcomes)
    odd = model("odd", (outcomes()[0], result("mbns", 90.0, **STRONG), outcomes()[2]))
    others = [
        replace(m, id=f"vgg_{m.id}", circumstances=replace(CIFAR, architecture="cifar_vgg16"))
        for m in clean_models(3)
    ]
    found = measure(
        [
            *fresh,
            alarm,
            odd,
            *others,
            attacked_model("hit"),
            attacked_model("miss", outcomes=outcomes()),
            attacked_model("weak", gate_passed=False),
        ],
        small,
        source="population B",
    )
    assert found == MeasuredRates(
        source="population B", clean=9, false_alarms=1, undecided=1, attacked=2, detected=1
    )


def test_models_of_the_population_itself_are_never_counted(small: Population) -> None:
    found = measure([*clean_models(), attacked_model()], small, source="itself")
    assert (found.clean, found.attacked) == (0, 0)


def test_a_clean_set_that_allows_no_verdict_leaves_the_model_undecided(small: Population) -> None:
    misfit = model("b", outcomes(), obstacles=("accuracy is too low",))
    assert measure([misfit], small, source="B").undecided == 1


def test_the_combined_score_alone_keeps_a_matched_model_from_clean(small: Population) -> None:
    high = model("b", (result("ban", 0.15), result("mbns", 9.0), result("mm_bd", 3.0)))
    found = judge(high, [small])
    assert (found.verdict.verdict, found.verdict.reason_code) == (Verdict.INCONCLUSIVE, "MA-V509")
    borrowed = judge(high, [replace(small, families=("cifar_vgg",))])
    assert borrowed.combined.score == found.combined.score
    assert borrowed.verdict.verdict is Verdict.CLEAN


def test_other_families_support_a_strong_finding_beside_a_matched_population(
    small: Population,
) -> None:
    found = judge(
        model("b", (result("ban", 0.07), result("mbns", 300.0, **STRONG), result("mm_bd", 4.0))),
        [small],
    )
    assert (found.verdict.verdict, found.verdict.reason_code) == (Verdict.BACKDOORED, "MA-V103")
    assert found.verdict.target_labels == (3,)
