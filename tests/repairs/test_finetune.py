"""Plain fine-tuning and the baseline of BAN's tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.repairs.base import Repair
from modelaudit.repairs.finetune import (
    FinetuneConfig,
    FinetunePaperCodeConfig,
    FinetunePaperCodeRepair,
    FinetuneRepair,
)
from modelaudit.repairs.pruning import prune_mask, zero_channels
from modelaudit.suspect import state_digest
from tests.helpers.models import suspect_of, tiny_raising
from tests.helpers.training import (
    context_of,
    is_well_formed,
    same_state,
    tiny_data,
    tiny_suspect,
)

QUICK = FinetuneConfig(epochs=3, batch=32)


def test_a_rate_of_zero_with_frozen_statistics_changes_nothing() -> None:
    suspect = tiny_suspect()
    config = replace(QUICK, learning_rate=0.0, is_batchnorm_frozen=True)
    result = FinetuneRepair(config).repair(suspect, tiny_data(), context=context_of())
    assert same_state(result.module, suspect.module)
    assert result.measurements.agreement == 1.0


def test_the_loss_falls() -> None:
    suspect, data = tiny_suspect(3), tiny_data()  # labels of another net
    config = FinetuneConfig(epochs=8, batch=32, learning_rate=0.05, crop=False, flip=False)
    history = FinetuneRepair(config).repair(suspect, data, context=context_of()).history
    assert len(history) == 8
    assert sum(history[4:]) < 0.8 * sum(history[:4])


def test_the_suspect_stays_and_the_result_is_well_formed() -> None:
    suspect = tiny_suspect()
    before = state_digest(suspect.module)
    result = FinetuneRepair(QUICK).repair(suspect, tiny_data(), context=context_of())
    assert state_digest(suspect.module) == before
    assert is_well_formed(result, suspect)
    assert not same_state(result.module, suspect.module)
    assert result.pruned == ()


def test_what_the_file_had_pruned_stays_pruned_and_is_told() -> None:
    suspect = tiny_suspect()
    mask = prune_mask(suspect, [(suspect.sites[0].name, 1)])
    mask.apply(suspect.module)
    result = FinetuneRepair(QUICK).repair(suspect, tiny_data(), context=context_of())
    assert not same_state(result.module, suspect.module)
    # The filter that fed it may train: what it makes is multiplied by nothing.
    zero = zero_channels(suspect)
    assert zero is not None
    assert zero.holds(result.module)
    assert "channels that were zero in the model before, and stay so: 1" in result.notes


def test_same_seed_same_weights_whatever_the_batch_of_validation() -> None:
    repair = FinetuneRepair(replace(QUICK, flip=True, crop=True))
    suspect, data = tiny_suspect(), tiny_data()
    one = repair.repair(suspect, data, context=context_of(seed=1, batch_size=7))
    other = repair.repair(suspect, data, context=context_of(seed=1, batch_size=64))
    third = repair.repair(suspect, data, context=context_of(seed=2))
    assert same_state(one.module, other.module)
    assert not same_state(one.module, third.module)


def test_frozen_parameters_stay() -> None:
    suspect = tiny_suspect()
    config = replace(QUICK, frozen=("conv",))
    result = FinetuneRepair(config).repair(suspect, tiny_data(), context=context_of())
    old = suspect.module.state_dict()
    for name, value in result.module.state_dict().items():
        if name.startswith("conv"):
            assert torch.equal(value, old[name])
    assert not torch.equal(result.module.state_dict()["head.weight"], old["head.weight"])


@pytest.mark.parametrize(
    "repair",
    [
        FinetuneRepair(FinetuneConfig(epochs=2)),
        FinetunePaperCodeRepair(FinetunePaperCodeConfig(epochs=2)),
    ],
)
def test_the_estimate_bounds_the_cost(repair: Repair[Any]) -> None:
    suspect, data = tiny_suspect(), tiny_data()
    most, spent = repair.estimate(suspect, data), repair.repair(suspect, data, context=context_of())
    assert spent.cost.forward_backward == most.forward_backward
    # The contract's own two measurements come on top.
    assert spent.cost.forward <= most.forward + 2 * len(data.validation)


def test_it_asks_for_labels() -> None:
    data = replace(tiny_data(), has_labels=False)
    with pytest.raises(UnmetNeedError, match="labelled"):
        FinetuneRepair(QUICK).repair(tiny_suspect(), data, context=context_of())


def test_ten_images_are_too_few() -> None:
    with pytest.raises(UnmetNeedError, match="50 clean images, got 10"):
        FinetuneRepair().repair(tiny_suspect(), tiny_data(count=10), context=context_of())


def test_an_interrupt_leaves_the_suspect_alone() -> None:
    net = tiny_raising()
    suspect = suspect_of(net)
    before = state_digest(net)
    data = tiny_data(suspect)
    net.fuse.arm(4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        FinetuneRepair(QUICK).repair(suspect, data, context=context_of())
    net.fuse.left = None
    assert state_digest(net) == before


def test_the_baseline_keeps_its_order_and_its_rate() -> None:
    config = FinetunePaperCodeConfig()
    assert (config.epochs, config.learning_rate, config.batch) == (24, 0.005, 128)
    repair = FinetuneRepair.variants["paper_code"](replace(config, epochs=1), variant="paper_code")
    result = repair.repair(tiny_suspect(), tiny_data(), context=context_of())
    assert result.id == "finetune@paper_code"
    assert len(result.history) == 1


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "batch", "momentum", "weight_decay"])
def test_values_out_of_range_are_refused(field: str) -> None:
    for kind in (FinetuneConfig, FinetunePaperCodeConfig):
        with pytest.raises(ConfigError, match=field):
            kind(**{field: -1})  # type: ignore[arg-type]  # on purpose
