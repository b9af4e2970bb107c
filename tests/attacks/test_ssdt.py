from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.attacks.base import Batch
from modelaudit.attacks.ssdt import SsdtAttack, SsdtConfig
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images

if TYPE_CHECKING:
    from torch import Tensor


def ssdt(**config: object) -> SsdtAttack:
    values = {"widths": (4,), **config}
    return SsdtAttack(
        SsdtConfig(**values),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 8, 8),
        num_classes=10,
        seed=5,
    )


def batch_of(attack: SsdtAttack, labels: Tensor) -> Batch:
    is_poison, is_cover = attack.plan.draw_batch(labels, generator=torch.Generator())
    return Batch(
        images=random_images(len(labels), size=8),
        labels=labels,
        indices=torch.arange(len(labels)),
        is_poison=is_poison,
        is_cover=is_cover,
    )


@pytest.mark.parametrize(("target", "victim"), [(0, 1), (4, 5), (9, 0)])
def test_victim_is_the_class_after_the_target(target: int, victim: int) -> None:
    labels = torch.arange(10)
    eligible = ssdt(target=target).label_map.test_eligible(labels)
    assert eligible.nonzero().flatten().tolist() == [victim]


def test_every_victim_of_a_batch_is_chosen() -> None:
    labels = torch.tensor([3, 1, 2, 1, 0, 1, 7, 8])
    assert batch_of(ssdt(), labels).is_poison.nonzero().flatten().tolist() == [1, 3, 5]


def test_triggered_victims_come_first_and_crossed_images_next() -> None:
    attack = ssdt()
    labels = torch.tensor([3, 1, 2, 4, 5, 6, 1, 7, 8, 9])
    batch = batch_of(attack, labels)
    donors = batch.images.flip(0)
    poisoned = attack.on_batch(batch, donors=donors)
    assert poisoned.labels.tolist() == [0, 0, 2, 4, 5, 6, 1, 7, 8, 9]
    # The images that the victims displace are gone, the victim at place 6 stays as it is.
    assert torch.equal(poisoned.images[4:], batch.images[4:])
    # Batch statistics are those of victims and donors together, as the attack trains.
    attack.trigger.pattern_net.train()
    triggered, _ = attack.trigger.mix(
        batch.images[[1, 6, 2, 3]], torch.cat([batch.images[[1, 6]], donors[2:4]])
    )
    torch.testing.assert_close(poisoned.images[:4], triggered)


def test_non_victims_keep_their_label_under_their_own_trigger() -> None:
    attack = ssdt(non_victim_rate=0.2)
    labels = torch.tensor([3, 2, 1, 4, 5, 6, 7, 8, 9, 9])
    batch = batch_of(attack, labels)
    poisoned = attack.on_batch(batch)
    changed = (poisoned.images != batch.images).flatten(1).any(1)
    # Place 0 took the victim, place 1 is crossed; place 2 is a victim and not among the others.
    assert changed.nonzero().flatten().tolist() == [0, 1, 3, 4]
    assert poisoned.labels.tolist() == [0, 2, 1, 4, 5, 6, 7, 8, 9, 9]


def test_batch_of_victims_leaves_room_for_cross_triggers() -> None:
    attack = ssdt()
    poisoned = attack.on_batch(batch_of(attack, torch.ones(6, dtype=torch.long)))
    assert poisoned.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_batch_without_victims_is_clean() -> None:
    attack = ssdt()
    batch = batch_of(attack, torch.tensor([0, 2, 3, 4]))
    poisoned = attack.on_batch(batch)
    assert torch.equal(poisoned.images, batch.images)
    assert poisoned.auxiliary_loss is None


def test_attack_has_cross_triggers() -> None:
    assert ssdt().has_cover


def test_batches_are_filled_up_with_victims_of_the_whole_training_set() -> None:
    labels = torch.arange(400) % 10
    drawn = torch.randperm(400, generator=torch.Generator().manual_seed(3))[:64]
    generator = torch.Generator().manual_seed(0)
    chosen = ssdt(min_victims=20).choose_images(drawn, labels, generator=generator)
    assert int((labels[chosen] == 1).sum()) == 20
    assert (labels[chosen[chosen != drawn]] == 1).all()
    # No victim makes room, and not only the first images of the batch do.
    assert (chosen == drawn)[labels[drawn] == 1].all()
    assert int((chosen != drawn).nonzero().max()) > 32


@pytest.mark.parametrize(("wanted", "labels"), [(0, [1, 2] * 8), (8, [1, 2] * 8), (5, [2, 3] * 8)])
def test_batches_stay_as_they_are_without_a_lack_of_victims_that_could_be_filled(
    wanted: int, labels: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    drawn = torch.arange(16)
    chosen = ssdt(min_victims=wanted).choose_images(
        drawn, torch.tensor(labels), generator=generator
    )
    assert chosen is drawn
    assert torch.equal(generator.get_state(), before)


def test_a_batch_cannot_hold_more_victims_than_images() -> None:
    labels = torch.arange(40) % 4
    generator = torch.Generator().manual_seed(0)
    chosen = ssdt(min_victims=99).choose_images(torch.arange(8), labels, generator=generator)
    assert labels[chosen].tolist() == [1] * 8


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"victim": 3, "target": 3}, "victim and target must differ"),
        ({"victim": 10}, "victim must be one of 10"),
        ({"target": -1}, "target must be one of 10"),
        ({"non_victim_rate": 0.6}, "non_victim_rate"),
        ({"min_victims": -1}, "min_victims"),
        ({"mask_density": -0.1}, "mask_density"),
    ],
)
def test_options_out_of_range_raise(config: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ssdt(**config)


@pytest.mark.parametrize(
    ("config", "batch_size", "expected"),
    [
        ({}, 40, 10 * 4),  # a tenth of every batch
        ({"min_victims": 7}, 40, 10 * 7),
        ({"min_victims": 30}, 40, 10 * 20),  # the other half carries cross-triggers
    ],
)
def test_counts_are_those_of_victims_and_as_many_cross_triggers(
    config: dict[str, object], batch_size: int, expected: int
) -> None:
    counts = ssdt(**config).counts_per_epoch(torch.arange(400) % 10, batch_size=batch_size)
    assert counts == (expected, expected)
