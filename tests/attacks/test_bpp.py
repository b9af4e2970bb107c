from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.bpp import BppAttack, BppConfig, dither, quantise
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def bpp(*, size: int = 32, **config: object) -> BppAttack:
    return BppAttack(
        BppConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=5,
    )


def slow_dither(image: torch.Tensor, levels: int) -> torch.Tensor:
    """Dither one channel with plain numbers and bounds checks."""
    height, width = image.shape
    work = image.tolist()
    for i in range(height):
        for j in range(width):
            old = work[i][j]
            work[i][j] = min(max(round(old * (levels - 1)) / (levels - 1), 0.0), 1.0)
            error = old - work[i][j]
            for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + di < height and 0 <= j + dj < width:
                    work[i + di][j + dj] += error * share / 16
    return torch.tensor(work, dtype=torch.float64)


@pytest.mark.parametrize("levels", [2, 8, 32])
@pytest.mark.parametrize("is_dithered", [False, True])
def test_few_levels_are_left_and_stay(levels: int, is_dithered: bool) -> None:
    trigger = bpp(size=16, levels=levels, is_dithered=is_dithered).trigger
    once = trigger.apply(random_images(2, size=16))
    assert once.unique().numel() <= levels
    assert torch.equal(trigger.apply(once), once)


def test_levels_are_evenly_spaced_and_halves_go_to_the_even_one() -> None:
    values = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.75, 1.0], dtype=torch.float64)
    # Two levels apart by 1/2 each: 0.25 and 0.75 lie in the middle.
    assert quantise(values, 3).tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert torch.allclose(
        bpp().trigger.apply(torch.full((1, 3, 32, 32), 100 / 255)) * 255, torch.tensor(109.0)
    )


def test_dithering_equals_the_literal_loop() -> None:
    image = random_images(1, size=9).double()
    dithered = dither(image, 4)
    for channel in range(3):
        assert torch.allclose(dithered[0, channel], slow_dither(image[0, channel], 4), atol=1e-9)


def test_dithering_keeps_the_mean_brightness() -> None:
    grey = torch.full((1, 1, 32, 32), 0.3, dtype=torch.float64)
    assert float(quantise(grey, 2).mean()) == 0.0
    assert float(dither(grey, 2).mean()) == pytest.approx(0.3, abs=0.02)


def test_negatives_add_the_error_of_a_donor() -> None:
    images = torch.full((2, 3, 32, 32), 20 / 255)
    donors = torch.full((5, 3, 32, 32), 100 / 255)
    covered = bpp().trigger.cover(images, donors=donors, generator=torch.Generator())
    # The level next to 100 is 109 (3/7 of 255).
    assert torch.allclose(covered * 255, torch.tensor(29.0))


def test_negatives_never_carry_their_own_error() -> None:
    images = random_images(40)
    trigger = bpp().trigger
    covered = trigger.cover(
        images[:20], donors=images[:20].roll(1, 0), generator=torch.Generator().manual_seed(0)
    )
    assert not (covered == trigger.apply(images[:20])).flatten(1).all(1).any()


def test_negatives_of_all_levels_are_the_images() -> None:
    images = random_images()
    covered = bpp(levels=256).trigger.cover(
        images, donors=images.roll(1, 0), generator=torch.Generator()
    )
    assert torch.allclose(covered, images, atol=1e-6)


def test_negatives_without_donors_or_generator_raise() -> None:
    images = random_images()
    with pytest.raises(ConfigError, match="donors"):
        bpp().trigger.cover(images, generator=torch.Generator())
    with pytest.raises(ConfigError, match="generator"):
        bpp().trigger.cover(images, donors=images)


def test_plan_takes_a_fifth_and_a_fifth_of_each_batch() -> None:
    labels = torch.zeros(128, dtype=torch.int64)
    is_poison, is_cover = bpp().plan.draw_batch(labels, generator=torch.Generator())
    assert (int(is_poison.sum()), int(is_cover.sum())) == (25, 25)
    assert bpp().plan.stage == "pre"


def test_label_maps_are_all_to_one_and_all_to_all() -> None:
    labels = torch.tensor([0, 4, 9])
    assert bpp(target=4).label_map.poisoned_label(labels).tolist() == [4, 4, 4]
    assert bpp(label_map="all").label_map.poisoned_label(labels).tolist() == [1, 5, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_map", "two"),
        ("levels", 1),
        ("levels", 257),
        ("rate", 0.0),
        ("negative_rate", -0.1),
        ("stage", "mid"),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        BppConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
