from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.repairs import PruneMode, RepairData
from modelaudit.repairs.prune_mbns import PruneMbnsConfig, PruneMbnsRepair
from modelaudit.repairs.prune_mbns_paper_code import (
    PruneMbnsPaperCodeConfig,
    PruneMbnsPaperCodeRepair,
    mismatched_channels,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import (
    TARGET,
    contaminate,
    fit_statistics,
    profile_of,
    stamped,
    trained,
    trained_clean_set,
)
from tests.helpers.repairs import logits_of, repair_context, repair_set


def fitted(*, width: int = 32) -> tuple[Suspect, RepairData]:
    """Return a suspect whose running statistics are those of its clean images."""
    suspect = models.suspect_of(models.tiny_bn(width=width))
    data = repair_set(suspect)
    fit_statistics(suspect, data.images)
    return suspect, repair_set(suspect)


def mismatched(suspect: Suspect, data: RepairData, u: float = 3.0) -> list[tuple[str, int]]:
    return mismatched_channels(suspect, profile_of(suspect, data.as_trained), deviations=u)


@pytest.mark.parametrize("kind", [PruneMbnsRepair, PruneMbnsPaperCodeRepair])
@pytest.mark.parametrize("width", [8, 32, 64])
def test_statistics_of_these_very_images_prune_nothing(
    kind: type[PruneMbnsRepair] | type[PruneMbnsPaperCodeRepair], width: int
) -> None:
    suspect, data = fitted(width=width)
    before = logits_of(suspect, data.images)
    result = kind().repair(suspect, data, context=repair_context(suspect, data))
    assert result.pruned == ()
    assert result.mask is None
    assert torch.equal(before, logits_of(models.suspect_of(result.module), data.images))
    if kind is PruneMbnsRepair:
        assert "nothing was pruned" in result.notes[0]


@pytest.mark.parametrize("u", [0.1, 1.0, 3.0])
def test_rounding_is_no_outlier_at_any_u(u: float) -> None:
    suspect, data = fitted(width=64)
    assert mismatched(suspect, data, u) == []


def test_a_mean_eight_deviations_off_is_returned_alone() -> None:
    suspect, data = fitted()
    norm = suspect.module.get_submodule("norm2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 64
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean[11] += 8 * norm.running_var[11].sqrt()
    assert mismatched(suspect, data) == [("norm2", 11)]


def test_eight_channels_are_too_few_for_three_deviations() -> None:
    suspect, data = fitted(width=8)
    contaminate(suspect, "norm1", 2, rate=0.3, shift=20.0)
    # One outlier's z among eight channels is 2.5 at most.
    assert [n for n in mismatched(suspect, data) if n[0] == "norm1"] == []
    assert ("norm1", 2) in mismatched(suspect, data, 2.4)


def test_the_released_code_zeroes_gamma_of_every_outlier() -> None:
    suspect, data = fitted()
    contaminate(suspect, "norm2", 11, rate=0.3, shift=20.0)
    expected = mismatched(suspect, data)
    result = PruneMbnsPaperCodeRepair(variant="paper_code").repair(
        suspect, data, context=repair_context(suspect, data)
    )
    assert result.mask is not None
    assert list(result.mask.neurons) == expected
    assert ("norm2", 11) in expected
    assert result.mask.mode is PruneMode.OFFICIAL
    assert result.id == "prune_mbns@paper_code"
    gamma = result.module.get_submodule("norm2").get_parameter("weight")
    beta = result.module.get_submodule("norm2").get_parameter("bias")
    assert gamma[11].item() == 0
    assert beta[11].item() == suspect.module.get_submodule("norm2").get_parameter("bias")[11].item()


def like(module: nn.Module, suspect: Suspect) -> Suspect:
    return Suspect(
        module,
        preprocessing=suspect.preprocessing,
        input_size=suspect.input_size,
        input_channels=suspect.input_channels,
        num_classes=suspect.num_classes,
    )


def test_the_triggers_channels_go_and_the_backdoor_with_it() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    # One of 60 validation images is more than the default's one in a hundred.
    context = dataclasses.replace(repair_context(suspect, data), max_accuracy_drop=0.06)
    config = PruneMbnsConfig(max_accuracy_drop=0.06)
    result = PruneMbnsRepair(config).repair(suspect, data, context=context)
    away = clean.labels != TARGET
    triggered = stamped(clean.images[away])
    before = float((logits_of(suspect, triggered).argmax(1) == TARGET).double().mean())
    repaired = like(result.module, suspect)
    after = float((logits_of(repaired, triggered).argmax(1) == TARGET).double().mean())
    assert before > 0.9
    assert after < 0.3
    assert result.measurements.accuracy_drop <= 0.06
    counts = result.details["displaced_to"]
    assert isinstance(counts, list)
    assert counts.index(max(counts)) == TARGET  # type: ignore[type-var]  # numbers
    assert 0 < result.pruned_neurons <= 12


def test_it_ends_where_less_is_left_than_is_asked_for() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    config = PruneMbnsConfig(max_remaining=1.0)
    result = PruneMbnsRepair(config).repair(suspect, data, context=repair_context(suspect, data))
    assert result.pruned == ()


def test_a_clean_model_stays_as_it_is() -> None:
    suspect = trained(is_backdoored=False)
    clean = trained_clean_set(is_backdoored=False)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    result = PruneMbnsRepair().repair(suspect, data, context=repair_context(suspect, data))
    assert result.pruned == ()
    assert result.measurements.agreement == 1.0


def test_labels_batch_size_and_profile_change_nothing() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    with suspect.borrowed():
        own = suspect.predict(clean.images)
    data = repair_set(suspect, images=clean.images, labels=own)
    results = [
        PruneMbnsRepair().repair(suspect, data, context=repair_context(suspect, data)),
        PruneMbnsRepair().repair(suspect, data, context=repair_context(batch_size=37)),
        PruneMbnsRepair().repair(
            suspect, dataclasses.replace(data, has_labels=False), context=repair_context()
        ),
    ]
    assert results[0].pruned_neurons > 0
    assert results[0].pruned == results[1].pruned == results[2].pruned


def test_the_cost_is_as_estimated_at_most() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    repair = PruneMbnsRepair()
    result = repair.repair(suspect, data, context=repair_context(suspect, data))
    estimate = repair.estimate(suspect, data)
    measured = 2 * len(data.validation)
    assert result.cost.forward <= estimate.forward + measured
    assert result.cost.forward_backward <= estimate.forward_backward


def test_a_channel_that_leads_nowhere_stays() -> None:
    suspect, data = fitted()
    contaminate(suspect, "norm2", 11, rate=0.3, shift=20.0)
    config = PruneMbnsConfig(moved=1.0, poisoned_shares=(1.0,))
    result = PruneMbnsRepair(config).repair(suspect, data, context=repair_context(suspect, data))
    assert result.pruned == ()
    assert "lead nowhere" in result.notes[0]


def test_dead_channels_are_survived() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            for parameter in suspect.module.get_submodule(name).parameters():
                parameter.zero_()
    data = repair_set(suspect)
    result = PruneMbnsRepair().repair(suspect, data, context=repair_context())
    assert result.pruned == ()
    assert PruneMbnsPaperCodeRepair().repair(suspect, data, context=repair_context()).pruned == ()


def test_a_model_without_running_statistics_is_refused() -> None:
    suspect = models.suspect_of(models.tiny_batch_statistics())
    for repair in (PruneMbnsRepair(), PruneMbnsPaperCodeRepair()):
        with pytest.raises(UnmetNeedError, match="running statistics"):
            repair.repair(suspect, repair_set(suspect), context=repair_context())


@pytest.mark.parametrize(
    "changes",
    [{"poisoned_shares": ()}, {"poisoned_shares": (1.5,)}, {"traced": -1.0}, {"overshoot": 0.5}],
)
def test_settings_out_of_range_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        PruneMbnsConfig(**changes)  # type: ignore[arg-type]  # a test's shorthand
    with pytest.raises(ConfigError, match="deviations"):
        PruneMbnsPaperCodeConfig(deviations=-1)
