"""Fine-tuning under neuron noise, the default and the released code's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._batchnorm import set_batchnorm_training
from modelaudit.repairs._training import Objective, Schedule, constant, train
from modelaudit.repairs.finetune import FinetuneConfig, FinetuneRepair
from modelaudit.repairs.finetune_noise import (
    FinetuneNoiseConfig,
    FinetuneNoisePaperCodeConfig,
    FinetuneNoisePaperCodeRepair,
    FinetuneNoiseRepair,
    NoiseObjective,
)
from modelaudit.results import Finding
from modelaudit.scanners._noise_search import neuron_count, site_edits
from modelaudit.suspect import BatchNormMode, Suspect, state_digest
from tests.helpers.models import images, suspect_of, tiny_plain
from tests.helpers.planted import TARGET
from tests.helpers.training import (
    backdoored,
    context_of,
    copy_of,
    finding_of,
    is_well_formed,
    pattern_data,
    rates,
    same_state,
    tiny_data,
    tiny_suspect,
)

QUICK = FinetuneNoiseConfig(epochs=2, batch=32)
QUICK_RELEASED = FinetuneNoisePaperCodeConfig(epochs=2, batch=32)


def objective(model: Suspect, **changes: object) -> NoiseObjective:
    """Return the objective with noise of 0.3 in one step."""
    settings: dict[str, object] = {
        "dtype": None,
        "epsilon": 0.3,
        "steps": 1,
        "weight": 0.5,
        "draws": torch.Generator().manual_seed(0),
    }
    return NoiseObjective(model, **(settings | changes))  # type: ignore[arg-type]  # a shorthand


class _Scaled(Objective):
    """Cross-entropy times 1.5."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return 1.5 * super().loss(images, labels)


def test_without_noise_the_update_is_that_of_a_weighted_plain_loss() -> None:
    models = [copy_of(tiny_suspect()), copy_of(tiny_suspect())]
    objectives = [objective(models[0], epsilon=0.0), _Scaled(models[1], dtype=None)]
    for model, what in zip(models, objectives, strict=True):
        train(
            model,
            tiny_data(),
            context_of(),
            schedule=Schedule(epochs=2, batch=32, rate=constant(0.05)),
            objective=what,
            augmentation=Augmentation(padding=1, flip=True),
            draws=torch.Generator().manual_seed(0),
            name="test",
        )
    start = tiny_suspect().module.state_dict()
    for name, value in models[0].module.state_dict().items():
        torch.testing.assert_close(value, models[1].module.state_dict()[name])
    moved = (models[0].module.state_dict()["head.weight"] - start["head.weight"]).abs().max()
    assert float(moved) > 1e-3


def test_the_loss_is_the_weighted_sum_of_both() -> None:
    model = copy_of(tiny_suspect())
    pictures, labels = images(12), torch.arange(12) % 4
    set_batchnorm_training(model.module, is_training=True)
    together = objective(model, weight=0.7)
    total = float(together.loss(pictures, labels).detach())
    together.after_epoch()
    clean = float(Objective(model, dtype=None).loss(pictures, labels).detach())
    assert total == pytest.approx(clean + 0.7 * together.noisy_losses[0], rel=1e-5)
    assert together.noisy_losses[0] > clean


