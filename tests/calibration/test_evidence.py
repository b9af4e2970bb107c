from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from modelaudit.calibration import models_of, rows_of
from modelaudit.errors import ConfigError
from modelaudit.results import FailedScan, Finding, Obstacle, Pattern, SkippedScan
from tests.helpers.calibration import attacked_model, clean_models, model, outcomes, result

OUTCOMES = (
    result(
        "ban",
        0.2,
        finding=Finding.STRONG,
        target_labels=(3,),
        pattern=Pattern.ALL_TO_ONE,
        is_confirmed=True,
        threshold=0.04,
        p_value=0.01,
    ),
    SkippedScan(id="dde", reason="needs a mixture", is_declared_need=True),
    FailedScan(id="mm_bd", error="RuntimeError: broken", is_calibrated=False),
)

OPEN = Obstacle(reason_code="MA-V507", reason="preprocessing is open", next_step="give it")


def rows(*changes: Any) -> list[dict[str, Any]]:
    """Return rows as JSON gives them back."""
    found: list[dict[str, Any]] = json.loads(json.dumps(rows_of(model("one", OUTCOMES))))
    for row in found:
        for part, values in changes:
            row[part].update(values)
    return found


def test_a_model_survives_its_rows() -> None:
    hindered = model("two", OUTCOMES, obstacles=("few images",), obstacles_to_clean=(OPEN,))
    for each in (model("one", OUTCOMES), hindered, attacked_model(), *clean_models(2)):
        assert models_of(json.loads(json.dumps(rows_of(each)))) == (each,)


def test_rows_of_several_models_are_put_together() -> None:
    models = clean_models(3)
    mixed = [row for group in zip(*map(rows_of, models), strict=True) for row in group]
    assert models_of(mixed) == tuple(models)


def test_variants_degraded_sets_and_other_populations_are_passed_over() -> None:
    assert models_of(rows(("key", {"variant": "paper_code"}))) == ()
    assert models_of(rows(("clean_set", {"degradation": "snow"}))) == ()
    assert models_of(rows(("model", {"population": "B"})), population="A") == ()
    assert len(models_of(rows(("model", {"population": "A"})), population="A")) == 1


def test_another_clean_set_or_seed_is_another_scan() -> None:
    both = [*rows(), *rows(("key", {"seed": 1})), *rows(("key", {"clean_set_sha256": "d"}))]
    assert len(models_of(both)) == 3


def test_batchnorm_is_told_by_the_row_or_by_who_missed_it() -> None:
    plain = rows()
    for row in plain:
        del row["model"]["has_batchnorm"]
    assert models_of(plain)[0].circumstances.has_batchnorm
    lacking = copy.deepcopy(plain)
    lacking[1]["result"]["reason"] = "needs BatchNorm with running statistics, the model has none"
    assert not models_of(lacking)[0].circumstances.has_batchnorm
    assert not models_of(rows(("model", {"has_batchnorm": False})))[0].circumstances.has_batchnorm


def test_a_null_among_the_classes_is_no_number() -> None:
    found = rows()
    found[0]["result"]["per_class"] = [None, 1.0]
    (one,) = models_of(found)
    first = one.outcomes[0]
    assert not isinstance(first, (SkippedScan, FailedScan))
    assert [value == value for value in first.per_class] == [False, True]


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("result", "finding", "odd", "'odd' is not a valid Finding"),
        ("result", "score", "high", "expected a number, got 'high'"),
        ("result", "score", True, "expected a number, got True"),
        ("result", "target_labels", 3, "expected a list, got 3"),
        ("result", "target_labels", [1.5], "expected a whole number, got 1.5"),
        ("result", "cost", 3, "expected an object, got 3"),
    ],
)
def test_a_row_that_is_none_is_refused_by_its_number(
    part: str, key: str, value: Any, said: str
) -> None:
    found = [row for each in (rows(), rows()) for row in each]
    found[3][part][key] = value
    with pytest.raises(ConfigError) as caught:
        models_of(found)
    assert str(caught.value).startswith("row 4 is no row of `modelaudit bench scan`: expected")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("key", "KeyError: 'key'"),
        ("model", "KeyError: 'model'"),
        ("clean_set", "KeyError: 'clean_set'"),
        ("outcome", "expected an outcome"),
        ("result", "expected an outcome"),
    ],
)
def test_a_row_without_a_part_is_refused(gone: str, said: str) -> None:
    found = rows()
    del found[0][gone]
    with pytest.raises(ConfigError, match=f"row 1 is no row .*{said}"):
        models_of(found, population="A" if gone == "model" else None)


@pytest.mark.parametrize(
    ("obstacles", "said"),
    [
        ("text", "expected a list of obstacles, got 'text'"),
        (3, "expected a list of obstacles, got 3"),
        ({}, "expected a list of obstacles, got {}"),
        (["text"], "expected an obstacle with reason_code, reason, next_step, got 'text'"),
        ([{"reason_code": "MA-V507", "reason": "open"}], "expected an obstacle with"),
        ([{"reason_code": 507, "reason": "open", "next_step": ""}], "expected an obstacle with"),
    ],
)
def test_obstacles_that_are_none_are_refused_by_the_rows_number(obstacles: Any, said: str) -> None:
    found = rows()
    found[1]["obstacles_to_clean"] = obstacles
    with pytest.raises(ConfigError) as caught:
        models_of(found)
    assert str(caught.value).startswith("row 2 is no row of `modelaudit bench scan`: ")
    assert said in str(caught.value)


def test_an_unknown_outcome_is_refused() -> None:
    found = rows()
    found[0]["outcome"] = "maybe"
    with pytest.raises(ConfigError, match=r"expected an outcome .*, got 'maybe'"):
        models_of(found)


def test_the_index_of_the_clean_models_moves_their_scores() -> None:
    assert outcomes(0) != outcomes(1)
