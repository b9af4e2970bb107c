from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.repairs import PruneMode, RepairData
from modelaudit.repairs.prune_dde import PruneDdeConfig, PruneDdeRepair
from modelaudit.repairs.prune_dde_paper_code import (
    PruneDdePaperCodeConfig,
    PruneDdePaperCodeRepair,
    two_moded_channels,
)
from modelaudit.suspect import Profile, SiteProfile, Suspect
from tests.helpers import models
from tests.helpers.planted import (
    SIZE,
    TARGET,
    pattern_images,
    stamped,
    trained,
    trained_clean_set,
)
from tests.helpers.repairs import logits_of, repair_context, repair_set


def layer(peaks: Tensor) -> Profile:
    """Return the profile of one layer with these peaks ``(N, D)``."""
    suspect = models.suspect_of(models.tiny_bn(width=peaks.shape[1] // 2))
    site = next(site for site in suspect.sites if site.channels == peaks.shape[1])
    recorded = SiteProfile(
        site=site, sums=peaks.double(), squares=peaks.double(), peaks=peaks, positions=1
    )
    return Profile(
        logits=torch.zeros(len(peaks), 4), features=None, sites=(recorded,), seconds_per_image=0.0
    )


def bimodal(n: int = 5000) -> Tensor:
    """Return 63 Gaussian channels and one, the twentieth, with a tenth six deviations up."""
    peaks = models.draw((n, 64))
    peaks[: n // 10, 20] += 6.0
    return peaks


def test_the_bimodal_channel_is_returned_alone() -> None:
    found = two_moded_channels(layer(bimodal()), deviations=3.0, width=0.1)
    assert found == [("norm2", 20)]


def test_scale_and_shift_of_activations_change_nothing() -> None:
    peaks = bimodal()
    one = two_moded_channels(layer(peaks), deviations=3.0, width=0.1)
    two = two_moded_channels(layer(3.0 * peaks - 7.0), deviations=3.0, width=0.1)
    assert one == two


def test_gaussian_layers_lose_next_to_nothing() -> None:
    pruned = sum(
        len(two_moded_channels(layer(models.draw((500, 64), seed)), deviations=3.0, width=0.01))
        for seed in range(20)
    )
    assert pruned <= 0.005 * 20 * 64


def test_a_dead_channel_is_not_returned() -> None:
    peaks = bimodal()
    peaks[:, 3] = 1.5
    assert two_moded_channels(layer(peaks), deviations=3.0, width=0.1) == [("norm2", 20)]


def mixed_data(suspect: Suspect, *, poisoned: int = 40) -> RepairData:
    clean = trained_clean_set(is_backdoored=True)
    mixture, _ = pattern_images(400, 11)
    mixture[:poisoned] = stamped(mixture[:poisoned])
    return repair_set(suspect, images=clean.images, labels=clean.labels, mixture=mixture)


def triggered_share(suspect: Suspect) -> float:
    images, labels = pattern_images(200, 12)
    away = labels != TARGET
    return float((logits_of(suspect, stamped(images[away])).argmax(1) == TARGET).double().mean())


def test_two_moded_neurons_go_and_the_backdoor_with_them() -> None:
    suspect = trained(is_backdoored=True)
    data = mixed_data(suspect)
    # One of 60 validation images is more than the default's one in a hundred.
    config = PruneDdeConfig(max_accuracy_drop=0.06)
    context = repair_context(max_accuracy_drop=0.06)
    result = PruneDdeRepair(config).repair(suspect, data, context=context)
    repaired = Suspect(
        result.module, preprocessing=suspect.preprocessing, input_size=SIZE, num_classes=6
    )
    assert triggered_share(suspect) > 0.9
    assert triggered_share(repaired) < 0.4
    assert result.measurements.accuracy_drop <= 0.06
    assert result.details["driven_images"] == pytest.approx(40, abs=8)


def test_clean_mixtures_prune_nothing() -> None:
    suspect = trained(is_backdoored=False)
    data = mixed_data(suspect, poisoned=0)
    result = PruneDdeRepair().repair(suspect, data, context=repair_context())
    assert result.pruned == ()
    assert "nothing was pruned" in result.notes[0]


def test_the_released_code_zeroes_gamma_over_one_batch() -> None:
    suspect = trained(is_backdoored=True)
    data = mixed_data(suspect)
    result = PruneDdePaperCodeRepair(
        PruneDdePaperCodeConfig(images=100), variant="paper_code"
    ).repair(suspect, data, context=repair_context())
    assert result.mask is None or result.mask.mode is PruneMode.OFFICIAL
    assert result.cost.forward == 100 + 2 * len(data.validation)


def test_clean_images_alone_are_refused() -> None:
    suspect = trained(is_backdoored=True)
    data = dataclasses.replace(mixed_data(suspect), mixture=None)
    for repair in (PruneDdeRepair(), PruneDdePaperCodeRepair()):
        with pytest.raises(UnmetNeedError, match="--mixture"):
            repair.repair(suspect, data, context=repair_context())


def test_a_small_mixture_is_refused() -> None:
    suspect = trained(is_backdoored=True)
    full = mixed_data(suspect)
    assert full.mixture is not None
    data = dataclasses.replace(full, mixture=full.mixture[:199])
    with pytest.raises(UnmetNeedError, match="200 mixture images, got 199"):
        PruneDdeRepair().repair(suspect, data, context=repair_context())


def test_the_cost_is_as_estimated_at_most() -> None:
    suspect = trained(is_backdoored=True)
    data = mixed_data(suspect)
    repair = PruneDdeRepair()
    result = repair.repair(suspect, data, context=repair_context())
    estimate = repair.estimate(suspect, data)
    assert result.cost.forward <= estimate.forward + 2 * len(data.validation)
    assert result.cost.forward_backward <= estimate.forward_backward


def test_settings_out_of_range_raise() -> None:
    with pytest.raises(ConfigError, match="traced"):
        PruneDdeConfig(traced=0.5)
    with pytest.raises(ConfigError, match="width"):
        PruneDdePaperCodeConfig(width=0)
