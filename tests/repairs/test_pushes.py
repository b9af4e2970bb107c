"""Pushes of a scan: read, drawn, and unlearned."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError
from modelaudit.repairs import place_search
from modelaudit.repairs.pushes import DrawnPushes, amounts_of, edits_of
from modelaudit.repairs.targets import Push, leading_pushes, push_of
from modelaudit.repairs.unlearn_triggers import UnlearnTriggersConfig, UnlearnTriggersRepair
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.suspect import SiteEdit
from tests.helpers import models
from tests.helpers.planted import TARGET, pattern_images, stamped
from tests.helpers.training import (
    backdoored,
    context_of,
    finding_of,
    pattern_data,
    rates,
    same_state,
)

#: No stand-in is worth its price.
NO_STAND_INS = UnlearnTriggersConfig(
    starts=1,
    searches=1,
    search_steps=5,
    steps=60,
    mask_price=1000.0,
    warp_limit=0.0,
    learning_rate=0.01,
    crop=False,
    flip=False,
)


def found(push: Push, **changes: object) -> ScannerResult:
    named = replace(finding_of(Finding.STRONG, (TARGET,)), id="mbns", evidence={"push": push})
    return replace(named, **changes)  # type: ignore[arg-type]  # a test's shorthand


@functools.cache
def displaced_by_the_trigger() -> Push:
    """Return what the trigger adds to the inputs of the planted net's BatchNorm channels."""
    suspect = backdoored()
    pictures, _ = pattern_images(200, 8)
    seen: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in suspect.module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].mean((0, 2, 3)))
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for batch in (pictures, stamped(pictures)):
            suspect.module(batch)
    for hook in hooks:
        hook.remove()
    return tuple(
        (name, index, float(after[index] - before[index]))
        for name, (before, after) in seen.items()
        for index in range(len(before))
    )


def led_share(module: nn.Module, push: Push) -> float:
    """Return the share of other classes' images that a push leads to the target."""
    suspect = models.suspect_of(module)
    pictures, truth = pattern_images(300, 9)
    with suspect.borrowed(), suspect.edited(edits_of(amounts_of(push, suspect))):
        return float((suspect.predict(pictures[truth != TARGET]) == TARGET).double().mean())


def test_a_push_is_read_from_the_evidence() -> None:
    assert push_of(found((("a", 1, 0.5), ("b", 0, -2.0)))) == (("a", 1, 0.5), ("b", 0, -2.0))
    as_json = found((), evidence={"push": [["a", 1, 0.5], ["b", 0, -2]]})
    assert push_of(as_json) == (("a", 1, 0.5), ("b", 0, -2.0))
    assert push_of(finding_of(Finding.STRONG, (TARGET,))) == ()
    assert push_of(found((), evidence={"push": None})) == ()


def test_only_pushes_that_lead_somewhere_are_heard() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    push = (("norm1", 1, 0.5),)
    heard = found(push)
    assert leading_pushes((heard,), suspect) == {"mbns": push}
    to_all = replace(heard, target_labels=(), pattern=Pattern.ALL_TO_ALL)
    assert leading_pushes((to_all,), suspect) == {"mbns": push}
    for deaf in (
        replace(heard, target_labels=(), pattern=None),
        replace(heard, finding=Finding.NONE),
        replace(heard, is_calibrated=False),
        replace(heard, is_refuted=True),
        replace(heard, evidence={}),
    ):
        assert leading_pushes((deaf,), suspect) == {}


@pytest.mark.parametrize("stranger", [("norm9", 0, 1.0), ("norm1", 8, 1.0), ("norm1", -1, 1.0)])
def test_a_push_of_another_model_is_refused(stranger: tuple[str, int, float]) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with pytest.raises(ConfigError, match="this model's channels from mbns"):
        leading_pushes((found((stranger,)),), suspect)


def test_amounts_stand_at_their_channels() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    amounts = amounts_of((("norm1", 1, 0.5), ("norm1", 3, -2.0)), suspect)
    assert list(amounts) == ["norm1"]
    assert amounts["norm1"].tolist() == [0.0, 0.5, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0]


def test_pushes_are_drawn_within_their_range_in_some_layers() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    pictures = models.images(3)
    drawn: list[dict[str, float]] = []

    pushes = (("norm1", 0, 1.0), ("norm2", 0, 2.0))
    bank = DrawnPushes(suspect, (pushes,), draws=torch.Generator().manual_seed(0))
    edited = suspect.edited

    def watch(edits: dict[str, SiteEdit]) -> object:
        drawn.append({name: float(edit.push[0]) for name, edit in edits.items()})  # type: ignore[index]  # given
        return edited(edits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(suspect), "edited", lambda _, edits: watch(edits))
        for _ in range(200):
            assert bank(pictures).shape == (3, suspect.num_classes)
    layers = [frozenset(one) for one in drawn]
    assert {frozenset({"norm1"}), frozenset({"norm2"}), frozenset({"norm1", "norm2"})} == {*layers}
    factors = [one["norm1"] for one in drawn if "norm1" in one]
    assert 0.25 <= min(factors) < 0.35
    assert 1.4 < max(factors) <= 1.5
    # Both layers by the same factor.
    both = [one for one in drawn if len(one) == 2]
    assert all(one["norm2"] == pytest.approx(2 * one["norm1"]) for one in both)


def test_pushes_are_unlearned_where_no_stand_in_works() -> None:
    suspect, push = backdoored(), displaced_by_the_trigger()
    assert led_share(suspect.module, push) > 0.9
    made = UnlearnTriggersRepair(NO_STAND_INS).repair(
        suspect, pattern_data(), context=context_of(findings=(found(push),), max_accuracy_drop=0.05)
    )
    assert any("no stand-in for a trigger works" in note for note in made.notes)
    assert made.trained_against == ("mbns",)
    assert led_share(made.module, push) < 0.3
    (accuracy, success), (accuracy_after, success_after) = rates(suspect.module), rates(made.module)
    assert accuracy_after > accuracy - 0.05
    assert success_after < success / 2
    assert "pushes unlearned: those of mbns" in made.notes


def test_without_their_weight_pushes_are_left_alone() -> None:
    suspect = backdoored()
    made = UnlearnTriggersRepair(replace(NO_STAND_INS, push_weight=0.0)).repair(
        suspect,
        pattern_data(),
        context=context_of(findings=(found(displaced_by_the_trigger()),)),
    )
    assert same_state(made.module, suspect.module)
    assert made.trained_against == ()


def test_the_passes_are_those_of_the_estimate_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 144 pixels the planted patch takes more than of 1,024.
    monkeypatch.setattr(place_search, "LARGE_PATCH", 0.3)
    suspect, data = backdoored(), pattern_data()
    config = replace(NO_STAND_INS, mask_price=20.0, search_steps=60, starts=2, warp_limit=1 / 32)
    repair = UnlearnTriggersRepair(config)
    made = repair.repair(
        suspect, data, context=context_of(findings=(found(displaced_by_the_trigger()),))
    )
    assert made.cost.forward_backward == repair.estimate(suspect, data).forward_backward
