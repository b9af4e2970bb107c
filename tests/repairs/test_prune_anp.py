from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.progress import NoProgress
from modelaudit.repairs import PruneMode, RepairData
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._mask_minimax import (
    Masks,
    Minimax,
    adversarial_noise,
    lowest_neurons,
    neurons_below,
    search_masks,
)
from modelaudit.repairs.prune_anp import PruneAnpConfig, PruneAnpRepair
from modelaudit.repairs.prune_anp_paper_code import (
    PruneAnpPaperCodeConfig,
    PruneAnpPaperCodeRepair,
)
from modelaudit.suspect import BatchNormMode, Suspect, state_digest
from tests.helpers import models
from tests.helpers.planted import gate_images, gate_suspect, trained, trained_clean_set
from tests.helpers.repairs import logits_of, repair_context, repair_set

QUICK = Minimax(
    epsilon=0.4,
    alpha=0.2,
    ascent_steps=1,
    learning_rate=0.2,
    momentum=0.9,
    iterations=10,
    batch=16,
    mode=BatchNormMode.BATCH,
)


def searched(
    suspect: Suspect, data: RepairData, search: Minimax, *, seed: int = 0
) -> tuple[Masks, tuple[float, ...]]:
    with suspect.borrowed(), NoProgress().task("search", search.iterations) as task:
        return search_masks(
            suspect,
            data.images,
            data.labels,
            search,
            augmentation=Augmentation(),
            generator=torch.Generator().manual_seed(seed),
            task=task,
            dtype=None,
        )


@pytest.mark.parametrize("mode", [BatchNormMode.BATCH, BatchNormMode.TRAIN])
def test_masks_stay_in_the_unit_interval_and_the_model_as_it_was(mode: BatchNormMode) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    before = state_digest(suspect.module)
    masks, losses = searched(suspect, data, dataclasses.replace(QUICK, mode=mode))
    assert state_digest(suspect.module) == before
    assert float(masks.values.min()) >= 0
    assert float(masks.values.max()) <= 1
    assert float(masks.values.min()) < 1
    assert len(losses) == 10


def test_the_default_mode_never_touches_buffers() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    before = {k: v.clone() for k, v in suspect.module.named_buffers()}
    masks = Masks(suspect)
    draws = torch.Generator().manual_seed(0)
    adversarial_noise(masks, data.images[:16], data.labels[:16], QUICK, draws)
    assert all(torch.equal(before[k], v) for k, v in suspect.module.named_buffers())


def test_masks_of_one_without_noise_change_no_logit() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(6)
    masks = Masks(suspect)
    zero = torch.zeros_like(masks.values)
    with suspect.borrowed(), suspect.edited(masks.edits(masks.values, zero, zero)):
        masked = logits_of(suspect, images)
    assert torch.equal(masked, logits_of(suspect, images))


def test_a_mask_multiplies_gamma_alone_and_noise_is_added_to_it() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(6)
    masks = Masks(suspect)
    masks.values[3] = 0.25
    delta, xi = torch.zeros_like(masks.values), torch.zeros_like(masks.values)
    delta[3], xi[3] = 0.5, -0.5
    with suspect.borrowed(), suspect.edited(masks.edits(masks.values, delta, xi)):
        masked = logits_of(suspect, images)
    norm = suspect.module.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[3] *= 0.25 + 0.5
        norm.bias[3] *= 0.5
    torch.testing.assert_close(masked, logits_of(suspect, images))


def test_noise_raises_the_loss_and_reaches_twice_epsilon_at_most() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    masks = Masks(suspect)
    worse = 0
    for seed in range(10):
        start = torch.Generator().manual_seed(seed)
        still = dataclasses.replace(QUICK, ascent_steps=1)
        before = torch.Generator().manual_seed(seed)
        noise = 0.4 * (2 * torch.rand((2, len(masks.values)), generator=before) - 1)
        delta, xi = adversarial_noise(masks, data.images, data.labels, still, start)
        assert float(delta.abs().max()) <= 0.8 + 1e-6
        with torch.no_grad():
            arguments = (data.images, data.labels, masks.values)
            low = masks.loss(*arguments, noise[0], noise[1], BatchNormMode.BATCH)
            high = masks.loss(*arguments, delta, xi, BatchNormMode.BATCH)
        worse += bool(high > low)
    assert worse == 10


def test_without_noise_the_gradient_step_is_that_of_plain_cross_entropy() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    search = dataclasses.replace(
        QUICK, epsilon=0.0, iterations=1, batch=8, learning_rate=1e-3, mode=BatchNormMode.RUNNING
    )
    masks, _ = searched(suspect, data, search, seed=5)
    rows = torch.randint(len(data.images), (8,), generator=torch.Generator().manual_seed(5))
    values = torch.ones_like(masks.values, requires_grad=True)
    other = Masks(suspect)
    zero = torch.zeros_like(masks.values)
    with suspect.borrowed():
        loss = other.loss(
            data.images[rows], data.labels[rows], values, zero, zero, BatchNormMode.RUNNING
        )
        (gradient,) = torch.autograd.grad(loss, values)
    torch.testing.assert_close(masks.values, (1 - 1e-3 * gradient).clamp(0, 1))


def test_neurons_below_are_nested_and_ties_go_by_layer_and_index() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    masks = torch.ones(24)
    masks[[9, 2, 5]] = 0.0
    masks[20] = 0.1
    assert neurons_below(suspect, masks, 0.0) == [("norm1", 2), ("norm1", 5), ("norm2", 1)]
    assert neurons_below(suspect, masks, 0.1)[:3] == neurons_below(suspect, masks, 0.0)
    assert neurons_below(suspect, masks, 0.1)[3] == ("norm2", 12)
    assert len(neurons_below(suspect, masks, 1.0)) == 24
    assert len(set(neurons_below(suspect, masks, 1.0))) == 24


