from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.calibration import MeasuredRates, assess, build, combined_score
from modelaudit.calibration.combine import null_of
from modelaudit.results import FailedScan, Finding, Match, SkippedScan
from tests.helpers.calibration import (
    CIFAR,
    attacked_model,
    attacked_outcomes,
    clean_models,
    outcomes,
    population,
    result,
)

if TYPE_CHECKING:
    from modelaudit.calibration import Population

STRONG: dict[str, Any] = {"finding": Finding.STRONG, "target_labels": (3,)}
RATES = MeasuredRates(
    source="population B", clean=30, false_alarms=1, undecided=2, attacked=40, detected=39
)


@pytest.fixture(scope="module")
def small() -> Population:
    return population()


def test_the_same_family_and_circumstances_match(small: Population) -> None:
    found = assess(outcomes(3), CIFAR, [small])
    assert (found.match, found.population, found.reason) == (Match.MATCHED, "small", "")
    assert found.clean_models == 20
    assert found.scanners == ("ban", "mbns", "mm_bd")
    assert found.missing == ()
    assert found.score == combined_score(outcomes(3), small)
    assert found.suspicious == pytest.approx(small.suspicious)
    assert found.strong == pytest.approx(small.strong)
    assert not found.is_suspicious


def test_another_depth_of_the_family_matches_and_another_family_is_borrowed(
    small: Population,
) -> None:
    deeper = replace(CIFAR, architecture="cifar_resnet34")
    assert assess(outcomes(), deeper, [small]).match is Match.MATCHED
    other = assess(outcomes(), replace(CIFAR, architecture="cifar_vgg16_bn"), [small])
    assert other.match is Match.BORROWED
    assert other.reason == "small holds cifar_resnet, no cifar_vgg"
    assert other.score is not None
    assert other.predictive_p_value is not None


def test_a_population_of_several_families_matches_each() -> None:
    vgg = [
        replace(m, id=f"v{m.id}", circumstances=replace(CIFAR, architecture="cifar_vgg16"))
        for m in clean_models(10)
    ]
    (pooled,) = build([*clean_models(10), *vgg], id_="both").populations
    assert pooled.families == ("cifar_resnet", "cifar_vgg")
    for name in ("cifar_resnet18", "cifar_vgg13_bn"):
        assert assess(outcomes(), replace(CIFAR, architecture=name), [pooled]).match == "matched"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 499}, "500 or more images instead of 200 to 499"),
        ({"input_size": 41}, "inputs of 40 or fewer pixels instead of 41 to 96"),
        ({"classes": 21}, "5 to 20 classes instead of 21 to 99"),
        ({"classes": 4}, "5 to 20 classes instead of 2 to 4"),
        ({"has_batchnorm": False}, "models with BatchNorm"),
        ({"has_labels": False}, "labelled images"),
        ({"images": 50}, "no scans of 10 classes with 50 clean images"),
    ],
)
def test_other_circumstances_do_not_fit_and_it_is_said_why(
    small: Population, changes: dict[str, Any], said: str
) -> None:
    found = assess(outcomes(), replace(CIFAR, **changes), [small])
    assert found.match is Match.NONE
    assert found.reason.endswith(f"the nearest, small, holds {said}")
    assert (found.population, found.score, found.p_value) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "version 1 of mbns instead of 2"),
        ({"config": {"steps": 4}}, "other settings of mbns"),
    ],
)
def test_another_version_or_configuration_does_not_fit(
    small: Population, changes: dict[str, Any], said: str
) -> None:
    changed = (outcomes()[0], result("mbns", 3.0, **changes), outcomes()[2])
    found = assess(changed, CIFAR, [small])
    assert found.match is Match.NONE
    assert said in found.reason


def test_without_any_population_that_is_said() -> None:
    found = assess(outcomes(), CIFAR, [])
    assert found.reason == "there is no reference population at all"


def test_the_first_that_matches_is_taken_and_a_match_before_a_borrowed_one(
    small: Population,
) -> None:
    mine, borrowed = replace(small, id="mine"), replace(small, id="vgg", families=("cifar_vgg",))
    assert assess(outcomes(), CIFAR, [mine, small]).population == "mine"
    assert assess(outcomes(), CIFAR, [borrowed, small]).population == "small"
    assert assess(outcomes(), CIFAR, [borrowed]).population == "vgg"


def test_the_nearest_population_is_the_one_that_differs_least(small: Population) -> None:
    far = replace(small, id="far", bucket=replace(small.bucket, images=100, classes=100))
    near = replace(small, id="near", bucket=replace(small.bucket, images=100))
    assert "the nearest, near," in assess(outcomes(), CIFAR, [far, near]).reason


@pytest.mark.parametrize(
    "gone",
    [
        SkippedScan(id="mm_bd", reason="needs 5 classes", is_declared_need=True),
        FailedScan(id="mm_bd", error="RuntimeError: broken"),
        result("mm_bd", 9.0, finding=Finding.NO_POWER),
        result("mm_bd", None),
        result("mm_bd", 9.0, is_calibrated=False),
    ],
)
def test_a_silent_scanner_is_left_out_on_both_sides(small: Population, gone: Any) -> None:
    found = assess((*outcomes(2)[:2], gone), CIFAR, [small])
    assert found.scanners == ("ban", "mbns")
    assert found.missing == ("mm_bd",)
    null = null_of(small.clean, ("ban", "mbns"))
    assert null is not None
    assert found.score == combined_score(outcomes(2)[:2], small)
    assert found.suspicious == pytest.approx(null.threshold(0.01))


