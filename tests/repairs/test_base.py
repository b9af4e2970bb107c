from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, RepairError, ShapeError, UnmetNeedError
from modelaudit.functional.paired import paired_interval
from modelaudit.functional.statistics import clopper_pearson
from modelaudit.repairs import (
    Change,
    PruneMode,
    Repair,
    RepairContext,
    RepairData,
    divide,
    prune_mask,
    repair_data,
)
from modelaudit.repairs._measure import measure
from modelaudit.suspect import state_digest
from tests.helpers import models
from tests.helpers.planted import clean_set, profile_of
from tests.helpers.repairs import logits_of, repair_context, repair_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingConfig:
    amount: float = 0.5


class Scripted(Repair[NothingConfig]):
    """Does to the copy what a test says."""

    id = "scripted"
    version = "7"
    summary = "a test's"
    reference = "none"
    config_type = NothingConfig
    does: ClassVar[Callable[[Suspect], Change]]

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        return type(self).does(model)


def scripted(does: Callable[[Suspect], Change], **attributes: object) -> Scripted:
    kind = type("Scripted", (Scripted,), {"does": staticmethod(does), **attributes})
    made = kind()
    assert isinstance(made, Scripted)
    return made


def nothing(_model: Suspect) -> Change:
    return Change()


def prunes(model: Suspect) -> Change:
    mask = prune_mask(model, [("norm1", 1), ("norm2", 3)])
    mask.apply(model.module)
    return Change(mask=mask, notes=("two gone",), details={"why": "test"})


def test_the_suspect_stays_bit_for_bit_and_the_result_is_another_module() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    suspect.module.train()
    suspect.module.get_submodule("norm1").eval()
    suspect.module.get_submodule("conv1").requires_grad_(False)
    data = repair_set(suspect)
    before = state_digest(suspect.module)
    result = scripted(prunes).repair(suspect, data, context=repair_context())
    assert state_digest(suspect.module) == before
    assert result.module is not suspect.module
    assert not any(child.training for child in result.module.modules())
    assert all(p.grad is None for p in result.module.parameters())
    flags = {n: p.requires_grad for n, p in suspect.module.named_parameters()}
    assert {n: p.requires_grad for n, p in result.module.named_parameters()} == flags


def test_the_suspect_stays_bit_for_bit_when_the_repair_raises() -> None:
    suspect = models.suspect_of(models.tiny_bn())

    def breaks(model: Suspect) -> Change:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.zero_()
        raise KeyboardInterrupt

    before = state_digest(suspect.module)
    with pytest.raises(KeyboardInterrupt):
        scripted(breaks).repair(suspect, repair_set(suspect), context=repair_context())
    assert state_digest(suspect.module) == before


def test_a_result_says_what_was_done() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    result = scripted(prunes).repair(suspect, data, context=repair_context(seed=3))
    assert result.id == "scripted"
    assert result.version == "7"
    assert result.pruned == (("norm1", (1,)), ("norm2", (3,)))
    assert result.pruned_neurons == 2
    assert result.notes == ("two gone",)
    assert result.details == {"why": "test", "prune_mode": "zero"}
    assert result.config == {"amount": 0.5}
    # Before, after, and the one image that finds the filters.
    assert result.cost.forward == 2 * len(data.validation) + 1
    assert result.cost.forward_backward == 0


def test_channels_pruned_otherwise_are_listed_too() -> None:
    suspect = models.suspect_of(models.tiny_bn())

    def blinds(_model: Suspect) -> Change:
        return Change(pruned=(("pool", (0, 4)),))

    result = scripted(blinds).repair(suspect, repair_set(suspect), context=repair_context())
    assert result.pruned_neurons == 2
    assert result.details == {"prune_mode": "columns"}


@pytest.mark.parametrize("mode", list(PruneMode))
def test_a_result_says_which_mode_of_pruning_it_rests_on(mode: PruneMode) -> None:
    suspect = models.suspect_of(models.tiny_bn())

    def prunes_so(model: Suspect) -> Change:
        mask = prune_mask(model, [("norm1", 1)], mode=mode)
        mask.apply(model.module)
        return Change(mask=mask)

    result = scripted(prunes_so).repair(suspect, repair_set(suspect), context=repair_context())
    assert result.details == {"prune_mode": mode.value}
    untouched = scripted(nothing).repair(suspect, repair_set(suspect), context=repair_context())
    assert untouched.details == {}


def test_a_repaired_state_loads_strictly_and_gives_the_same_logits() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    result = scripted(prunes).repair(suspect, data, context=repair_context())
    fresh = models.tiny_bn(seed=9)
    fresh.load_state_dict(result.module.state_dict(), strict=True)
    repaired = models.suspect_of(result.module)
    loaded = models.suspect_of(fresh)
    assert torch.equal(logits_of(repaired, data.images), logits_of(loaded, data.images))