def test_a_neuron_whose_scaling_leads_to_one_class_gets_the_lowest_mask() -> None:
    # Class channels at once or not at all; the gate opens where the last channel is 1.4 times up.
    suspect = gate_suspect(deviation=0.4)
    images, labels = gate_images(200)
    # Two deviations open the gate: clean images lie at 1.5.
    images[:, 5] = 0.2 + 1.5 * 0.2 + 0.01 * models.draw(tuple(images[:, 5].shape))
    data = repair_set(suspect, images=images.clamp(0, 1), labels=labels)
    search = dataclasses.replace(
        QUICK, iterations=40, batch=64, mode=BatchNormMode.RUNNING, learning_rate=0.02
    )
    masks, _ = searched(suspect, data, search)
    assert int(masks.values.argmin()) == 5


def quick_config(**changes: object) -> PruneAnpConfig:
    base = PruneAnpConfig(iterations=30, batch=32)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # a test's shorthand


def test_the_chosen_threshold_keeps_the_accuracy_and_lowers_the_loss_under_noise() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    # One of 60 validation images is more than the default's one in a hundred.
    result = PruneAnpRepair(quick_config(max_accuracy_drop=0.05)).repair(
        suspect, data, context=repair_context(max_accuracy_drop=0.05)
    )
    assert result.measurements.accuracy_drop <= 0.05
    assert result.mask is not None
    assert result.mask.mode is PruneMode.OFFICIAL
    curve = result.details["curve"]
    assert isinstance(curve, list)
    losses = {point[0]: point[3] for point in curve if isinstance(point, list)}
    threshold = result.details["threshold"]
    assert isinstance(threshold, float)
    assert losses[threshold] == min(losses.values())
    counts = [point[1] for point in curve if isinstance(point, list)]
    assert counts == sorted(counts)  # type: ignore[type-var]  # numbers


def test_labels_of_the_model_itself_do_as_well() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, has_labels=False)
    result = PruneAnpRepair(quick_config()).repair(suspect, data, context=repair_context())
    assert "own predictions" in result.notes[0]
    assert result.measurements.agreement >= 0.98


def test_where_no_threshold_is_bearable_nothing_goes() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    config = quick_config(thresholds=(1.0,))
    result = PruneAnpRepair(config).repair(suspect, data, context=repair_context())
    assert result.pruned == ()
    assert "nothing was pruned" in result.notes[0]


def test_the_released_code_prunes_up_to_its_threshold_and_keeps_the_buffers() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    config = PruneAnpPaperCodeConfig(iterations=10, batch=32, threshold=0.7)
    repair = PruneAnpPaperCodeRepair(config, variant="paper_code")
    result = repair.repair(suspect, data, context=repair_context())
    assert result.mask is not None
    assert result.mask.mode is PruneMode.OFFICIAL
    assert result.cost.forward_backward == repair.estimate(suspect, data).forward_backward
    assert result.cost.forward_backward == 10 * 32 * 3


@pytest.mark.parametrize("number", [1, 5, 24])
def test_by_number_exactly_so_many_distinct_neurons_go_lowest_masks_first(number: int) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    data = repair_set(suspect)
    masks, _ = searched(suspect, data, QUICK)
    lowest = lowest_neurons(suspect, masks.values, number)
    assert len(lowest) == len(set(lowest)) == number
    assert lowest == neurons_below(suspect, masks.values, 1.0)[:number]
    # Masks of 1 are many: no threshold takes some of them and leaves the others.
    assert len(neurons_below(suspect, masks.values, 0.999)) < 24
    config = PruneAnpPaperCodeConfig(iterations=10, batch=16, number=number)
    for repair in (
        PruneAnpPaperCodeRepair(config, variant="paper_code"),
        PruneAnpRepair(quick_config(iterations=10, batch=16, number=number)),
    ):
        result = repair.repair(suspect, data, context=repair_context())
        pruned = [(name, k) for name, channels in result.pruned for k in channels]
        assert len(pruned) == len(set(pruned)) == number
        most = repair.estimate(suspect, data)
        assert result.cost.forward_backward == most.forward_backward
        assert result.cost.forward <= most.forward + 2 * len(data.validation)


def test_more_neurons_than_there_are_is_an_unmet_need() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    for repair in (
        PruneAnpRepair(quick_config(number=25)),
        PruneAnpPaperCodeRepair(PruneAnpPaperCodeConfig(number=25)),
    ):
        with pytest.raises(UnmetNeedError, match=r"needs 25 neurons .*, the model has 24"):
            repair.repair(suspect, repair_set(suspect), context=repair_context())


def test_the_same_seed_gives_the_same_neurons() -> None:
    suspect = trained(is_backdoored=True)
    clean = trained_clean_set(is_backdoored=True)
    data = repair_set(suspect, images=clean.images, labels=clean.labels)
    runs = [
        PruneAnpRepair(quick_config()).repair(suspect, data, context=repair_context(seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0].pruned == runs[1].pruned
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


def test_a_model_without_batchnorm_is_refused() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    with pytest.raises(UnmetNeedError, match="needs BatchNorm"):
        PruneAnpRepair().repair(suspect, repair_set(suspect), context=repair_context())


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 1.5}, {"batch": 1}, {"thresholds": (2.0,)}, {"thresholds": ()}, {"number": 0}],
)
def test_settings_out_of_range_raise(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        quick_config(**changes)


@pytest.mark.parametrize("thresholds", [(0.5, 0.2), (0.2, 0.2), (0.0, 0.3, 0.1)])
def test_thresholds_that_do_not_ascend_raise(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"PruneAnpConfig\.thresholds must ascend, got \("):
        quick_config(thresholds=thresholds)