def test_no_score_at_all_fits_nothing(small: Population) -> None:
    found = assess((FailedScan(id="ban", error="x"),), CIFAR, [small])
    assert found.match is Match.NONE
    assert "too few clean models with the scores that were found here" in found.reason
    assert combined_score((), small) is None


def test_an_empirical_p_value_is_shown_only_where_it_could_reach_alpha(small: Population) -> None:
    found = assess(attacked_outcomes(), CIFAR, [small])
    assert found.p_value == pytest.approx(1 / 21)
    assert assess(attacked_outcomes(), CIFAR, [small], alpha=0.01).p_value is None
    few = assess(attacked_outcomes(), CIFAR, [population(10)])
    assert few.p_value is None
    assert few.predictive_p_value is not None
    assert few.predictive_p_value < 1e-3


def test_a_backdoored_model_is_far_above_the_clean_ones(small: Population) -> None:
    found = assess(attacked_outcomes(), CIFAR, [small])
    assert found.is_suspicious
    assert found.score is not None
    assert found.strong is not None
    assert found.score > found.strong


def test_a_lone_strong_finding_does_not_support_itself(small: Population) -> None:
    ban, _, margin = outcomes(2)
    found = assess((ban, result("mbns", 300.0, **STRONG), margin), CIFAR, [small])
    assert found.score is not None
    assert found.strong is not None
    assert found.score > found.strong
    assert found.supported == ()


def test_other_families_high_scores_support_a_strong_finding(small: Population) -> None:
    high = (result("ban", 0.07), result("mbns", 300.0, **STRONG), result("mm_bd", 4.0))
    assert assess(high, CIFAR, [small]).supported == ("mbns",)
    borrowed = replace(small, families=("cifar_vgg",))
    assert assess(high, CIFAR, [borrowed]).supported == ()
    assert assess(high, CIFAR, [population(19)]).supported == ()


def test_support_needs_a_strong_finding(small: Population) -> None:
    high = (result("ban", 0.07), result("mbns", 300.0), result("mm_bd", 4.0))
    assert assess(high, CIFAR, [small]).supported == ()


def test_two_scanners_of_one_family_do_not_support_each_other() -> None:
    family = {"family": "bn_statistics"}
    models = [
        replace(m, outcomes=(m.outcomes[1], result("dde", 0.05 + 0.001 * i, **family)))
        for i, m in enumerate(clean_models())
    ]
    (pair,) = build(models, id_="pair").populations
    high = (result("mbns", 300.0, **STRONG), result("dde", 3.0, **family))
    assert assess(high, CIFAR, [pair]).supported == ()


def test_the_measured_rate_is_shown_with_its_interval(small: Population) -> None:
    measured = replace(small, rates=RATES)
    found = assess(outcomes(), CIFAR, [measured])
    assert found.false_positive_rate == pytest.approx(1 / 30)
    assert found.false_positive_models == 30
    assert found.false_positive_interval is not None
    low, high = found.false_positive_interval
    # scipy.stats.binomtest(1, 30).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((0.000844, 0.172169), abs=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        (*outcomes()[:2], FailedScan(id="mm_bd", error="x")),
        (*outcomes()[:2], SkippedScan(id="mm_bd", reason="time", is_declared_need=False)),
        outcomes()[:2],
        (*outcomes()[:2], replace(outcomes()[2], is_calibrated=False)),
        (*outcomes(), result("dde", 0.3)),
    ],
)
def test_the_rate_of_another_rule_is_not_shown(small: Population, changed: Any) -> None:
    found = assess(changed, CIFAR, [replace(small, rates=RATES)])
    assert found.match is Match.MATCHED
    assert found.false_positive_rate is None


@pytest.mark.parametrize(
    "also",
    [
        SkippedScan(id="dde", reason="needs a mixture", is_declared_need=True),
        result("dde", None, finding=Finding.NO_POWER),
        result("loud", 9.0, is_calibrated=False),
        FailedScan(id="loud", error="x", is_calibrated=False),
    ],
)
def test_what_has_no_vote_leaves_the_rate(small: Population, also: Any) -> None:
    found = assess((*outcomes(), also), CIFAR, [replace(small, rates=RATES)])
    assert found.false_positive_rate == pytest.approx(1 / 30)


def test_a_borrowed_population_lends_no_rate(small: Population) -> None:
    borrowed = replace(small, families=("cifar_vgg",), rates=RATES)
    assert assess(outcomes(), CIFAR, [borrowed]).false_positive_rate is None


def test_no_clean_models_measured_is_no_rate(small: Population) -> None:
    empty = replace(RATES, clean=0, false_alarms=0, undecided=0)
    assert assess(outcomes(), CIFAR, [replace(small, rates=empty)]).false_positive_rate is None


def test_a_scanner_in_another_form_is_left_out_of_the_combined_score(small: Population) -> None:
    changed = (*outcomes(2)[:2], replace(outcomes(2)[2], version="9"))
    assert combined_score(changed, small) == combined_score(outcomes(2)[:2], small)


def test_the_population_ranks_its_attacked_model_above_every_clean_one(small: Population) -> None:
    scores = [combined_score(m.outcomes, small) for m in clean_models()]
    top = combined_score(attacked_model().outcomes, small)
    assert top is not None
    assert all(score is not None and score < top for score in scores)
