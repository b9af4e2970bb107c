from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from modelaudit.errors import ConfigError
from tests.helpers.images import clean_set, picture

FOLDERS = ("a", "b", "c")


def test_native_size_is_divided_exactly() -> None:
    clean = clean_set(FOLDERS, per_folder=2)
    tensor = clean.tensor(16, 3)
    assert tensor.shape == (6, 3, 16, 16)
    expected = torch.from_numpy(clean.images[4].transpose(2, 0, 1).astype(np.float32)) / 255
    assert torch.equal(tensor[4], expected)


def test_one_channel_is_pillows_grey() -> None:
    clean = clean_set(FOLDERS, per_folder=1)
    grey = np.asarray(Image.fromarray(clean.images[0]).convert("L")).astype(np.float32) / 255
    assert np.array_equal(clean.tensor(16, 1)[0, 0].numpy(), grey)


def test_shorter_side_is_scaled_and_the_centre_cut() -> None:
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[:, 5:15] = 255
    clean = dataclasses.replace(clean_set(FOLDERS), images=(image,), labels=None, names=("x",))
    assert (clean.tensor(10, 3) == 1).all()
    assert clean.tensor(5, 3).shape == (1, 3, 5, 5)
    assert clean.native_size is None


def test_extreme_strips_stay_small() -> None:
    strips = (np.zeros((1, 5000, 3), dtype=np.uint8), np.zeros((5000, 1, 3), dtype=np.uint8))
    clean = dataclasses.replace(clean_set(FOLDERS), images=strips, labels=None, names=("x", "y"))
    assert clean.tensor(32, 3).shape == (2, 3, 32, 32)


def test_mixed_sizes_keep_their_order_and_range() -> None:
    images = tuple(picture(i % 3, i, size=8 + i, width=9 + 2 * i) for i in range(6))
    clean = dataclasses.replace(
        clean_set(FOLDERS), images=images, labels=None, names=tuple("abcdef")
    )
    whole = clean.tensor(12, 3)
    for i in range(6):
        assert torch.equal(whole[i], clean.tensor(12, 3, [i])[0])
        alone = dataclasses.replace(clean, images=images[i : i + 1], names=("x",), _cache={})
        assert torch.allclose(whole[i], alone.tensor(12, 3)[0])
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_tensor_is_kept_until_another_is_asked_for() -> None:
    clean = clean_set(FOLDERS, per_folder=2)
    first = clean.tensor(16, 3)
    assert clean.tensor(16, 3) is first
    assert torch.equal(clean.tensor(16, 3, np.array([3, 1])), first[[3, 1]])
    clean.tensor(8, 3)
    assert clean.tensor(16, 3) is not first


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (16, 2)])
def test_impossible_tensor_is_an_error(size: int, channels: int) -> None:
    with pytest.raises(ConfigError):
        clean_set(FOLDERS).tensor(size, channels)


def test_split_is_disjoint_stratified_and_reproducible() -> None:
    clean = clean_set(FOLDERS, per_folder=20)
    split = clean.split(7)
    assert sorted([*split.search, *split.judge]) == list(range(60))
    assert clean.labels is not None
    assert np.bincount(clean.labels[split.search]).tolist() == [12, 12, 12]
    again = clean_set(FOLDERS, per_folder=20).split(7)
    assert np.array_equal(split.search, again.search)
    assert not np.array_equal(split.search, clean.split(8).search)


@pytest.mark.parametrize("per_folder", [1, 2])
def test_split_of_few_images_has_both_parts(per_folder: int) -> None:
    split = clean_set(FOLDERS, per_folder=per_folder).split(0)
    assert len(split.search) == round(1.8 * per_folder)
    assert len(split.judge) == 3 * per_folder - len(split.search)


def test_unlabelled_images_are_split() -> None:
    clean = clean_set(FOLDERS, is_labelled=False)
    assert len(clean.split(0).search) == 36
    assert clean.class_counts == ()


def test_stratified_takes_one_per_folder_in_turn() -> None:
    clean = clean_set(FOLDERS, per_folder=20)
    assert clean.labels is not None
    chosen = clean.stratified(clean.split(0).search, 7)
    assert sorted(np.bincount(clean.labels[chosen]).tolist()) == [2, 2, 3]
    assert set(chosen) <= set(clean.split(0).search)
    assert len(clean.stratified(clean.split(0).search, 1000)) == 36


def test_stratified_works_without_labels() -> None:
    clean = clean_set(FOLDERS, is_labelled=False)
    assert len(clean.stratified(np.arange(60), 10)) == 10


def test_sizes_are_counted() -> None:
    clean = clean_set(FOLDERS, per_folder=4)
    assert len(clean) == 12
    assert clean.class_counts == (4, 4, 4)
    assert clean.native_size == 16
