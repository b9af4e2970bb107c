from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from modelaudit.errors import (
    BudgetExceededError,
    DegenerateStatisticError,
    DtypeError,
    ScannerError,
    ShapeError,
)
from modelaudit.results import Cost, Finding, ScannerResult, SkippedScan
from modelaudit.scanners import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import derive_seed
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    depth: int = 3
    levels: tuple[float, ...] = (0.1, 0.2)


class FakeScanner(Scanner[FakeConfig]):
    id = "fake"
    version = "7"
    family = "fakes"
    summary = "says what it is told"
    reference = "none"
    config_type = FakeConfig
    is_calibrated = True
    says: ClassVar[Observation] = Observation(finding=Finding.NONE)

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        suspect.predict(clean.images[:5])
        return self.says


class ForbiddenScanner(FakeScanner):
    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        raise AssertionError("a skipped scanner must not run")


def _setup(n: int = 10, *, has_labels: bool = True) -> tuple[Suspect, CleanImages, ScanContext]:
    suspect = models.suspect_of(models.tiny_plain())
    clean = clean_set(suspect, models.images(n), has_labels=has_labels)
    return suspect, clean, context_of(suspect, clean)


def _scan(says: Observation, **attributes: object) -> ScannerResult:
    kind = type("TestScanner", (FakeScanner,), {"says": says, **attributes})
    suspect, clean, context = _setup()
    result = kind().scan(suspect, clean, context=context)
    assert isinstance(result, ScannerResult)
    return result


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ({"requires_batchnorm": True}, "needs BatchNorm with running statistics"),
        ({"requires_labels": True}, "needs labelled clean images"),
        ({"min_images": 11}, "needs 11 clean images, got 10"),
        ({"min_classes": 5}, "needs 5 classes, the model has 4"),
    ],
)
def test_an_unmet_need_is_a_skip_before_any_work(need: dict[str, object], words: str) -> None:
    kind = type("NeedyScanner", (ForbiddenScanner,), need)
    suspect, clean, context = _setup(has_labels=False)
    passes = dataclasses.replace(suspect.passes)
    outcome = kind().scan(suspect, clean, context=context)
    assert isinstance(outcome, SkippedScan)
    assert outcome.id == "fake"
    assert outcome.is_declared_need
    assert outcome.reason.startswith(words)
    assert suspect.passes == passes


def test_a_missing_split_is_a_skip() -> None:
    suspect = models.suspect_of(models.tiny_without_split())
    clean = clean_set(suspect, models.images(10))
    kind = type("SplittingScanner", (ForbiddenScanner,), {"requires_split": True})
    outcome = kind().scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, SkippedScan)
    assert outcome.reason.startswith("needs a features/head split")


def test_met_needs_are_no_skip() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(10))
    needs = {
        "requires_batchnorm": True,
        "requires_split": True,
        "requires_labels": True,
        "requires_gradients": True,
        "min_images": 10,
        "min_classes": 4,
    }
    scanner = type("NeedyScanner", (FakeScanner,), needs)()
    assert scanner.unmet_need(suspect, clean) is None


def test_a_skip_names_the_variant() -> None:
    suspect, clean, context = _setup()
    kind = type("NeedyScanner", (ForbiddenScanner,), {"min_images": 99})
    outcome = kind(variant="paper_code").scan(suspect, clean, context=context)
    assert outcome.id == "fake@paper_code"


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Observation(finding=Finding.NONE, target_labels=(4,)), "named targets"),
        (Observation(finding=Finding.NONE, target_labels=(-1,)), "named targets"),
        (Observation(finding=Finding.NONE, score=math.nan), "not finite"),
        (Observation(finding=Finding.NONE, p_value=math.inf), "not finite"),
        (Observation(finding=Finding.NONE, per_class=(1.0, math.nan, 1.0, 1.0)), "not finite"),
        (Observation(finding=Finding.NONE, per_class=(1.0, 2.0)), "2 class scores for 4 outputs"),
        (Observation(finding=Finding.NONE, class_p_values=(0.5, 0.5)), "2 p-values for 4 outputs"),
        (Observation(finding=Finding.NONE, class_p_values=(0.5, 1.1, 0.0, 1.0)), "outside 0 to 1"),
        (
            Observation(finding=Finding.NONE, class_p_values=(0.5, math.nan, 0.0, 1.0)),
            "outside 0 to 1",
        ),
        (Observation(finding=Finding.STRONG, score=1.0, threshold=2.0), "below 2.0"),
        (Observation(finding=Finding.STRONG, score=1.0), "is strong with score"),
        (Observation(finding=Finding.STRONG, threshold=1.0), "is strong with score"),
    ],
)
def test_a_claim_that_was_not_measured_is_refused(claim: Observation, words: str) -> None:
    with pytest.raises(ScannerError, match=words):
        _scan(claim)