def test_measurements_are_over_the_validation_images() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    labels = data.labels.clone()
    labels[data.validation[:6]] = (labels[data.validation[:6]] + 1) % models.CLASSES
    data = dataclasses.replace(data, labels=labels)
    seen = scripted(nothing).repair(suspect, data, context=repair_context()).measurements
    count = len(data.validation)
    assert seen.images == count
    assert seen.accuracy_before == seen.accuracy_after == (count - 6) / count
    assert seen.interval_before is not None
    assert seen.interval_before[0] < (count - 6) / count < seen.interval_before[1]
    assert seen.agreement == 1.0
    assert seen.accuracy_drop == 0.0


def test_measure_counts_by_hand() -> None:
    before = torch.tensor([0, 1, 2, 3, 0])
    after = torch.tensor([0, 1, 2, 0, 1])
    labels = torch.tensor([0, 1, 0, 0, 0])
    seen = measure(before, after, labels, has_labels=True)
    assert seen.accuracy_before == 3 / 5
    assert seen.accuracy_after == 3 / 5
    assert seen.agreement == 3 / 5
    unlabelled = measure(before, after, labels, has_labels=False)
    assert unlabelled.accuracy_before is None
    assert unlabelled.interval_after is None
    assert unlabelled.accuracy_drop == pytest.approx(2 / 5)
    # Only the first model is right on image 4, only the second on image 3.
    assert (seen.lost, seen.won) == (1, 1)
    assert seen.standard_error == pytest.approx(math.sqrt(2) / 5)
    assert seen.interval_drop == paired_interval(both=2, first_only=1, second_only=1, neither=1)
    # Without labels what changes is lost, and the interval is that of one share.
    assert (unlabelled.lost, unlabelled.won) == (2, 0)
    assert unlabelled.standard_error == pytest.approx(math.sqrt(0.4 * 0.6 / 5))
    assert unlabelled.interval_drop == clopper_pearson(2, 5)


def test_two_wrong_labels_lose_and_win_nothing() -> None:
    seen = measure(
        torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([0, 0]), has_labels=True
    )
    assert (seen.agreement, seen.lost, seen.won, seen.standard_error) == (0.5, 0, 0, 0.0)
    low, high = seen.interval_drop
    assert low < 0.0 < high


def test_without_labels_the_notes_say_so() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect, has_labels=False)
    result = scripted(nothing).repair(suspect, data, context=repair_context())
    assert "own predictions" in result.notes[0]
    assert result.measurements.accuracy_before is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"requires_batchnorm": True}, "needs BatchNorm"),
        ({"requires_labels": True}, "needs labelled"),
        ({"requires_mixture": True}, "--mixture"),
        ({"min_images": 500}, "needs 500 clean images, got 120"),
    ],
)
def test_an_unmet_need_raises_before_any_pass(attributes: dict[str, object], reason: str) -> None:
    suspect = models.suspect_of(models.tiny_plain())
    data = repair_set(suspect, has_labels=False)
    passes = dataclasses.replace(suspect.passes)

    def never(_model: Suspect) -> Change:
        raise AssertionError

    with pytest.raises(UnmetNeedError, match=reason):
        scripted(never, **attributes).repair(suspect, data, context=repair_context())
    assert suspect.passes == passes


def changed_buffer(model: Suspect) -> Change:
    buffer = dict(model.module.named_buffers())["norm1.running_mean"]
    buffer[0] += 1e-6
    return Change()


def claims_too_much(model: Suspect) -> Change:
    return Change(mask=prune_mask(model, [("norm1", 1)]))


def not_finite(model: Suspect) -> Change:
    with torch.no_grad():
        model.module.get_submodule("head").get_parameter("weight")[0] = torch.nan
    return Change()


def other_keys(model: Suspect) -> Change:
    model.module.register_buffer("extra", torch.zeros(1))
    return Change()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (changed_buffer, "changed the buffer 'norm1.running_mean' without training"),
        (claims_too_much, "pruned that still act"),
        (not_finite, "not finite in 'head.weight'"),
        (other_keys, "changed the names or shapes"),
        (lambda _: Change(history=(1.0, float("nan"))), "diverged"),
    ],
)
def test_a_false_claim_raises(does: Callable[[Suspect], Change], message: str) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with pytest.raises(RepairError, match=message):
        scripted(does).repair(suspect, repair_set(suspect), context=repair_context())


def test_a_trainer_may_change_buffers() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    trainer = scripted(changed_buffer, is_training=True)
    result = trainer.repair(suspect, repair_set(suspect), context=repair_context())
    assert not torch.equal(
        dict(result.module.named_buffers())["norm1.running_mean"],
        dict(suspect.module.named_buffers())["norm1.running_mean"],
    )


