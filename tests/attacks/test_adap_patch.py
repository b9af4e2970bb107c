from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.adap_patch import AdapPatchAttack, AdapPatchConfig
from modelaudit.attacks.badnets import CHECKER
from modelaudit.attacks.base import Batch
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def adap_patch(*, size: int = 32, seed: int = 5, **config: object) -> AdapPatchAttack:
    return AdapPatchAttack(
        AdapPatchConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=seed,
    )


def box(top: int, left: int, side: int) -> torch.Tensor:
    is_inside = torch.zeros(32, 32, dtype=torch.bool)
    is_inside[top : top + side, left : left + side] = True
    return is_inside


CORNERS = box(0, 0, 3) | box(0, 29, 3) | box(29, 0, 3) | box(29, 29, 3)


@pytest.mark.parametrize(
    ("index", "expected", "alpha"),
    [
        (0, box(27, 27, 5), 0.5),
        (1, box(1, 18, 13), 0.2),
        (2, CORNERS, 0.5),
        (3, box(21, 21, 8), 0.3),
        (5, box(1, 18, 13), 0.2),
    ],
)
def test_each_training_image_gets_the_patch_of_its_index(
    index: int, expected: torch.Tensor, alpha: float
) -> None:
    trigger = adap_patch().trigger
    images = torch.full((1, 3, 32, 32), 77 / 255)
    triggered = trigger.apply_train(images, indices=torch.tensor([index]))
    change = triggered - images
    # A random colour may equal the grey of the image, in all three channels hardly.
    assert torch.equal((change != 0).any(1)[0], expected)
    pattern = trigger.state()["patterns"][index % 4]
    assert (change - alpha * (pattern - images) * expected).abs().max() <= 0.5 / 255 + 1e-6


def test_a_quarter_of_the_selection_gets_each_patch() -> None:
    attack = adap_patch()
    poison, cover = attack.plan.draw(torch.arange(45_000) % 10)
    for chosen in (poison, cover):
        assert len(chosen) == 2250
        assert ((chosen % 4).bincount() / 2250 - 0.25).abs().max() < 0.04


def test_test_trigger_shows_both_lower_corners_and_all_checkers_in_full() -> None:
    trigger = adap_patch().trigger
    images = torch.full((1, 3, 32, 32), 77 / 255)
    triggered = trigger.apply(images)[0]
    expected = box(27, 27, 5) | box(27, 0, 5) | CORNERS
    assert torch.equal((triggered != images[0]).any(0), expected)
    assert triggered[0, :3, 29:].tolist() == [list(row) for row in CHECKER]
    assert triggered[0, 29:, 29:].tolist() == [list(row) for row in CHECKER]
    corner = trigger.state()["patterns"][0]
    assert torch.equal(triggered[:, 27:29, 27:], corner[:, 27:29, 27:])
    assert torch.equal(triggered, triggered.flip(-1))


def test_other_test_trigger_shows_the_two_squares_in_full() -> None:
    trigger = adap_patch(test_patches="squares").trigger
    images = torch.full((1, 3, 32, 32), 77 / 255)
    triggered = trigger.apply(images)[0]
    assert torch.equal((triggered != images[0]).any(0), box(1, 18, 13) | box(21, 21, 8))
    patterns = trigger.state()["patterns"]
    assert torch.equal(triggered[:, 1:14, 18:31], patterns[1][:, 1:14, 18:31])
    assert torch.equal(triggered[:, 21:29, 21:29], patterns[3][:, 21:29, 21:29])


def test_boxes_scale_with_the_image() -> None:
    opacities = adap_patch(size=64).trigger.state()["opacities"]
    assert int((opacities[0] > 0).sum()) == 100
    assert int((opacities[1] > 0).sum()) == 26 * 26
    assert int((opacities[2] > 0).sum()) == 4 * 25
    assert (opacities[0, 54:, 54:] == 0.5).all()


def test_colours_follow_the_seed() -> None:
    one, same, other = (adap_patch(seed=s).trigger for s in (1, 1, 2))
    assert one.state_hash() == same.state_hash() != other.state_hash()


def test_cover_images_of_a_batch_get_the_patch_of_their_index_and_keep_their_label() -> None:
    attack = adap_patch(target=7)
    batch = Batch(
        images=random_images(3),
        labels=torch.tensor([1, 2, 3]),
        indices=torch.tensor([6, 9, 12]),
        is_poison=torch.tensor([True, False, False]),
        is_cover=torch.tensor([False, True, False]),
    )
    poisoned = attack.on_batch(batch)
    expected = attack.trigger.apply_train(batch.images[:2], indices=torch.tensor([2, 1]))
    assert torch.equal(poisoned.images[:2], expected)
    assert torch.equal(poisoned.images[2], batch.images[2])
    assert poisoned.labels.tolist() == [7, 2, 3]


@pytest.mark.parametrize(("size", "match"), [(2, "room for patches"), (4, "patch_size")])
def test_images_too_small_for_the_patches_raise(size: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        adap_patch(size=size)


@pytest.mark.parametrize(
    ("field", "value"),
    [("test_patches", "none"), ("rate", 0.0), ("cover_rate", -0.1), ("stage", "mid")],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        AdapPatchConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
