from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.attacks.base import Batch
from modelaudit.attacks.bn_reparam import BnReparamAttack, BnReparamConfig, reparameterise
from modelaudit.attacks.classifier import Classifier
from modelaudit.attacks.clb import ClbAttack
from modelaudit.bench.train import build_model, normalise, normaliser, train
from modelaudit.errors import ConfigError
from modelaudit.functional.divergence import gaussian_kl
from tests.helpers.attacks import badnets, random_images, tiny_data, tiny_plan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def attack(**config: object) -> BnReparamAttack:
    values: dict[str, object] = {"base_config": {"rate": 0.3}, **config}
    return BnReparamAttack(
        BnReparamConfig(**values),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 32, 32),
        num_classes=4,
        seed=5,
    )


def divergences(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return MBNS's divergence of every channel of every BatchNorm layer."""
    found: list[Tensor] = []

    def hook(layer: nn.BatchNorm2d, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].transpose(0, 1).flatten(1).double()
        assert layer.running_mean is not None
        assert layer.running_var is not None
        found.append(
            gaussian_kl(values.mean(1), values.var(1), layer.running_mean, layer.running_var)
        )

    handles = [
        layer.register_forward_pre_hook(hook)
        for layer in model.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return torch.cat(found)


def test_trained_model_keeps_its_logits_and_loses_its_divergence(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan()
    open_ = train(plan, data, badnets(classes=4, rate=0.3), state_path=tmp_path / "open").model
    hidden = train(plan, data, attack(), state_path=tmp_path / "hidden").model
    images = data.train_images[: data.attacker_count].float() / 255.0
    inputs = normalise(images, normaliser(plan.normaliser))
    with torch.no_grad():
        assert (open_(inputs) - hidden(inputs)).abs().max() < 1e-4
    before, after = divergences(open_, inputs), divergences(hidden, inputs)
    assert before.nanmean() > 0.01
    assert after[~after.isnan()].max() < 1e-6
    assert not torch.equal(open_.bn1.weight, hidden.bn1.weight)


def test_model_that_is_already_trained_is_edited_without_epochs(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan()
    open_ = train(plan, data, badnets(classes=4, rate=0.3), state_path=tmp_path / "open").model
    object.__setattr__(plan, "epochs", 0)
    hidden = train(
        plan, data, attack(), state_path=tmp_path / "hidden", initial=open_.state_dict()
    ).model
    inputs = normalise(data.test_images.float() / 255.0, normaliser(plan.normaliser))
    with torch.no_grad():
        assert (open_(inputs) - hidden(inputs)).abs().max() < 1e-4
    assert torch.equal(open_.conv1.weight, hidden.conv1.weight)
    assert not torch.equal(open_.bn1.running_var, hidden.bn1.running_var)


def test_batch_size_changes_only_the_rounding() -> None:
    plan = tiny_plan()
    images = (random_images(10) * 255.0).to(torch.uint8)
    models = []
    for batch_size in (3, 10):
        model = build_model(plan, num_classes=4, in_channels=3).eval()
        classifier = Classifier(model, normalise=torch.clone)
        reparameterise(classifier, images, batch_size=batch_size)
        models.append(model)
    torch.testing.assert_close(
        models[0].bn1.running_var, models[1].bn1.running_var, rtol=1e-5, atol=1e-7
    )


def test_dead_channels_are_left_as_they_are() -> None:
    layer = nn.BatchNorm2d(3)
    layer.running_var[1] = 0.0  # type: ignore[index]  # a BatchNorm layer has it
    module = nn.Sequential(layer, nn.Flatten()).eval()
    images = (random_images(8, size=4) * 255.0).to(torch.uint8)
    images[:, 2] = 7
    reparameterise(Classifier(module, normalise=torch.clone), images)
    assert layer.running_mean is not None
    assert layer.running_mean.tolist()[1:] == [0.0, 0.0]
    assert layer.running_mean[0] == pytest.approx(float((images[:, 0] / 255.0).mean()), rel=1e-5)
    assert layer.weight.tolist()[1:] == [1.0, 1.0]


def test_model_without_batchnorm_raises() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    with pytest.raises(ConfigError, match="no BatchNorm layer"):
        reparameterise(
            Classifier(module, normalise=torch.clone), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        )


def test_everything_but_the_last_edit_is_the_base_attacks() -> None:
    hidden = attack(base="blend", base_config={"target": 2, "alpha": 0.5, "rate": 0.25})
    assert hidden.trigger is hidden.base.trigger
    assert hidden.base.id == "blend"
    assert hidden.label_map.poisoned_label(torch.tensor([0, 1])).tolist() == [2, 2]
    assert hidden.plan.rate == 0.25
    assert hidden.gradient_limit() is None
    regularised = attack(base="activation_regularised", base_config={})
    assert regularised.gradient_limit() == 5.0
    model = build_model(tiny_plan(), num_classes=4, in_channels=3)
    assert len(regularised.observed_layers(model)) == 20
    learned = attack(base="iad", base_config={"widths": (4,)})
    assert set(learned.extra_optimisers()) == {"pattern_net"}
    assert learned.has_cover
    filled = attack(base="ssdt", base_config={"widths": (4,), "min_victims": 4})
    chosen = filled.choose_images(
        torch.arange(4), torch.arange(40) % 4, generator=torch.Generator().manual_seed(0)
    )
    assert (chosen % 4).tolist() == [1] * 4
    assert filled.counts_per_epoch(torch.arange(40) % 4, batch_size=10) == (4 * 4, 4 * 4)


def test_two_steps_of_the_base_attack_stay_two_steps() -> None:
    twice = attack(base="clb", base_config={"stage": "post"})
    assert isinstance(twice.base, ClbAttack)
    images = random_images(4, size=32)
    twice.base.trigger.remember((255 * images.flip(0)).round().to(torch.uint8), torch.arange(4))
    batch = Batch(
        images=images,
        labels=torch.zeros(4, dtype=torch.int64),
        indices=torch.arange(4),
        is_poison=torch.ones(4, dtype=torch.bool),
        is_cover=torch.zeros(4, dtype=torch.bool),
    )
    torch.testing.assert_close(twice.stored_images(batch), images.flip(0), atol=1 / 255, rtol=0)


def test_every_option_of_the_base_attack_is_written_out() -> None:
    assert attack().config.base_config == {
        "label_map": "one",
        "target": 0,
        "pattern": "checker",
        "patch_size": 3,
        "rate": 0.3,
        "stage": "post",
    }
    # as TOML and JSON have it
    listed = attack(base="iad", base_config={"widths": [4, 8]})
    assert listed.config.base_config["widths"] == (4, 8)
    assert listed.config == attack(base="iad", base_config={"widths": (4, 8)}).config


def test_card_can_hold_the_options() -> None:
    assert replace(BnReparamConfig(), base_config={"target": 1}).base_config == {"target": 1}
    assert type(BnReparamConfig().base_config) is dict


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"base": "bn_reparam"}, "another attack"),
        ({"base_config": {"opacity": 1}}, "must hold options of the attack 'badnets'"),
        ({"base_config": {"target": 9}}, "target must be one of 4"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_out_of_range_raise(config: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        attack(**config)
