from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from modelaudit.attacks.adap_patch import AdapPatchAttack, AdapPatchConfig
from modelaudit.attacks.contact_sheet import contact_sheet
from modelaudit.errors import ConfigError, ShapeError
from tests.helpers.attacks import badnets, random_images

if TYPE_CHECKING:
    pass

#: cells of 32 pixels are enlarged three times, with 2 pixels of margin around them
CELL, STEP = 96, 98


def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = 2 + row * STEP, 2 + column * STEP
    return sheet[top : top + CELL, left : left + CELL].transpose(2, 0, 1)[:, ::3, ::3]


def test_rows_are_clean_triggered_and_ten_times_the_difference() -> None:
    images = random_images(3)
    attack = badnets()
    sheet = contact_sheet(attack, images)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 + 3 * STEP, 2 + 3 * STEP, 3)
    triggered = attack.trigger.apply(images)
    for column in range(3):
        clean = (images[column] * 255).round().numpy()
        assert np.array_equal(cell(sheet, 0, column), clean)
        assert np.array_equal(cell(sheet, 1, column), (triggered[column] * 255).round().numpy())
        difference = cell(sheet, 2, column)
        assert (difference[:, :29, :] == 128).all()
        steps = (triggered[column] - images[column]).numpy()[:, 29:, 29:]
        expected = np.clip(0.5 + 10 * steps, 0, 1) * 255
        assert np.abs(difference[:, 29:, 29:] - expected).max() <= 0.51


def test_cells_are_framed_in_white() -> None:
    sheet = contact_sheet(badnets(), torch.zeros(2, 3, 32, 32))
    is_margin = np.ones(sheet.shape[:2], dtype=bool)
    for row in range(3):
        for column in range(2):
            top, left = 2 + row * STEP, 2 + column * STEP
            is_margin[top : top + CELL, left : left + CELL] = False
    assert (sheet[is_margin] == 255).all()
    assert (sheet[2, 2] == 0).all()


def test_uint8_images_look_like_their_floating_equals() -> None:
    images = random_images(2)
    pixels = (images * 255).round().to(torch.uint8)
    assert np.array_equal(contact_sheet(badnets(), pixels), contact_sheet(badnets(), images))


def test_indices_and_the_trigger_of_training_are_passed_on() -> None:
    attack = AdapPatchAttack(AdapPatchConfig(), shape=(3, 32, 32), num_classes=10, seed=1)
    images = random_images(1)
    first, second = (
        contact_sheet(attack, images, indices=torch.tensor([i]), shown="training") for i in (0, 1)
    )
    assert not np.array_equal(first, second)
    expected = attack.trigger.apply_train(images, indices=torch.tensor([1]))
    assert np.array_equal(cell(second, 1, 0), (expected[0] * 255).round().numpy())


def test_large_images_are_not_enlarged() -> None:
    assert contact_sheet(badnets(size=128), torch.zeros(1, 3, 128, 128)).shape == (392, 132, 3)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (3, 32, 32), (2, 4, 32, 32)])
def test_what_is_no_batch_of_pictures_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="1 or 3"):
        contact_sheet(badnets(), torch.zeros(shape))


def test_cover_images_are_shown_as_they_are_made() -> None:
    attack = AdapPatchAttack(AdapPatchConfig(), shape=(3, 32, 32), num_classes=10, seed=1)
    images = random_images(2)
    sheet = contact_sheet(attack, images, shown="cover")
    expected = attack.trigger.cover(images)
    assert np.array_equal(cell(sheet, 1, 1), (expected[1] * 255).round().numpy())


def test_attack_without_cover_images_raises() -> None:
    with pytest.raises(ConfigError, match="'badnets' has no cover images"):
        contact_sheet(badnets(), random_images(1), shown="cover")