def test_probabilities_can_take_the_place_of_labels() -> None:
    model = copy_of(tiny_suspect())
    pictures, wanted = images(12), torch.rand(12, 4).softmax(1)
    set_batchnorm_training(model.module, is_training=True)
    total = objective(model, weight=0.7, epsilon=0.0).loss(pictures, wanted)
    expected = -(wanted * model.logits(pictures).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(total, 1.7 * expected)
    # The noise climbs from the likeliest class.
    certain = torch.eye(4)[wanted.argmax(1)]
    for labels in (certain, wanted.argmax(1)):
        noisy = objective(model, weight=0.7).loss(pictures, labels)
        torch.testing.assert_close(noisy, objective(model, weight=0.7).loss(pictures, certain))
    assert float(noisy.detach()) > float(
        objective(model, epsilon=0.0).loss(pictures, labels).detach()
    )


def buffers_after(model: Suspect, what: Objective) -> dict[str, Tensor]:
    """Return the buffers after one loss in train mode."""
    set_batchnorm_training(model.module, is_training=True)
    what.loss(images(12), torch.arange(12) % 4)
    return dict(model.module.named_buffers())


def test_only_clean_passes_reach_the_running_statistics() -> None:
    noisy, clean = copy_of(tiny_suspect()), copy_of(tiny_suspect())
    one = buffers_after(noisy, objective(noisy, steps=3))
    other = buffers_after(clean, Objective(clean, dtype=None))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_released_noisy_passes_reach_them_before_the_clean_one() -> None:
    noisy, clean = copy_of(tiny_suspect()), copy_of(tiny_suspect())
    one = buffers_after(noisy, objective(noisy, is_released=True))
    other = buffers_after(clean, Objective(clean, dtype=None))
    # The first layer's input knows no noise: three passes over the same batch.
    start = dict(tiny_suspect().module.named_buffers())["norm1.running_mean"]
    batch = (other["norm1.running_mean"] - 0.9 * start) / 0.1
    torch.testing.assert_close(one["norm1.running_mean"], 0.9**3 * start + (1 - 0.9**3) * batch)
    assert not torch.allclose(one["norm2.running_mean"], other["norm2.running_mean"])


def test_noise_switched_off_gives_the_same_logits() -> None:
    suspect = tiny_suspect()
    plain = suspect.logits(images(5))
    none = torch.zeros(neuron_count(suspect))
    with suspect.edited(site_edits(suspect, none, none), mode=BatchNormMode.RUNNING):
        assert torch.equal(suspect.logits(images(5)), plain)


def test_a_noisy_network_that_guesses_halves_the_box() -> None:
    model = copy_of(tiny_suspect())
    what = objective(model)
    wrong = (model.predict(images(12)) + 1) % 4
    what.loss(images(12), wrong)
    what.after_epoch()
    assert what.noisy_losses[0] > math.log(4)
    assert what.epsilons == [0.3]
    assert what.epsilon == 0.15
    what = objective(model, is_released=True)
    what.loss(images(12), wrong)
    what.after_epoch()
    assert what.epsilon == 0.3


def test_a_noisy_network_that_does_better_keeps_it() -> None:
    model, data = copy_of(backdoored()), pattern_data()
    what = objective(model, epsilon=0.02)
    what.loss(data.images[:50], data.labels[:50])
    what.after_epoch()
    assert what.noisy_losses[0] < math.log(6)
    assert what.epsilon == 0.02


@pytest.mark.parametrize("steps", [1, 3])
def test_passes_per_image_and_epoch(steps: int) -> None:
    suspect, data = tiny_suspect(), tiny_data(count=200)
    config = replace(QUICK, steps=steps, epochs=3)
    context = context_of(max_accuracy_drop=1.0)  # nothing costs half of it
    result = FinetuneNoiseRepair(config).repair(suspect, data, context=context)
    work, held_out = len(data.work), len(data.validation)
    assert result.cost.forward_backward == 3 * (steps + 2) * work
    most = FinetuneNoiseRepair(config).estimate(suspect, data)
    assert result.cost.forward <= most.forward + 2 * held_out
    assert result.cost.forward_backward == most.forward_backward
    # The suspect answers once per image.
    hard = FinetuneNoiseRepair(replace(config, is_distilled=False))
    more = result.cost.forward - hard.repair(suspect, data, context=context).cost.forward
    assert more == most.forward - hard.estimate(suspect, data).forward == work


def test_labels_teach_nothing_but_where_they_are_asked_for() -> None:
    suspect, data = tiny_suspect(), tiny_data()
    other = data.labels.clone()
    other[data.work] = (other[data.work] + 1) % 4
    for is_distilled in (True, False):
        repair = FinetuneNoiseRepair(replace(QUICK, is_distilled=is_distilled))
        one, two = (
            repair.repair(suspect, replace(data, labels=labels), context=context_of())
            for labels in (data.labels, other)
        )
        assert same_state(one.module, two.module) == is_distilled


def test_the_suspect_stays_and_the_result_is_well_formed() -> None:
    suspect = tiny_suspect()
    before = state_digest(suspect.module)
    for repair in (FinetuneNoiseRepair(QUICK), FinetuneNoisePaperCodeRepair(QUICK_RELEASED)):
        result = repair.repair(suspect, tiny_data(), context=context_of())
        assert state_digest(suspect.module) == before
        assert is_well_formed(result, suspect)
        assert not same_state(result.module, suspect.module)


def test_same_seed_same_weights() -> None:
    suspect, data = tiny_suspect(), tiny_data()
    one, other, third = (
        FinetuneNoiseRepair(QUICK).repair(suspect, data, context=context_of(seed=s))
        for s in (1, 1, 2)
    )
    assert same_state(one.module, other.module)
    assert not same_state(one.module, third.module)


def test_it_works_on_the_model_s_own_labels_and_says_so() -> None:
    data = replace(tiny_data(), has_labels=False)
    result = FinetuneNoiseRepair(QUICK).repair(tiny_suspect(), data, context=context_of())
    assert any("no labels" in note for note in result.notes)


def test_models_without_batchnorm_are_trained_too() -> None:
    suspect = suspect_of(tiny_plain())
    result = FinetuneNoiseRepair(QUICK).repair(suspect, tiny_data(), context=context_of())
    assert not same_state(result.module, suspect.module)
    with pytest.raises(UnmetNeedError, match="BatchNorm"):
        FinetuneNoisePaperCodeRepair().repair(suspect, tiny_data(), context=context_of())


def test_half_precision_keeps_weights_in_float32() -> None:
    context = context_of(search_dtype=torch.bfloat16)
    result = FinetuneNoiseRepair(QUICK).repair(tiny_suspect(), tiny_data(), context=context)
    assert is_well_formed(result, tiny_suspect())


def test_noise_removes_what_plain_fine_tuning_leaves() -> None:
    suspect, data = backdoored(), pattern_data()
    before = rates(suspect.module)
    settings = {"epochs": 6, "batch": 32, "learning_rate": 0.03, "crop": False, "flip": False}
    noise = FinetuneNoiseConfig(noise_weight=2.0, **settings)  # type: ignore[arg-type]  # by name
    context = context_of(max_accuracy_drop=0.05)
    repaired = FinetuneNoiseRepair(noise).repair(suspect, data, context=context)
    plain = FinetuneRepair(FinetuneConfig(**settings)).repair(suspect, data, context=context)  # type: ignore[arg-type]  # by name
    after, control = rates(repaired.module), rates(plain.module)
    assert before[1] > 0.9
    assert control[1] > 0.9
    assert after[1] < 0.05
    assert after[0] > before[0] - 0.05


def test_noise_aims_at_named_targets_unless_told_otherwise() -> None:
    suspect, data = tiny_suspect(), tiny_data()
    context = context_of(findings=(finding_of(Finding.STRONG, (2,)),))
    config = replace(QUICK, aimed_fraction=1.0)
    aimed = FinetuneNoiseRepair(config).repair(suspect, data, context=context)
    assert aimed.details["targets"] == [2]
    assert not any("aims at no class" in note for note in aimed.notes)
    free = FinetuneNoiseRepair(replace(QUICK, aimed_fraction=0.0)).repair(
        suspect, data, context=context
    )
    plain = FinetuneNoiseRepair(QUICK).repair(suspect, data, context=context_of())
    assert same_state(free.module, plain.module)
    assert not same_state(free.module, aimed.module)
    assert any("aims at no class" in note for note in plain.notes)


def test_aimed_noise_removes_more() -> None:
    suspect, data = backdoored(), pattern_data()
    config = FinetuneNoiseConfig(
        epochs=6, learning_rate=0.01, aimed_fraction=1.0, crop=False, flip=False
    )
    rate = {}
    for name, findings in (("free", ()), ("aimed", (finding_of(Finding.STRONG, (TARGET,)),))):
        context = context_of(max_accuracy_drop=0.05, findings=findings)
        made = FinetuneNoiseRepair(config).repair(suspect, data, context=context)
        rate[name] = rates(made.module)
    assert rate["aimed"][1] < 0.5 * rate["free"][1]
    assert rate["aimed"][0] > 0.95


def test_the_released_settings() -> None:
    config = FinetuneNoisePaperCodeConfig()
    assert (config.epsilon, config.steps, config.noise_weight) == (0.3, 1, 0.5)
    assert (config.epochs, config.learning_rate, config.batch) == (24, 0.005, 128)
    assert FinetuneNoiseRepair.variants["paper_code"] is FinetuneNoisePaperCodeRepair


@pytest.mark.parametrize(
    "field", ["epsilon", "steps", "noise_weight", "epochs", "learning_rate", "batch", "momentum"]
)
def test_values_out_of_range_are_refused(field: str) -> None:
    for kind in (FinetuneNoiseConfig, FinetuneNoisePaperCodeConfig):
        with pytest.raises(ConfigError, match=field):
            kind(**{field: -1})  # type: ignore[arg-type]  # on purpose


def test_the_noisy_loss_under_given_noise_is_that_of_scaled_parameters() -> None:
    model = copy_of(tiny_suspect())
    pictures, labels = images(12), torch.arange(12) % 4
    noise = 0.2 * torch.ones(2, neuron_count(model))
    with model.edited(site_edits(model, noise[0], noise[1]), mode=BatchNormMode.BATCH):
        found = functional.cross_entropy(model.logits(pictures), labels)
    with torch.no_grad():
        for site in model.sites:
            layer = model.module.get_submodule(site.name)
            for parameter in layer.parameters():
                parameter.mul_(1.2)
    set_batchnorm_training(model.module, is_training=True)
    expected = functional.cross_entropy(model.logits(pictures), labels)
    torch.testing.assert_close(found, expected)
