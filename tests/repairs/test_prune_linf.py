from __future__ import annotations

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, RepairError
from modelaudit.repairs.prune_linf import (
    PruneLinfConfig,
    PruneLinfPaperCodeConfig,
    PruneLinfPaperCodeRepair,
    PruneLinfRepair,
    linf_norms,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import vary
from tests.helpers.repairs import logits_of, repair_context, repair_set


def varied() -> Suspect:
    """Return a suspect that spreads random images over its classes."""
    suspect = models.suspect_of(models.tiny_bn())
    vary(suspect, models.images(120))
    return suspect


def test_norms_by_hand() -> None:
    features = torch.tensor([[[[1.0, -3.0]], [[0.0, 2.0]]], [[[5.0, 0.0]], [[-1.0, 1.0]]]])
    assert linf_norms(features).tolist() == [4.0, 1.5]


def test_norms_scale_with_the_features() -> None:
    features = models.draw((4, 6, 3, 3))
    torch.testing.assert_close(linf_norms(3.0 * features), 3.0 * linf_norms(features))


def test_the_paper_preset_prunes_the_largest_norms_up_to_its_limit() -> None:
    suspect = varied()
    data = repair_set(suspect)
    repair = PruneLinfPaperCodeRepair(
        PruneLinfPaperCodeConfig(step_fraction=0.125, max_accuracy_drop=0.45),
        variant="paper_code",
    )
    result = repair.repair(suspect, data, context=repair_context())
    with suspect.borrowed(), torch.no_grad():
        norms = linf_norms(suspect.features(data.images[data.work]))
    ((_, channels),) = result.pruned
    assert 0 < len(channels) < 16
    assert len(channels) % 2 == 0
    largest = norms.argsort(descending=True)[: len(channels)]
    assert sorted(largest.tolist()) == list(channels)
    assert result.measurements.accuracy_drop <= 0.45


def test_one_more_step_would_have_gone_over_the_limit() -> None:
    suspect = varied()
    data = repair_set(suspect)
    small, large = (
        PruneLinfPaperCodeRepair(
            PruneLinfPaperCodeConfig(step_fraction=0.0625, max_accuracy_drop=drop)
        ).repair(suspect, data, context=repair_context())
        for drop in (0.2, 1.0)
    )
    assert small.measurements.accuracy_drop <= 0.2
    assert 0 < small.pruned_neurons < large.pruned_neurons == 16


def test_the_classifier_is_blind_to_what_was_pruned() -> None:
    suspect = varied()
    data = repair_set(suspect)
    config = PruneLinfPaperCodeConfig(step_fraction=0.125, max_accuracy_drop=0.45)
    result = PruneLinfPaperCodeRepair(config).repair(suspect, data, context=repair_context())
    ((_, channels),) = result.pruned
    repaired = models.suspect_of(result.module)
    assert repaired.split is not None
    with torch.no_grad():
        features = repaired.features(data.images)
        noisy = features.clone()
        noisy[:, list(channels)] = models.draw(tuple(noisy[:, list(channels)].shape))
        assert torch.equal(repaired.head(noisy), repaired.head(features))


def test_the_default_leaves_usual_channels_alone() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    config = PruneLinfConfig(deviations=50.0, max_accuracy_drop=1.0)
    result = PruneLinfRepair(config).repair(
        suspect, data, context=repair_context(max_accuracy_drop=1.0)
    )
    assert result.pruned == ()
    before = logits_of(suspect, data.images)
    assert torch.equal(before, logits_of(models.suspect_of(result.module), data.images))


def test_the_default_removes_an_outlier_that_nobody_needs() -> None:
    net = models.tiny_bn()
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        net.get_submodule("norm2").get_parameter("weight")[3] = 40.0
        head.weight[:, 12:16] *= 1e-6
    suspect = models.suspect_of(net)
    data = repair_set(suspect)
    result = PruneLinfRepair().repair(suspect, data, context=repair_context())
    ((_, channels),) = result.pruned
    assert 3 in channels
    assert result.measurements.accuracy_drop <= 0.02


def test_a_model_without_feature_maps_raises() -> None:
    suspect = models.suspect_of(models.tiny_without_split())
    with pytest.raises(RepairError, match="split"):
        PruneLinfRepair().repair(suspect, repair_set(suspect), context=repair_context())


def test_settings_out_of_range_raise() -> None:
    with pytest.raises(ConfigError, match="step_fraction"):
        PruneLinfPaperCodeConfig(step_fraction=0)
