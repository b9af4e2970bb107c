from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.attacks.base import Batch
from modelaudit.attacks.classifier import Classifier
from modelaudit.attacks.mmd import MmdAttack, MmdConfig, last_stages, squared_mmd
from modelaudit.bench.train import build_model, train
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images, tiny_data, tiny_plan

if TYPE_CHECKING:
    from pathlib import Path


def attack(**config: object) -> MmdAttack:
    return MmdAttack(
        MmdConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 32, 32),
        num_classes=4,
        seed=5,
    )


def batch_of(labels: list[int], poison: list[bool]) -> Batch:
    n = len(labels)
    return Batch(
        images=random_images(n),
        labels=torch.tensor(labels),
        indices=torch.arange(n),
        is_poison=torch.tensor(poison),
        is_cover=torch.zeros(n, dtype=torch.bool),
    )


def literal_mmd(one: list[list[float]], two: list[list[float]]) -> float:
    def distance(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    union = one + two
    n = len(union)
    mean = sum(distance(a, b) for a in union for b in union) / (n * n - n)

    def kernel(a: list[float], b: list[float]) -> float:
        return sum(math.exp(-distance(a, b) / (mean * 2.0 ** (i - 2))) for i in range(5))

    def average(first: list[list[float]], second: list[list[float]]) -> float:
        return sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))

    return average(one, one) + average(two, two) - 2.0 * average(one, two)


def test_discrepancy_equals_the_literal_formula() -> None:
    one = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    two = 2.0 * torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    assert float(squared_mmd(one, two)) == pytest.approx(
        literal_mmd(one.tolist(), two.tolist()), rel=1e-4
    )


def test_equal_groups_have_no_discrepancy() -> None:
    group = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    assert float(squared_mmd(group, group)) == pytest.approx(0.0, abs=1e-5)
    constant = torch.ones(2, 3, requires_grad=True)
    value = squared_mmd(constant, torch.ones(2, 3))
    value.backward()
    assert float(value.detach()) == 0.0
    assert constant.grad is not None
    assert constant.grad.isfinite().all()


def test_stages_end_where_the_papers_levels_do() -> None:
    resnet = build_model(tiny_plan(), num_classes=4, in_channels=3)
    assert last_stages(resnet, 3) == ["layer2", "layer3", "layer4"]
    assert last_stages(resnet, 1) == ["layer4"]
    vgg = build_model(tiny_plan(architecture="cifar_vgg16"), num_classes=4, in_channels=3)
    relus = [name for name, layer in vgg.named_modules() if isinstance(layer, nn.ReLU)]
    # VGG-16 has 2, 2, 3, 3 and 3 convolutions before its poolings.
    assert last_stages(vgg, 3) == [relus[6], relus[9], relus[12]]


def test_model_without_stages_raises() -> None:
    with pytest.raises(ConfigError, match="at least 3 stages"):
        last_stages(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 3)


@pytest.mark.parametrize(("pooled_size", "features"), [(4, 4 * 4), (None, 8 * 8)])
def test_loss_compares_triggered_with_benign_target_images(
    pooled_size: int | None, features: int
) -> None:
    regularised = attack(target=1, weight=0.5, pooled_size=pooled_size)
    batch = batch_of([1, 1, 0, 2, 3, 1], [False, False, True, True, False, False])
    classifier = Classifier(nn.Identity(), normalise=torch.clone)
    maps = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier.outputs["level"] = maps
    poisoned = regularised.on_batch(batch)
    loss = regularised.training_loss(classifier, batch, poisoned, progress=0.0)
    blocks = maps.view(6, 4, 2, 4, 2).mean((2, 4)) if pooled_size else maps
    flat = blocks.reshape(6, features)
    assert loss is not None
    assert float(loss) == pytest.approx(0.5 * float(squared_mmd(flat[[0, 1, 5]], flat[[2, 3]])))


@pytest.mark.parametrize(("labels", "poison"), [([0, 2], [True, False]), ([1, 2], [False, False])])
def test_empty_group_means_no_loss(labels: list[int], poison: list[bool]) -> None:
    regularised, batch = attack(target=1), batch_of(labels, poison)
    classifier = Classifier(nn.Identity(), normalise=torch.clone)
    poisoned = regularised.on_batch(batch)
    assert regularised.training_loss(classifier, batch, poisoned, progress=0.0) is None


@pytest.mark.parametrize("architecture", ["cifar_resnet18", "cifar_vgg16"])
def test_training_is_finite(tmp_path: Path, architecture: str) -> None:
    plan = tiny_plan(architecture=architecture, epochs=1)
    regularised = attack(rate=0.5, alpha=0.2)
    run = train(plan, tiny_data(), regularised, state_path=tmp_path / "s")
    assert run.final_loss is not None
    assert math.isfinite(run.final_loss)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", 2.0), ("rate", 0.0), ("weight", -0.1), ("levels", 0), ("pooled_size", 0)],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        MmdConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
