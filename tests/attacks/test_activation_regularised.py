from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.attacks.activation_regularised import (
    ActivationRegularisedAttack,
    ActivationRegularisedConfig,
    activation_change,
)
from modelaudit.attacks.base import Batch
from modelaudit.attacks.classifier import Classifier
from modelaudit.bench.train import build_model, train
from modelaudit.errors import ConfigError
from tests.helpers.attacks import badnets, random_images, tiny_data, tiny_plan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def attack(**config: object) -> ActivationRegularisedAttack:
    return ActivationRegularisedAttack(
        ActivationRegularisedConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 32, 32),
        num_classes=4,
        seed=5,
    )


def batch_of(images: Tensor, *, n_poison: int) -> Batch:
    places = torch.arange(len(images))
    return Batch(
        images=images,
        labels=places % 4,
        indices=places,
        is_poison=places < n_poison,
        is_cover=torch.zeros(len(images), dtype=torch.bool),
    )


def loss_of(regularised: ActivationRegularisedAttack, batch: Batch, progress: float) -> Tensor:
    model = build_model(tiny_plan(), num_classes=4, in_channels=3).eval()
    classifier = Classifier(model, normalise=torch.clone)
    poisoned = regularised.on_batch(batch)
    with classifier.observing(regularised.observed_layers(model)):
        classifier(poisoned.images)
        loss = regularised.training_loss(classifier, batch, poisoned, progress=progress)
    assert loss is not None
    return loss.detach()


def test_change_is_the_mean_over_channels_of_the_squared_difference_of_maxima() -> None:
    # Two clean images, the second of them triggered; two channels, then one.
    first = torch.zeros(3, 2, 1, 2)
    first[1, 0], first[2, 0] = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 4.0])
    second = torch.zeros(3, 1, 1, 1)
    second[1], second[2] = 1.0, -2.0
    # Channel changes: (5 - 3)^2, 0, (-2 - 1)^2.
    change = activation_change([first, second], torch.tensor([1]), 2)
    assert float(change) == pytest.approx((4.0 + 0.0 + 9.0) / 3.0)


def test_trigger_that_changes_nothing_costs_nothing() -> None:
    regularised = attack()
    regularised.trigger.apply = lambda images, **_: images.clone()  # type: ignore[method-assign]
    batch = batch_of(random_images(4), n_poison=4)
    assert float(loss_of(regularised, batch, 1.0)) == 0.0
    assert float(loss_of(attack(), batch, 1.0)) > 0.0


def test_weight_rises_over_the_ramp() -> None:
    batch = batch_of(random_images(4), n_poison=4)
    full = float(loss_of(attack(ramp=0.0), batch, 0.0))
    assert float(loss_of(attack(ramp=0.4), batch, 0.0)) == 0.0
    assert float(loss_of(attack(ramp=0.4), batch, 0.1)) == pytest.approx(full / 4.0)
    assert float(loss_of(attack(ramp=0.4), batch, 0.9)) == pytest.approx(full)
    assert float(loss_of(attack(ramp=0.0, weight=96.0), batch, 0.0)) == pytest.approx(2.0 * full)


def test_batch_holds_clean_images_and_their_triggered_copies() -> None:
    regularised = attack(target=2)
    batch = batch_of(random_images(4), n_poison=2)
    poisoned = regularised.on_batch(batch)
    assert torch.equal(poisoned.images[:4], batch.images)
    assert torch.equal(poisoned.images[4:], regularised.trigger.apply(batch.images[:2]))
    assert poisoned.labels.tolist() == [0, 1, 2, 3, 2, 2]


def test_no_pair_means_no_loss() -> None:
    regularised, batch = attack(), batch_of(random_images(4), n_poison=0)
    poisoned = regularised.on_batch(batch)
    classifier = Classifier(nn.Identity(), normalise=torch.clone)
    assert regularised.training_loss(classifier, batch, poisoned, progress=0.5) is None
    unweighted, batch = attack(weight=0.0), batch_of(random_images(4), n_poison=4)
    assert unweighted.training_loss(classifier, batch, poisoned, progress=0.5) is None


def test_every_batchnorm_layer_is_observed() -> None:
    model = build_model(tiny_plan(), num_classes=4, in_channels=3)
    assert len(attack().observed_layers(model)) == 20
    with pytest.raises(ConfigError, match="BatchNorm"):
        attack().observed_layers(nn.Linear(2, 2))


def test_regulariser_lowers_the_change(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=2)
    change = []
    for weight in (0.0, 480.0):
        regularised = attack(weight=weight, ramp=0.0)
        model = train(plan, data, regularised, state_path=tmp_path / str(weight)).model
        classifier = Classifier(model, normalise=torch.clone)
        batch = batch_of(data.test_images.float() / 255.0, n_poison=12)
        poisoned = regularised.on_batch(batch)
        with torch.no_grad(), classifier.observing(regularised.observed_layers(model)):
            classifier(poisoned.images)
            outputs = list(classifier.outputs.values())
            change.append(float(activation_change(outputs, torch.arange(12), 12)))
    assert change[1] < 0.8 * change[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", -1.0),
        ("ramp", 1.5),
        ("gradient_limit", 0.0),
        ("rate", 0.0),
        ("pattern", "cat"),
        ("patch_size", 4),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ActivationRegularisedConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_patch_is_that_of_badnets_at_every_size() -> None:
    for size, given, side in ((32, None, 3), (64, None, 6), (64, 3, 3)):
        config = ActivationRegularisedConfig(patch_size=given)
        made = ActivationRegularisedAttack(config, shape=(3, size, size), num_classes=4, seed=1)
        assert made.config.patch_size == side
        expected = badnets(size=size, patch_size=given).trigger
        assert made.trigger.state_hash() == expected.state_hash()
