from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.refool import RefoolAttack, RefoolConfig
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def refool(*, seed: int = 5, **config: object) -> RefoolAttack:
    config = {"reflections": 4, **config}
    return RefoolAttack(
        RefoolConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 16, 16),
        num_classes=10,
        seed=seed,
    )


def test_an_index_always_gets_the_same_reflection() -> None:
    trigger = refool().trigger
    images = random_images(4, size=16)
    whole = trigger.apply(images, indices=torch.tensor([8, 3, 5, 3]))
    again = trigger.apply(images[2:], indices=torch.tensor([5, 3]))
    assert torch.equal(whole[2:], again)
    trained = trigger.apply_train(images, indices=torch.tensor([8, 3, 5, 3]))
    assert torch.equal(trained, whole)


def test_indices_differ_in_their_reflections() -> None:
    images = random_images(1, size=16).expand(12, -1, -1, -1)
    triggered = refool(reflections=1).trigger.apply(images, indices=torch.arange(12))
    assert len(triggered.flatten(1).unique(dim=0)) > 8


def test_fixed_transmission_bounds_the_images_own_light() -> None:
    images = random_images(6, size=16)
    triggered = refool(transmission=0.4).trigger.apply(images)
    # Reflected light only adds to a of the image's own.
    assert (triggered >= images * 0.4 ** (1 / 2.2) - 1 / 255).all()
    assert (triggered < images * 0.5 ** (1 / 2.2)).any()


def test_no_fixed_transmission_draws_it_as_the_paper_does() -> None:
    state = refool(transmission=None).trigger.state()
    assert state["transmission"].tolist() == [0.55, 0.95]


def test_dirty_label_is_the_default_and_clean_label_an_option() -> None:
    labels = torch.arange(1000) % 10
    dirty, clean = refool(target=3), refool(target=3, label_map="clean_label", rate=0.2)
    poison, _ = dirty.plan.draw(labels)
    assert len(poison) == 90
    assert not (labels[poison] == 3).any()
    assert dirty.plan.relabel
    poison, _ = clean.plan.draw(labels)
    assert labels[poison].tolist() == [3] * 20
    assert not clean.plan.relabel


def test_pool_has_as_many_different_pictures_as_asked() -> None:
    pool = refool(reflections=6).trigger.state()["pool"]
    assert pool.shape == (6, 3, 16, 16)
    assert pool.dtype == torch.uint8
    assert len(pool.flatten(1).unique(dim=0)) == 6


def test_pool_and_choices_follow_the_seed() -> None:
    one, same, other = (refool(seed=s).trigger for s in (1, 1, 2))
    assert one.state_hash() == same.state_hash() != other.state_hash()
    images = random_images(3, size=16)
    assert not torch.equal(one.apply(images), other.apply(images))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_map", "all"),
        ("transmission", 1.5),
        ("reflections", 0),
        ("rate", 0.0),
        ("stage", "mid"),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        RefoolConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
