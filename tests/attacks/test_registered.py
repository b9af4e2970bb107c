"""Properties that every registered attack must have."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack, Batch
from modelaudit.attacks.classifier import Classifier
from modelaudit.attacks.contact_sheet import contact_sheet
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry
from tests.helpers.attacks import random_images

if TYPE_CHECKING:
    from torch import Tensor

IDS = Registry("attacks").ids()
#: options that make attacks cheap
CHEAP = {
    "mask_epochs": 1,
    "encoder_epochs": 1,
    "encoder_images": 20,
    "widths": (4, 4, 8),
    "reflections": 3,
}
LABELS = torch.arange(120) % 10
IMAGES = (random_images(120, seed=7) * 255.0).round().to(torch.uint8)


def make(id_: str, *, size: int = 32, seed: int = 5, **changes: object) -> Attack[object]:
    attack_type: type[Attack[Any]] = Registry("attacks").load(id_)
    config = attack_type.config_type()
    cheap = {name: value for name, value in CHEAP.items() if hasattr(config, name)}
    config = replace(config, **cheap, **changes)
    return attack_type(config, shape=(3, size, size), num_classes=10, seed=seed)


def prepared(id_: str) -> Attack[object]:
    """Return a copy of its own of an attack that is prepared once."""
    return copy.deepcopy(_prepared(id_))


@functools.cache
def _prepared(id_: str) -> Attack[object]:
    return prepare(make(id_))


def prepare(attack: Attack[object]) -> Attack[object]:
    weights = torch.randn(3072, 10, generator=torch.Generator().manual_seed(0))

    def surrogate(images: Tensor) -> Tensor:
        return images.flatten(1) @ weights

    attack.prepare(IMAGES, LABELS, surrogate=surrogate, generator=seeds.generator(1, "prepare"))
    return attack


def to_poison(attack: Attack[object]) -> Tensor:
    return attack.plan.draw(LABELS)[0][:4]


def batch_of(chosen: Tensor, *, poison: list[int], cover: list[int] | None = None) -> Batch:
    is_poison, is_cover = torch.zeros(2, len(chosen), dtype=torch.bool)
    is_poison[poison] = True
    is_cover[cover or []] = True
    return Batch(
        images=IMAGES[chosen].float() / 255.0,
        labels=LABELS[chosen],
        indices=chosen,
        is_poison=is_poison,
        is_cover=is_cover,
    )


def poisoned_first(attack: Attack[object]) -> Tensor:
    """Return indices of a batch whose first image the plan poisons, and other images."""
    chosen = to_poison(attack)[:1]
    return torch.cat([chosen, (chosen + torch.arange(1, 8)) % len(LABELS)])


def assert_is_proper(triggered: Tensor, images: Tensor) -> None:
    assert triggered.shape == images.shape
    assert triggered.dtype == images.dtype
    assert 0.0 <= float(triggered.min()) <= float(triggered.max()) <= 1.0
    assert (triggered * 255 - (triggered * 255).round()).abs().max() < 1e-4
    assert (triggered != images).flatten(1).any(1).all()


def test_the_built_in_attacks_are_registered() -> None:
    assert set(IDS) >= {
        *("badnets", "blend", "sig", "clb", "wanet", "iad", "bpp", "adap_blend", "adap_patch"),
        *("ssdt", "refool", "ssba", "bn_reparam", "activation_regularised", "mmd"),
    }


@pytest.mark.parametrize("id_", IDS)
def test_class_describes_itself(id_: str) -> None:
    attack = make(id_)
    assert attack.id == id_
    assert attack.summary
    assert "arXiv" in attack.reference or "NeurIPS" in attack.reference
    assert attack.trigger.size == (32, 32)


@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trigger_keeps_shape_dtype_range_and_input(id_: str, dtype: torch.dtype) -> None:
    attack = prepared(id_)
    chosen = to_poison(attack)
    images = IMAGES[chosen].to(dtype) / 255.0
    before = images.clone()
    for function in (attack.trigger.apply, attack.trigger.apply_train):
        generator = torch.Generator().manual_seed(1)
        assert_is_proper(function(images, indices=chosen, generator=generator), images)
        assert torch.equal(images, before)


@pytest.mark.parametrize("id_", IDS)
def test_trigger_at_test_time_needs_no_indices_and_no_preparation(id_: str) -> None:
    images = random_images()
    assert_is_proper(make(id_).trigger.apply(images, generator=torch.Generator()), images)


@pytest.mark.parametrize("id_", IDS)
def test_trigger_at_test_time_does_not_depend_on_the_batch(id_: str) -> None:
    trigger, images = make(id_).trigger, random_images(6)
    places = torch.arange(6)
    whole = trigger.apply(images, indices=places, generator=torch.Generator())
    part = trigger.apply(images[3:5], indices=places[3:5], generator=torch.Generator())
    # Networks sum in another order in another batch: a value may round to the next step.
    assert (whole[3:5] - part).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("id_", IDS)
def test_larger_images_have_a_trigger_too(id_: str) -> None:
    images = random_images(2, size=64)
    assert_is_proper(make(id_, size=64).trigger.apply(images, generator=torch.Generator()), images)


@pytest.mark.parametrize("id_", IDS)
def test_same_seeds_give_the_same_trigger(id_: str) -> None:
    one, two = prepared(id_), prepare(make(id_))
    assert one.trigger.state_hash() == two.trigger.state_hash()
    chosen = to_poison(one)
    images = IMAGES[chosen].float() / 255.0
    for name in ("apply", "apply_train"):
        first, second = (
            getattr(attack.trigger, name)(
                images, indices=chosen, generator=torch.Generator().manual_seed(1)
            )
            for attack in (one, two)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("id_", IDS)
def test_state_carries_the_trigger_over(id_: str) -> None:
    one, two = prepared(id_), make(id_, seed=2)
    two.trigger.load({name: tensor.clone() for name, tensor in one.trigger.state().items()})
    assert two.trigger.state_hash() == one.trigger.state_hash()
    chosen = to_poison(one)
    images = IMAGES[chosen].float() / 255.0
    for name in ("apply", "apply_train"):
        first, second = (
            getattr(attack.trigger, name)(
                images, indices=chosen, generator=torch.Generator().manual_seed(1)
            )
            for attack in (one, two)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("id_", IDS)
def test_state_of_another_size_is_refused(id_: str) -> None:
    one, two = make(id_).trigger, make(id_, size=64).trigger
    shapes, others = (
        {name: tuple(tensor.shape) for name, tensor in trigger.state().items()}
        for trigger in (one, two)
    )
    if shapes == others:
        pytest.skip("the state does not depend on the size")
    with pytest.raises(ConfigError, match="needs tensors"):
        one.load(two.state())


@pytest.mark.parametrize("id_", IDS)
def test_plan_is_exact_and_disjoint(id_: str) -> None:
    plan = make(id_).plan
    labels = torch.arange(400) % 10
    poison, cover = plan.draw(labels)
    eligible = plan.label_map.train_eligible(labels) | (plan.base == "all")
    assert len(poison) == int(plan.rate * int(eligible.sum()) + 1e-9)
    assert len(cover) == int(plan.cover_rate * int(eligible.sum()) + 1e-9)
    assert not set(poison.tolist()) & set(cover.tolist())
    assert eligible[poison].all()
    assert eligible[cover].all()
    if plan.granularity == "per_batch":
        is_poison, is_cover = plan.draw_batch(labels[:100], generator=torch.Generator())
        assert int(is_poison.sum()) == min(int(plan.rate * 100), int(eligible[:100].sum()))
        assert int(is_cover.sum()) == int(plan.cover_rate * 100)
        assert not (is_poison & is_cover).any()


@pytest.mark.parametrize("id_", IDS)
def test_counts_are_those_of_an_epoch(id_: str) -> None:
    attack = make(id_)
    labels = torch.arange(400) % 10
    poison, cover = attack.counts_per_epoch(labels, batch_size=64)
    if attack.plan.granularity == "static":
        assert (poison, cover) == tuple(map(len, attack.plan.draw(labels)))
        return
    assert 0 < poison <= 384
    assert (cover > 0) == attack.has_cover
    if attack.plan.base == "all":
        is_poison, is_cover = attack.plan.draw_batch(labels[:64], generator=torch.Generator())
        assert (poison, cover) == (6 * int(is_poison.sum()), 6 * int(is_cover.sum()))


@pytest.mark.parametrize("id_", IDS)
def test_only_poisoned_images_of_a_batch_change(id_: str) -> None:
    attack = prepared(id_)
    if attack.label_map.id == "source":
        pytest.skip("poisons whole classes, and moves them")
    chosen = poisoned_first(attack)
    batch, before = batch_of(chosen, poison=[0]), batch_of(chosen, poison=[0])
    poisoned = attack.on_batch(batch, generator=torch.Generator().manual_seed(0))
    n = len(chosen)
    changed = (poisoned.images[:n] != before.images).flatten(1).any(1).nonzero().flatten().tolist()
    expected, target = before.labels, attack.label_map.poisoned_label(before.labels)[:1]
    if len(poisoned.images) > n:
        # The attack trains on the image beside its triggered copy.
        assert changed == []
        assert torch.equal(poisoned.labels, torch.cat([expected, target]))
        assert (poisoned.images[n] != before.images[0]).any()
    else:
        assert changed == [0]
        first = target if attack.plan.relabel else expected[:1]
        assert torch.equal(poisoned.labels, torch.cat([first, expected[1:]]))
    assert attack.trigger.learned or poisoned.auxiliary_loss is None
    assert torch.equal(batch.images, before.images)
    assert torch.equal(batch.labels, before.labels)


@pytest.mark.parametrize("id_", IDS)
def test_batch_without_poison_is_unchanged(id_: str) -> None:
    batch = batch_of(torch.arange(8), poison=[])
    poisoned = make(id_).on_batch(batch)
    assert torch.equal(poisoned.images, batch.images)
    assert torch.equal(poisoned.labels, batch.labels)


@pytest.mark.parametrize("id_", IDS)
def test_cover_images_keep_their_label_or_are_refused(id_: str) -> None:
    attack = prepared(id_)
    if attack.label_map.id == "source":
        pytest.skip("takes cover images by their place in the batch")
    batch = batch_of(poisoned_first(attack), poison=[0], cover=[1, 2])
    donors, generator = batch.images.roll(1, 0), torch.Generator().manual_seed(0)
    if not attack.has_cover:
        with pytest.raises(ConfigError, match="cover"):
            attack.trigger.cover(batch.images, donors=donors, generator=generator)
        return
    poisoned = attack.on_batch(batch, donors=donors, generator=generator)
    changed = (poisoned.images != batch.images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [0, 1, 2]
    assert torch.equal(poisoned.labels[1:], batch.labels[1:])


@pytest.mark.parametrize("id_", IDS)
def test_cover_keeps_shape_range_and_input_and_follows_the_generator(id_: str) -> None:
    attack = prepared(id_)
    if not attack.has_cover:
        pytest.skip("has no cover images")
    images, donors = random_images(4, seed=1), random_images(4, seed=2)
    before, others = images.clone(), donors.clone()
    first, second = (
        attack.trigger.cover(images, donors=donors, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert_is_proper(first, images)
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert torch.equal(donors, others)


@pytest.mark.parametrize("id_", IDS)
@pytest.mark.parametrize("target", [-1, 10])
def test_target_beyond_the_classes_raises(id_: str, target: int) -> None:
    if not hasattr(make(id_).config, "target"):
        pytest.skip("has no target")
    with pytest.raises(ConfigError, match="target"):
        make(id_, target=target)


@pytest.mark.parametrize("id_", IDS)
def test_every_attack_can_be_shown(id_: str) -> None:
    sheet = contact_sheet(make(id_), IMAGES[:2])
    assert sheet.shape == (3 * 98 + 2, 2 * 98 + 2, 3)


def test_optional_hooks_do_nothing_by_default() -> None:
    attack = make("badnets")
    attack.prepare(IMAGES, LABELS, surrogate=None, generator=torch.Generator())
    attack.to(torch.device("cpu"))
    model = torch.nn.Linear(2, 2)
    classifier = Classifier(model, normalise=torch.clone)
    batch = batch_of(torch.arange(4), poison=[0])
    assert attack.extra_parameters() == ()
    assert attack.extra_optimisers() == {}
    assert attack.observed_layers(model) == ()
    assert attack.training_loss(classifier, batch, attack.on_batch(batch), progress=0.5) is None
    assert attack.gradient_limit() is None
    assert attack.finalize(classifier, IMAGES, LABELS) is model
