from __future__ import annotations

import pytest
import torch

from modelaudit.fit import TrainingCrop, training_crops
from modelaudit.fit.crops import crops_for

MEAN = (0.2, 0.4, 0.6)


def test_no_crop_is_the_image_itself() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert training_crops(images, TrainingCrop.NONE, mean=MEAN) is images


@pytest.mark.parametrize(
    ("crop", "colour"), [(TrainingCrop.BLACK, (0.0, 0.0, 0.0)), (TrainingCrop.MEAN, MEAN)]
)
def test_crop_is_a_window_of_the_padded_image(
    crop: TrainingCrop, colour: tuple[float, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 32, 32, generator=generator)
    padded = torch.tensor(colour).view(1, 3, 1, 1).repeat(5, 1, 40, 40)
    padded[:, :, 4:36, 4:36] = images
    cut = training_crops(images, crop, mean=MEAN)
    assert cut.shape == images.shape
    for i in range(5):
        windows = padded[i].unfold(1, 32, 1).unfold(2, 32, 1)
        distance = (windows - cut[i][:, None, None]).abs().amax(dim=(0, 3, 4))
        assert distance.min() < 1e-6


def test_mirrored_border_adds_no_new_colour() -> None:
    images = torch.full((3, 1, 16, 16), 0.3)
    cut = training_crops(images, TrainingCrop.REFLECT, mean=(0.0,))
    assert torch.equal(cut, images)


def test_offsets_run_evenly_through_all_windows() -> None:
    images = torch.ones(810, 1, 32, 32)
    covered = training_crops(images, TrainingCrop.BLACK, mean=(0.0,)).mean().item()
    # A side loses |offset - 4| of its 32 pixels, 20/9 on average; the two sides are independent.
    assert covered == pytest.approx((1 - 20 / 9 / 32) ** 2, abs=1e-3)


def test_large_and_tiny_inputs_are_not_padded() -> None:
    assert crops_for(32) == tuple(TrainingCrop)
    assert crops_for(224) == (TrainingCrop.NONE,)
    assert crops_for(8) == (TrainingCrop.NONE,)
