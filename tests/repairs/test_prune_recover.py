from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError
from modelaudit.repairs import PruneMask, PruneMode, RepairData
from modelaudit.repairs.prune_recover import (
    PruneRecoverConfig,
    PruneRecoverRepair,
    _settle,
    _weights,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import TARGET, stamped, trained, trained_clean_set
from tests.helpers.repairs import logits_of, repair_context, repair_set

QUICK_MODE = PruneMode.ZERO
QUICK = PruneRecoverConfig(rounds=1, epochs=1, max_accuracy_drop=0.1, final_accuracy_drop=0.06)


def like(module: nn.Module, suspect: Suspect) -> Suspect:
    return Suspect(
        module,
        preprocessing=suspect.preprocessing,
        input_size=suspect.input_size,
        input_channels=suspect.input_channels,
        num_classes=suspect.num_classes,
    )


def planted(*, is_backdoored: bool) -> tuple[Suspect, RepairData]:
    suspect = trained(is_backdoored=is_backdoored)
    clean = trained_clean_set(is_backdoored=is_backdoored)
    return suspect, repair_set(suspect, images=clean.images, labels=clean.labels)


def test_the_backdoor_goes_and_the_accuracy_comes_back() -> None:
    suspect, data = planted(is_backdoored=True)
    context = dataclasses.replace(repair_context(suspect, data), max_accuracy_drop=0.06)
    result = PruneRecoverRepair(QUICK).repair(suspect, data, context=context)
    away = data.labels != TARGET
    triggered = stamped(data.images[away])
    after = logits_of(like(result.module, suspect), triggered).argmax(1)
    assert float((logits_of(suspect, triggered).argmax(1) == TARGET).double().mean()) > 0.9
    assert float((after == TARGET).double().mean()) < 0.3
    assert result.measurements.accuracy_drop <= 0.06
    assert result.mask is not None
    assert result.mask.holds(result.module)
    assert len(result.history) <= 1
    # The traces stay in the file.
    old = dict(suspect.module.named_buffers())
    assert all(torch.equal(old[n], b) for n, b in result.module.named_buffers())


def test_what_is_accurate_enough_once_pruned_is_not_trained() -> None:
    suspect, data = planted(is_backdoored=True)
    context = dataclasses.replace(repair_context(suspect, data), max_accuracy_drop=1.0)
    easy = dataclasses.replace(
        QUICK,
        max_accuracy_drop=1.0,
        max_fraction=1.0,
        max_remaining=0.4,
        final_accuracy_drop=1.0,
        final_target_drop=1.0,
    )
    result = PruneRecoverRepair(easy).repair(suspect, data, context=context)
    assert result.pruned_neurons > 0
    assert result.history == ()
    assert result.details["recovered"] == 0.0


def test_a_clean_model_stays_as_it_is() -> None:
    suspect, data = planted(is_backdoored=False)
    result = PruneRecoverRepair(QUICK).repair(suspect, data, context=repair_context(suspect, data))
    assert result.pruned == ()
    assert result.measurements.agreement == 1.0
    assert "nothing was pruned" in result.notes[0]


@pytest.mark.parametrize(
    ("floors", "place"),
    [((0.0, 0.0), 0.0), ((0.99, 0.0), 0.75), ((0.0, 0.99), 0.75), ((2.0, 0.0), 1.0)],
)
def test_as_little_is_recovered_as_accuracy_and_target_ask_for(
    floors: tuple[float, float], place: float
) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)  # its labels are the suspect's own: accuracy 1 where it is itself
    target = int(data.labels[0])
    recovered = _weights(suspect.module)
    # Up to halfway between a head and its opposite the answers are the wrong way round.
    pruned = {n: -w if n.startswith("head") else w for n, w in recovered.items()}
    found, curve = _settle(suspect, pruned, data, repair_context(), target=target, floors=floors)
    assert found == place
    assert curve[-1][0] == place
    expected = {n: torch.lerp(pruned[n], w, place) for n, w in recovered.items()}
    assert all(torch.equal(expected[n], w) for n, w in _weights(suspect.module).items())


def test_masks_of_two_rounds_join() -> None:
    one = PruneMask(neurons=(("a", 1),), mode=QUICK_MODE, rows=(("a.weight", (1,)),))
    two = PruneMask(neurons=(("a", 3),), mode=QUICK_MODE, rows=(("a.weight", (3,)),))
    both = one.joined(two)
    assert both.by_layer() == (("a", (1, 3)),)
    norm = nn.BatchNorm2d(4)
    module = nn.ModuleDict({"a": norm})
    both.apply(module)
    assert norm.weight.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert one.holds(module)


def test_settings_of_the_search_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"PruneRecoverConfig\.poisoned_shares"):
        PruneRecoverConfig(poisoned_shares=())
    with pytest.raises(ConfigError, match=r"PruneRecoverConfig\.displaced_weight"):
        PruneRecoverConfig(displaced_weight=-1.0)