def test_a_shared_profile_is_used_and_a_missing_one_made() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    seen: list[torch.Tensor] = []
    contexts = [repair_context(), repair_context(suspect, data)]
    costs = []
    for context in contexts:
        repair = scripted(nothing)

        def looks(model: Suspect, repair: Scripted = repair, used: object = context) -> Change:
            assert isinstance(used, RepairContext)
            seen.append(repair.profile(model, data, used).logits)
            return Change()

        type(repair).does = staticmethod(looks)
        costs.append(repair.repair(suspect, data, context=context).cost.forward)
    torch.testing.assert_close(seen[0], seen[1])
    assert costs[0] == costs[1] + len(data.images)


def test_a_profile_of_other_images_raises() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    context = RepairContext(profile=profile_of(suspect, models.images(30)))
    with pytest.raises(ConfigError, match="120"):
        scripted(nothing).repair(suspect, repair_set(suspect), context=context)


def test_the_division_is_four_to_one_in_every_class_and_follows_from_the_seed() -> None:
    labels = torch.arange(500) % 10
    work, validation = divide(labels, seed=1)
    assert len(work) == 400
    assert torch.bincount(labels[validation]).tolist() == [10] * 10
    assert sorted([*work.tolist(), *validation.tolist()]) == list(range(500))
    again = divide(labels, seed=1)
    assert torch.equal(again[1], validation)
    assert not torch.equal(divide(labels, seed=2)[1], validation)


def test_classes_of_few_images_give_a_fifth_overall() -> None:
    _, validation = divide(torch.arange(150) % 50, seed=0)
    assert len(validation) == 30


def test_fewer_than_a_hundred_images_are_both_parts() -> None:
    work, validation = divide(torch.arange(99) % 3, seed=0)
    assert torch.equal(work, validation)
    assert len(work) == 99
    assert len(set(divide(torch.arange(100) % 3, seed=0)[1].tolist())) == 20


def test_a_clean_set_becomes_repair_data() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(120), mixture=models.images(10))
    data = repair_data(clean, seed=4)
    assert data.images is clean.images
    assert data.mixture is clean.mixture
    assert data.is_divided
    small = repair_data(clean_set(suspect, models.images(20)), seed=4)
    assert not small.is_divided


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.full((120, 3, 8, 8), 1.5)}, "images in"),
        ({"mixture": torch.zeros(3, 8, 8)}, "mixture"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "120 images"),
        ({"validation": torch.tensor([500])}, "validation to index"),
        ({"work": torch.empty(0, dtype=torch.int64)}, "work to index"),
    ],
)
def test_unusable_images_raise(changes: dict[str, torch.Tensor], message: str) -> None:
    data = repair_set(models.suspect_of(models.tiny_bn()))
    with pytest.raises(ShapeError, match=message):
        dataclasses.replace(data, **changes)  # type: ignore[arg-type]  # a test's shorthand


def test_a_context_out_of_range_raises() -> None:
    with pytest.raises(ConfigError, match="max_accuracy_drop"):
        RepairContext(max_accuracy_drop=1.5)


def test_a_model_with_tied_weights_is_copied_with_the_tie() -> None:
    net = models.tiny_plain()
    net.add_module("again", net.get_submodule("conv2"))
    suspect = models.suspect_of(net)
    result = scripted(nothing).repair(suspect, repair_set(suspect), context=repair_context())
    copied = copy.copy(result.module)
    assert isinstance(copied, nn.Module)
    assert copied.get_submodule("again") is copied.get_submodule("conv2")


def test_what_an_earlier_repair_pruned_stays_so() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    mask = prune_mask(suspect, [("norm1", 1)])

    def revives(model: Suspect) -> Change:
        mask.apply(model.module)
        with torch.no_grad():
            model.module.get_submodule("norm1").get_parameter("bias")[1] = 0.1
        return Change()

    context = dataclasses.replace(repair_context(), pruned=mask)
    with pytest.raises(RepairError, match="revived neurons that had been pruned before"):
        scripted(revives).repair(suspect, data, context=context)
    scripted(revives).repair(suspect, data, context=repair_context())


def test_the_recall_of_every_class_is_measured() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    before, after = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 0, 0, 2, 1])
    found = measure(before, after, labels, has_labels=True)
    assert [(r.label, r.images) for r in found.recalls] == [(0, 3), (2, 2)]
    assert [r.before for r in found.recalls] == pytest.approx([2 / 3, 1.0])
    assert [r.after for r in found.recalls] == pytest.approx([1.0, 0.5])
    assert found.worst == found.recalls[1]
    # Without labels the suspect's predictions are what a class is.
    own = measure(before, after, labels, has_labels=False)
    assert [(r.label, r.images, r.before) for r in own.recalls] == [
        (0, 2, 1.0),
        (1, 1, 1.0),
        (2, 2, 1.0),
    ]
