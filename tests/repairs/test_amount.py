from __future__ import annotations

import dataclasses

import pytest
import torch

from modelaudit.repairs import PruneMode, prune_mask
from modelaudit.repairs._amount import Answers, affordable, edits_without
from tests.helpers import models
from tests.helpers.planted import gate_images, gate_suspect
from tests.helpers.repairs import logits_of, repair_context, repair_set


@pytest.mark.parametrize("mode", list(PruneMode))
def test_edits_act_as_pruning_does(mode: PruneMode) -> None:
    suspect = models.suspect_of(models.tiny_resnet())
    neurons = [("layer1.0.bn1", 1), ("layer2.0.bn2", 0), ("layer2.0.bn2", 3)]
    images = models.images(6)
    with suspect.borrowed(), suspect.edited(edits_without(suspect, neurons, mode)):
        edited = logits_of(suspect, images)
    prune_mask(suspect, neurons, mode=mode).apply(suspect.module)
    assert models.distance(edited, logits_of(suspect, images)) < 1e-5


def test_accuracy_is_over_the_validation_images() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(120)
    data = repair_set(suspect, images=images, labels=labels)
    answers = Answers(suspect, data, repair_context())
    assert answers.accuracy(()) == 1.0
    # Class 3's own channel: its images can no longer be told.
    without = answers.accuracy([("norm", 3)])
    share = float((labels[data.validation] == 3).double().mean())
    assert without == pytest.approx(1.0 - share)


def test_the_amount_is_the_last_that_the_accuracy_allows() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    data = repair_set(suspect, images=images, labels=labels)
    ordered = [("norm", 5), ("norm", 0), ("norm", 1)]
    amount = affordable(suspect, ordered, data, repair_context(), max_drop=0.01)
    # The trigger's channel costs nothing, any class's channel a fifth.
    assert amount.count == 1
    assert amount.curve[0] == (0, 1.0)
    assert all(accuracy < 0.99 for count, accuracy in amount.curve if count > 1)


def test_the_runs_budget_bounds_the_pruners_own() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    data = repair_set(suspect, images=images, labels=labels)
    ordered = [("norm", 0), ("norm", 1)]
    wide = repair_context(max_accuracy_drop=0.3)
    assert affordable(suspect, ordered, data, wide, max_drop=0.25).count == 1
    assert affordable(suspect, ordered, data, wide, max_drop=0.1).count == 0
    narrow = repair_context(max_accuracy_drop=0.05)
    assert affordable(suspect, ordered, data, narrow, max_drop=0.25).count == 0


def test_a_budget_of_one_image_allows_one_image() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(500)
    data = repair_set(suspect, images=images, labels=labels)
    # One of 100 validation images is of a class whose channel goes.
    kept = data.validation[labels[data.validation] != 0]
    one = data.validation[labels[data.validation] == 0][:1]
    data = dataclasses.replace(data, validation=torch.cat([kept, one, kept[:19]]))
    assert len(data.validation) == 100
    amount = affordable(suspect, [("norm", 0)], data, repair_context(), max_drop=0.01)
    assert amount.count == 1


def test_an_empty_list_prunes_nothing() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    amount = affordable(suspect, [], repair_set(suspect), repair_context(), max_drop=0.1)
    assert amount.count == 0
    assert len(amount.curve) == 1
