from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.adap_blend import AdapBlendAttack, AdapBlendConfig, PiecewiseBlendTrigger
from modelaudit.attacks.base import Batch
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def adap_blend(*, size: int = 32, **config: object) -> AdapBlendAttack:
    return AdapBlendAttack(
        AdapBlendConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=5,
    )


def changed_pieces(triggered: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the share of changed values in each of the 16 pieces, ``(N, 16)``."""
    side = images.shape[-1] // 4
    change = (triggered != images).float().mean(1)
    return change.unfold(1, side, side).unfold(2, side, side).mean((3, 4)).flatten(1)


def black_trigger() -> PiecewiseBlendTrigger:
    return PiecewiseBlendTrigger(torch.zeros(3, 32, 32), alpha=0.2, test_alpha=0.4)


def test_eight_of_sixteen_pieces_change_in_training_and_all_at_test_time() -> None:
    images = torch.ones(20, 3, 32, 32)
    trigger = black_trigger()
    trained = trigger.apply_train(images, generator=torch.Generator().manual_seed(0))
    pieces = changed_pieces(trained, images)
    assert set(pieces.flatten().tolist()) == {0.0, 1.0}
    assert pieces.sum(1).tolist() == [8.0] * 20
    assert changed_pieces(trigger.apply(images), images).sum(1).tolist() == [16.0] * 20


def test_opacity_is_that_of_training_and_of_test_time() -> None:
    images = torch.ones(1, 3, 32, 32)
    trained = black_trigger().apply_train(images, generator=torch.Generator().manual_seed(0))
    assert (trained * 255).round().unique().tolist() == [204.0, 255.0]
    assert (black_trigger().apply(images) * 255).round().unique().tolist() == [153.0]


def test_pieces_are_drawn_for_each_image_and_all_alike_often() -> None:
    images = torch.ones(400, 3, 32, 32)
    trained = black_trigger().apply_train(images, generator=torch.Generator().manual_seed(0))
    pieces = changed_pieces(trained, images)
    assert len(pieces.unique(dim=0)) > 350
    assert ((pieces.mean(0) - 0.5).abs() < 0.1).all()


def test_change_is_alpha_times_the_distance_to_the_picture() -> None:
    trigger = adap_blend().trigger
    images = random_images()
    expected = 0.2 * (trigger.state()["pattern"] - images)
    assert (trigger.apply(images) - images - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_poisoned_and_cover_images_carry_the_same_trigger_under_two_labels() -> None:
    attack = adap_blend(target=7)
    n = 6
    batch = Batch(
        images=torch.ones(n, 3, 32, 32),
        labels=torch.arange(n),
        indices=torch.arange(n),
        is_poison=torch.tensor([True, True, False, False, False, False]),
        is_cover=torch.tensor([False, False, True, True, False, False]),
    )
    poisoned = attack.on_batch(batch, generator=torch.Generator().manual_seed(0))
    pieces = changed_pieces(poisoned.images, batch.images)
    assert (pieces > 0.5).sum(1).tolist() == [8, 8, 8, 8, 0, 0]
    assert poisoned.labels.tolist() == [7, 7, 2, 3, 4, 5]


def test_plan_draws_from_all_classes() -> None:
    labels = torch.arange(1000) % 10
    poison, cover = adap_blend().plan.draw(labels)
    assert (len(poison), len(cover)) == (50, 50)
    assert (labels[torch.cat([poison, cover])] == 0).any()


def test_training_trigger_without_a_generator_raises() -> None:
    with pytest.raises(ConfigError, match="generator"):
        adap_blend().trigger.apply_train(random_images())


def test_size_that_does_not_divide_by_four_raises() -> None:
    with pytest.raises(ConfigError, match="divide by 4"):
        adap_blend(size=30)


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", 1.1), ("test_alpha", -0.1), ("rate", 0.0), ("cover_rate", -0.1), ("stage", "mid")],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        AdapBlendConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
