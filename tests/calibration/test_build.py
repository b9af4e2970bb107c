from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from modelaudit.calibration import build, dumps, shipped_populations
from modelaudit.calibration.transforms import Transform, transformed
from modelaudit.errors import ConfigError
from modelaudit.results import FailedScan, Finding
from tests.helpers.calibration import (
    CIFAR,
    attacked_model,
    clean_models,
    model,
    outcomes,
    population,
    result,
)


def test_a_population_holds_every_models_transformed_scores() -> None:
    built = population()
    assert [s.id for s in built.scanners] == ["ban", "mbns", "mm_bd"]
    assert [s.transform for s in built.scanners] == ["log_odds", "log", "max_t"]
    assert (len(built.clean), len(built.attacked)) == (20, 1)
    first = next(m for m in built.models if m.id == "clean_00")
    for found, transform in zip(
        outcomes(0), (Transform.LOG_ODDS, Transform.LOG, Transform.MAX_T), strict=True
    ):
        assert first.statistics[found.id] == pytest.approx(transformed(found, transform))
    assert (first.classes, first.input_size, first.images) == (10, 32, 500)
    assert built.families == ("cifar_resnet",)
    assert built.bucket == CIFAR.bucket
    assert (built.clean_sets, built.hardware) == (("held-out",), ("a processor, cpu",))
    assert built.versions == {"torch": "2.15.0"}
    assert built.rates is None
    assert 0 < built.suspicious < built.strong


def test_the_order_of_the_models_changes_no_byte() -> None:
    models = [*clean_models(), attacked_model()]
    turned = list(models)
    Random(3).shuffle(turned)
    assert dumps(build(turned, id_="a").populations) == dumps(build(models, id_="a").populations)


def test_attacked_models_do_not_move_the_thresholds() -> None:
    (without,) = build(clean_models(), id_="a").populations
    assert (without.suspicious, without.strong) == (population().suspicious, population().strong)


def test_the_strong_threshold_lies_above_every_clean_model() -> None:
    odd = model("odd", (result("ban", 0.9), result("mbns", 3.2), result("mm_bd", 1.1)))
    (built,) = build([*clean_models(), odd], id_="a").populations
    from modelaudit.calibration.combine import null_of

    null = null_of(built.clean, ("ban", "mbns", "mm_bd"))
    assert null is not None
    assert built.strong >= max(null.scores)


def test_few_clean_models_are_a_warning_and_fewer_than_five_an_error() -> None:
    (note,) = population(19).notes
    assert note == (
        "only 19 clean models: empirical p-values below 1/20 do not exist, and the combined score "
        "supports no accusation"
    )
    assert population(20).notes == ()
    assert len(population(5).clean) == 5
    with pytest.raises(ConfigError, match="needs 5 clean models of one kind"):
        build(clean_models(4), id_="a")
    with pytest.raises(ConfigError, match="got 0 models"):
        build([], id_="a")


def test_models_that_do_not_fit_are_left_out_with_the_reason() -> None:
    others = [
        model("few", outcomes(), circumstances=replace(CIFAR, images=50)),
        model("misfit", outcomes(), obstacles=("accuracy is too low",)),
        attacked_model("weak", gate_passed=False),
        model("newer", (*outcomes()[:2], replace(outcomes()[2], version="2"))),
        model("broken", (FailedScan(id="ban", error="x"),)),
        model("gtsrb", outcomes(), circumstances=replace(CIFAR, classes=43)),
    ]
    built = build([*clean_models(), *others], id_="a")
    assert dict(built.left_out) == {
        "few": "too few clean images or classes",
        "misfit": "accuracy is too low",
        "weak": "its attack failed the acceptance gate",
        "newer": "another version or settings of mm_bd",
        "broken": "no scanner gave a score",
        "gtsrb": "1 clean models of its kind, a population needs 5",
    }
    assert len(built.populations[0].clean) == 20


def test_each_bucket_gets_a_population_of_its_own() -> None:
    signs = [
        replace(m, id=f"s{m.id}", circumstances=replace(CIFAR, classes=43, images=200))
        for m in clean_models(6)
    ]
    built = build([*signs, *clean_models()], id_="zoo").populations
    assert [p.id for p in built] == ["zoo-k5-i40-n500", "zoo-k21-i40-n200"]
    assert [len(p.clean) for p in built] == [20, 6]


def test_a_scanner_that_is_mostly_silent_is_left_out_and_a_seldom_gap_is_null() -> None:
    models = clean_models(12)
    rare = [
        replace(m, outcomes=(*m.outcomes, result("dde", 0.1))) if i < 5 else m
        for i, m in enumerate(models)
    ]
    gap = replace(
        rare[11], outcomes=(*outcomes(11)[:2], result("mm_bd", 3.0, finding=Finding.NO_POWER))
    )
    (built,) = build([*rare[:11], gap], id_="a").populations
    assert [s.id for s in built.scanners] == ["ban", "mbns", "mm_bd"]
    assert built.models[11].statistics["mm_bd"] is None


def test_uncalibrated_scanners_are_no_part_of_a_population() -> None:
    loud = [
        replace(m, outcomes=(*m.outcomes, result("loud", 9.0, is_calibrated=False)))
        for m in clean_models()
    ]
    (built,) = build(loud, id_="a").populations
    assert "loud" not in {s.id for s in built.scanners}


def test_one_model_scanned_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model 'clean_00' was scanned twice"):
        build([*clean_models(), clean_models(1)[0]], id_="a")


def test_the_shipped_population_separates_its_own_models() -> None:
    small = next(p for p in shipped_populations() if p.id == "cifar10-small-9")
    from modelaudit.calibration.combine import null_of

    null = null_of(small.clean, tuple(s.id for s in small.scanners))
    assert null is not None
    assert max(null.scores) < small.suspicious
    # What replaces the statistics that mbns reads is no longer told by it.
    plain = [m for m in small.attacked if m.attack != "bn_reparam"]
    assert len(plain) == 13
    assert min(null.score(m.statistics) for m in plain) > small.strong
