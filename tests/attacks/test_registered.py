"""Properties that every registered attack must have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.attacks.base import Attack, Batch
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry
from tests.helpers.attacks import random_images

if TYPE_CHECKING:
    from torch import Tensor

IDS = Registry("attacks").ids()


def make(id_: str, *, size: int = 32, seed: int = 5) -> Attack[object]:
    attack_type: type[Attack[object]] = Registry("attacks").load(id_)
    return attack_type(attack_type.config_type(), shape=(3, size, size), num_classes=10, seed=seed)


def batch_of(images: Tensor, *, poison: list[int], cover: list[int] | None = None) -> Batch:
    n = len(images)
    is_poison, is_cover = torch.zeros(2, n, dtype=torch.bool)
    is_poison[poison] = True
    is_cover[cover or []] = True
    return Batch(
        images=images,
        labels=torch.arange(n) % 10,
        indices=torch.arange(n),
        is_poison=is_poison,
        is_cover=is_cover,
    )


def test_the_built_in_attacks_are_registered() -> None:
    assert {"badnets", "blend"} <= set(IDS)


@pytest.mark.parametrize("id_", IDS)
def test_class_describes_itself(id_: str) -> None:
    attack = make(id_)
    assert attack.id == id_
    assert attack.summary
    assert "arXiv" in attack.reference
    assert attack.trigger.size == (32, 32)


@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trigger_keeps_shape_dtype_range_and_input(id_: str, dtype: torch.dtype) -> None:
    trigger = make(id_).trigger
    images = random_images().to(dtype)
    before = images.clone()
    for function in (trigger.apply, trigger.apply_train):
        triggered = function(images, generator=torch.Generator().manual_seed(1))
        assert triggered.shape == images.shape
        assert triggered.dtype == dtype
        assert 0.0 <= float(triggered.min()) <= float(triggered.max()) <= 1.0
        assert (triggered * 255 - (triggered * 255).round()).abs().max() < 1e-4
        assert not torch.equal(triggered, images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("id_", IDS)
def test_same_generator_state_gives_the_same_trigger(id_: str) -> None:
    images = random_images()
    one, two = (
        make(id_).trigger.apply_train(images, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("id_", IDS)
def test_state_carries_the_trigger_over(id_: str) -> None:
    one, two = make(id_, seed=1).trigger, make(id_, seed=2).trigger
    two.load(one.state())
    assert two.state_hash() == one.state_hash()
    assert torch.equal(two.apply(random_images()), one.apply(random_images()))


@pytest.mark.parametrize("id_", IDS)
def test_plan_is_exact_and_disjoint(id_: str) -> None:
    attack = make(id_)
    labels = torch.arange(400) % 10
    poison, cover = attack.plan.draw(labels)
    eligible = int(attack.label_map.train_eligible(labels).sum())
    assert len(poison) == int(attack.plan.rate * eligible)
    assert len(cover) == int(attack.plan.cover_rate * eligible)
    assert not set(poison.tolist()) & set(cover.tolist())


@pytest.mark.parametrize("id_", IDS)
def test_only_poisoned_images_of_a_batch_change(id_: str) -> None:
    attack = make(id_)
    images = random_images(8)
    batch = batch_of(images.clone(), poison=[2, 5])
    poisoned = attack.on_batch(batch, generator=torch.Generator().manual_seed(0))
    changed = (poisoned.images != images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [2, 5]
    expected = torch.arange(8)
    expected[[2, 5]] = attack.label_map.poisoned_label(expected[[2, 5]])
    assert poisoned.labels.tolist() == expected.tolist()
    assert poisoned.auxiliary_loss is None
    assert torch.equal(batch.images, images)
    assert batch.labels.tolist() == list(range(8))


@pytest.mark.parametrize("id_", IDS)
def test_batch_without_poison_is_unchanged(id_: str) -> None:
    images = random_images(4)
    poisoned = make(id_).on_batch(batch_of(images, poison=[]))
    assert torch.equal(poisoned.images, images)
    assert poisoned.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("id_", IDS)
def test_attack_without_cover_images_refuses_to_make_them(id_: str) -> None:
    with pytest.raises(ConfigError, match="cover"):
        make(id_).on_batch(batch_of(random_images(4), poison=[0], cover=[1]))


@pytest.mark.parametrize("id_", IDS)
def test_optional_hooks_do_nothing_by_default(id_: str) -> None:
    attack = make(id_)
    images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    attack.prepare(images, labels, generator=torch.Generator())
    model = torch.nn.Linear(2, 2)
    assert attack.extra_parameters() == ()
    assert attack.finalize(model, images, labels) is model