def test_a_result_carries_what_the_scanner_saw_and_who_it_is() -> None:
    seen = Observation(
        finding=Finding.STRONG,
        target_labels=(3,),
        score=2.0,
        score_name="how much",
        threshold=2.0,
        p_value=0.5,
        is_confirmed=True,
        is_refuted=True,
        per_class=(0.0, 1.0, 2.0, 3.0),
        per_class_name="each",
        class_p_values=(0.9, 0.5, 0.2, 0.1),
        evidence={"a": 1},
        notes=("noted",),
    )
    result = _scan(seen, sees_all_to_all=True)
    for field in dataclasses.fields(Observation):
        assert getattr(result, field.name) == getattr(seen, field.name)
    assert (result.id, result.version, result.family) == ("fake", "7", "fakes")
    assert result.sees_all_to_all
    assert result.config == {"depth": 3, "levels": [0.1, 0.2]}
    assert result.seed == derive_seed(0, "fake")
    assert result.false_positive_rate is None


def test_the_cost_is_what_the_scan_added_to_the_counters() -> None:
    result = _scan(Observation(finding=Finding.NONE))
    assert result.cost.forward == 5
    assert result.cost.forward_backward == 0
    assert result.cost.seconds > 0


@pytest.mark.parametrize(
    ("scanner", "expected"),
    [
        (FakeScanner(), True),
        (FakeScanner(variant="paper_code"), False),
        (FakeScanner(FakeConfig(depth=4), config_set=("depth",)), False),
    ],
)
def test_only_the_calibrated_settings_are_calibrated(
    scanner: FakeScanner, *, expected: bool
) -> None:
    suspect, clean, context = _setup()
    result = scanner.scan(suspect, clean, context=context)
    assert isinstance(result, ScannerResult)
    assert result.is_calibrated is expected
    assert result.config_set == scanner.config_set


def test_an_uncalibrated_scanner_stays_so() -> None:
    assert not _scan(Observation(finding=Finding.NONE), is_calibrated=False).is_calibrated


def test_the_default_estimate_is_free() -> None:
    suspect, clean, _ = _setup()
    assert FakeScanner().estimate(suspect, clean) == Cost()


def test_the_model_is_in_eval_mode_and_frozen_during_the_scan() -> None:
    seen: list[tuple[bool, bool]] = []

    class LookingScanner(FakeScanner):
        def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
            wants = any(p.requires_grad for p in suspect.module.parameters())
            seen.append((suspect.module.training, wants))
            return self.says

    suspect, clean, context = _setup()
    suspect.module.train()
    LookingScanner().scan(suspect, clean, context=context)
    assert seen == [(False, False)]
    assert suspect.module.training


def _clean(**changes: object) -> CleanImages:
    images = models.images(6)
    values: dict[str, object] = {
        "images": images,
        "labels": torch.tensor([0, 1, 2, 3, 0, 1]),
        "has_labels": True,
        "search": torch.tensor([0, 1, 2]),
        "judge": torch.tensor([3, 4, 5]),
        "predictions": torch.tensor([0, 1, 2, 3, 1, 1]),
        "as_trained": images,
    }
    return CleanImages(**{**values, **changes})  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize("field", ["images", "as_trained", "mixture"])
@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
def test_images_outside_the_unit_interval_are_refused(field: str, value: float) -> None:
    images = models.images(6)
    images[2, 1, 3, 3] = value
    with pytest.raises(ShapeError, match=rf"expected {field} in \[0, 1\]"):
        _clean(**{field: images})


@pytest.mark.parametrize("field", ["images", "as_trained", "mixture"])
def test_images_of_another_shape_or_dtype_are_refused(field: str) -> None:
    with pytest.raises(ShapeError, match=rf"expected {field} \(N, C, H, W\), got \(3, 8, 8\)"):
        _clean(**{field: models.images(6)[0]})
    with pytest.raises(DtypeError, match=f"expected floating {field}"):
        _clean(**{field: torch.zeros(6, 3, 8, 8, dtype=torch.uint8)})


def test_the_ends_of_the_unit_interval_are_in_it() -> None:
    images = models.images(6)
    images[0], images[1] = 0.0, 1.0
    assert torch.equal(_clean(images=images).images, images)


def test_no_images_are_in_range() -> None:
    assert len(_clean(mixture=torch.zeros(0, 3, 8, 8)).images) == 6


def test_images_are_judged_where_the_model_is_right() -> None:
    clean = _clean()
    images, labels = clean.judged()
    assert torch.equal(images, clean.images[[3, 5]])
    assert labels.tolist() == [3, 1]


def test_a_model_that_is_right_about_no_held_out_image_cannot_be_judged() -> None:
    with pytest.raises(DegenerateStatisticError, match="3 held-out clean images"):
        _clean(predictions=torch.full((6,), 2)).judged()


def test_the_deadline_raises_once_it_has_passed() -> None:
    suspect, clean, context = _setup()
    context.check_deadline()
    context_of(suspect, clean, deadline=time.monotonic() + 1000).check_deadline()
    with pytest.raises(BudgetExceededError, match="raise --budget"):
        context_of(suspect, clean, deadline=time.monotonic() - 1).check_deadline()
