from __future__ import annotations

import math

import pytest
import torch

from modelaudit.attacks.wanet import WaNetAttack, WaNetConfig, WarpTrigger
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def wanet(*, size: int = 32, seed: int = 5, **config: object) -> WaNetAttack:
    return WaNetAttack(
        WaNetConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=seed,
    )


def slow_warp(image: torch.Tensor, field: torch.Tensor, strength: float) -> torch.Tensor:
    """Sample one channel pixel by pixel, in pixel coordinates."""
    height, width = image.shape
    warped = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            # From [-1, 1] to pixels: a displacement s n / H is s n / H * (H - 1) / 2 pixels.
            x = j + strength * float(field[i, j, 0]) / width * (width - 1) / 2
            y = i + strength * float(field[i, j, 1]) / height * (height - 1) / 2
            x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
            left, top = min(math.floor(x), width - 2), min(math.floor(y), height - 2)
            across, down = x - left, y - top
            for row, share in ((top, 1 - down), (top + 1, down)):
                for column, part in ((left, 1 - across), (left + 1, across)):
                    warped[i, j] += share * part * float(image[row, column])
    return warped


def test_warp_equals_sampling_pixel_by_pixel() -> None:
    trigger = wanet(size=12, strength=3.0).trigger
    image = random_images(1, size=12)
    expected = slow_warp(image[0, 1], trigger.state()["field"], 3.0)
    assert (trigger.apply(image)[0, 1] - expected).abs().max() <= 0.5 / 255 + 1e-4


def test_strength_zero_is_the_identity() -> None:
    images = random_images()
    assert torch.allclose(wanet(strength=0.0).trigger.apply(images), images, atol=1e-6)


def test_constant_image_is_unchanged() -> None:
    images = torch.full((1, 3, 32, 32), 77 / 255)
    assert torch.allclose(wanet().trigger.apply(images), images, atol=1e-6)


def test_control_field_has_mean_absolute_value_one() -> None:
    # With as many control points as pixels, bicubic interpolation returns them.
    field = wanet(size=8, control_points=8).trigger.state()["field"]
    assert float(field.abs().mean()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_displacement_is_the_same_number_of_pixels_at_every_size(size: int) -> None:
    field = wanet(size=size).trigger.state()["field"]
    pixels = 0.5 * field / size * (size - 1) / 2
    assert 0.2 < float(pixels.norm(dim=-1).mean()) < 0.4


def test_relative_strength_grows_with_the_side() -> None:
    assert float(wanet(size=64).trigger.state()["strength"]) == 0.5
    assert float(wanet(size=64, is_relative=True).trigger.state()["strength"]) == 1.0


def test_field_follows_the_seed_alone() -> None:
    one, same, other = (wanet(seed=s).trigger for s in (1, 1, 2))
    assert one.state_hash() == same.state_hash() != other.state_hash()


def test_noise_warps_differ_from_image_to_image() -> None:
    images = random_images(1).expand(3, -1, -1, -1)
    covered = wanet().trigger.cover(images, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(covered[0], covered[1])
    assert not torch.equal(covered[1], covered[2])


def test_noise_moves_each_pixel_by_less_than_half_a_pixel() -> None:
    # A ramp along the columns tells where each value was sampled; without a field only noise acts.
    trigger = WarpTrigger(torch.zeros(32, 32, 2), strength=0.5, channels=1)
    ramp = (torch.arange(32) * 8 / 255).expand(1, 1, 32, 32)
    covered = trigger.cover(ramp, generator=torch.Generator().manual_seed(0))
    moved = ((covered - ramp) * 255 / 8)[..., 1:-1]
    assert float(moved.abs().max()) <= 31 / 64 + 0.5 / 8 + 1e-3
    assert float(moved.abs().mean()) == pytest.approx(31 / 128, abs=0.03)


def test_noise_without_a_generator_raises() -> None:
    with pytest.raises(ConfigError, match="generator"):
        wanet().trigger.cover(random_images())


def test_plan_takes_a_tenth_and_a_fifth_of_each_batch_of_any_class() -> None:
    plan = wanet().plan
    labels = torch.zeros(128, dtype=torch.int64)
    is_poison, is_cover = plan.draw_batch(labels, generator=torch.Generator())
    assert is_poison.nonzero().flatten().tolist() == list(range(12))
    assert is_cover.nonzero().flatten().tolist() == list(range(12, 37))


def test_label_maps_are_all_to_one_and_all_to_all() -> None:
    labels = torch.tensor([0, 4, 9])
    assert wanet(target=4).label_map.poisoned_label(labels).tolist() == [4, 4, 4]
    assert wanet(label_map="all").label_map.poisoned_label(labels).tolist() == [1, 5, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_map", "two"),
        ("control_points", 1),
        ("strength", -0.1),
        ("rate", 0.0),
        ("noise_rate", 1.1),
        ("stage", "mid"),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        WaNetConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
