from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.badnets import CHECKER, BadNetsConfig, PatchTrigger
from modelaudit.errors import ConfigError, ShapeError
from tests.helpers.attacks import badnets, random_images


@pytest.mark.parametrize(("size", "patch_size", "pixels"), [(32, 3, 9), (64, 5, 25), (64, 6, 36)])
def test_exactly_the_corner_pixels_of_each_channel_change(
    size: int, patch_size: int, pixels: int
) -> None:
    pattern = "checker" if patch_size % 3 == 0 else "random_colour"
    trigger = badnets(size=size, patch_size=patch_size, pattern=pattern).trigger
    images = torch.full((2, 3, size, size), 77 / 255 if pattern == "checker" else 0.0)
    changed = trigger.apply(images) != images
    assert changed.flatten(2).sum(-1).tolist() == [[pixels] * 3] * 2
    assert changed[:, :, -patch_size:, -patch_size:].all()


def test_trigger_is_idempotent() -> None:
    trigger = badnets().trigger
    once = trigger.apply(random_images())
    assert torch.equal(trigger.apply(once), once)


def test_checker_is_the_published_one_in_every_channel() -> None:
    patch = badnets().trigger.apply(torch.full((1, 3, 32, 32), 0.4))[0, :, 29:, 29:]
    assert patch.tolist() == [[list(row) for row in CHECKER]] * 3


def test_larger_checker_scales_its_cells() -> None:
    patch = badnets(patch_size=6).trigger.apply(torch.full((1, 3, 32, 32), 0.4))[0, 0, 26:, 26:]
    assert patch[::2, ::2].tolist() == [list(row) for row in CHECKER]
    assert torch.equal(patch[::2], patch[1::2])


def test_random_colour_follows_the_seed_alone() -> None:
    one, same, other = (badnets(pattern="random_colour", seed=s).trigger for s in (1, 1, 2))
    assert one.state_hash() == same.state_hash() != other.state_hash()


def test_white_pattern_is_white() -> None:
    patch = badnets(pattern="white").trigger.state()["pattern"]
    assert torch.equal(patch, torch.ones(3, 3, 3))


def test_wrong_image_size_raises() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3, 32, 32\)"):
        badnets().trigger.apply(random_images(size=16))


def test_patch_larger_than_the_image_raises() -> None:
    with pytest.raises(ConfigError, match="must fit"):
        PatchTrigger(torch.ones(3, 5, 5), size=(4, 4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_map", "two"),
        ("pattern", "cat"),
        ("patch_size", 4),
        ("patch_size", 0),
        ("stage", "mid"),
        ("rate", 0.0),
        ("rate", 1.5),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        BadNetsConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_target_beyond_the_classes_raises() -> None:
    with pytest.raises(ConfigError, match="target"):
        badnets(target=10)
    with pytest.raises(ConfigError, match="target"):
        badnets(target=-1)


def test_all_to_one_and_all_to_all_have_their_label_maps() -> None:
    labels = torch.tensor([0, 4, 9])
    assert badnets(target=4).label_map.poisoned_label(labels).tolist() == [4, 4, 4]
    assert badnets(label_map="all").label_map.poisoned_label(labels).tolist() == [1, 5, 0]


@pytest.mark.parametrize(
    ("pattern", "sides"),
    [
        ("checker", {16: 3, 32: 3, 47: 3, 48: 6, 64: 6, 80: 9, 96: 9, 224: 21}),
        ("white", {32: 3, 47: 3, 48: 6, 64: 6, 80: 9, 224: 21}),
        ("random_colour", {16: 3, 32: 3, 51: 3, 52: 4, 64: 5, 224: 17}),
    ],
)
def test_open_patch_size_follows_the_images(pattern: str, sides: dict[int, int]) -> None:
    for size, side in sides.items():
        attack = badnets(size=size, pattern=pattern)
        assert attack.config.patch_size == side
        assert attack.trigger.state()["pattern"].shape == (3, side, side)
    assert badnets(size=64, pattern=pattern, patch_size=3).config.patch_size == 3


def test_open_patch_size_is_the_published_three_pixels_at_32() -> None:
    one, two = badnets(), badnets(patch_size=3)
    assert one.config == two.config
    assert one.trigger.state_hash() == two.trigger.state_hash()
