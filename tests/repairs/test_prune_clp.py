from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.repairs.prune_clp import (
    PruneClpConfig,
    PruneClpPaperCodeRepair,
    PruneClpRepair,
    lipschitz_outliers,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import contaminate
from tests.helpers.repairs import repair_context, repair_set


def loud(*neurons: tuple[str, int], scale: float = 50.0, width: int = 16) -> Suspect:
    """Return a net with some filters of much larger norm, their input's channels kept."""
    net = models.tiny_bn(width=width)
    with torch.no_grad():
        for name, index in neurons:
            net.get_submodule(name).get_parameter("weight")[index] *= scale
    return models.suspect_of(net)


def test_channels_with_a_large_bound_are_found_the_most_deviating_first() -> None:
    suspect = loud(("conv2", 5), ("conv1", 2))
    assert set(lipschitz_outliers(suspect, deviations=3.0)) == {("norm1", 2), ("norm2", 5)}
    # One outlier among 32 deviates further than one among 16.
    assert lipschitz_outliers(suspect, deviations=3.0)[0] == ("norm2", 5)


def test_eight_channels_never_have_an_outlier_at_three_deviations() -> None:
    suspect = loud(("conv1", 2), scale=1e6, width=8)
    assert all(name != "norm1" for name, _ in lipschitz_outliers(suspect, deviations=3.0))


def test_reparameterised_statistics_change_nothing() -> None:
    suspect = loud(("conv2", 5))
    before = lipschitz_outliers(suspect, deviations=2.0)
    contaminate(suspect, "norm2", 5, rate=0.3, shift=8.0, keeps_logits=True)
    contaminate(suspect, "norm2", 7, rate=0.3, shift=8.0, keeps_logits=True)
    assert lipschitz_outliers(suspect, deviations=2.0) == before


def test_norms_that_no_convolution_feeds_take_no_part() -> None:
    suspect = models.suspect_of(models.tiny_densenet())
    fed = {site.name for site in suspect.sites if site.upstream is not None}
    assert {name for name, _ in lipschitz_outliers(suspect, deviations=0.1)} <= fed


def test_the_default_keeps_what_the_accuracy_needs() -> None:
    suspect = loud(("conv2", 5), scale=50.0)
    data = repair_set(suspect)
    paper = PruneClpPaperCodeRepair(variant="paper_code").repair(
        suspect, data, context=repair_context()
    )
    assert paper.pruned == (("norm2", (5,)),)
    assert paper.measurements.accuracy_drop > 0.02
    ours = PruneClpRepair().repair(suspect, data, context=repair_context())
    assert ours.pruned == ()
    assert "1 outlying channels stay" in ours.notes[0]
    generous = PruneClpRepair(PruneClpConfig(max_accuracy_drop=1.0)).repair(
        suspect, data, context=repair_context(max_accuracy_drop=1.0)
    )
    assert generous.pruned == paper.pruned


def test_a_removal_that_costs_nothing_is_made() -> None:
    suspect = loud(("conv2", 5))
    head = suspect.module.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        # The head reads four places of each channel; blind to channel 5, nobody misses it.
        head.weight[:, 20:24] = 0
    data = repair_set(suspect)
    result = PruneClpRepair().repair(suspect, data, context=repair_context())
    assert result.pruned == (("norm2", (5,)),)
    assert result.measurements.agreement == 1.0
    assert result.notes == ()
    assert result.cost.forward <= (
        PruneClpRepair().estimate(suspect, data).forward + 2 * len(data.validation)
    )


def test_labels_are_not_needed() -> None:
    suspect = loud(("conv2", 5))
    data = repair_set(suspect)
    blind = dataclasses.replace(data, has_labels=False)
    one = PruneClpRepair().repair(suspect, data, context=repair_context())
    two = PruneClpRepair().repair(suspect, blind, context=repair_context())
    assert one.pruned == two.pruned


def test_a_model_without_batchnorm_is_refused() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    with pytest.raises(UnmetNeedError, match="needs BatchNorm"):
        PruneClpRepair().repair(suspect, repair_set(suspect), context=repair_context())


def test_settings_out_of_range_raise() -> None:
    with pytest.raises(ConfigError, match="deviations"):
        PruneClpConfig(deviations=0)
