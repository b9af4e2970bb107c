from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from modelaudit.bench.clean_sets import store_clean_set
from modelaudit.bench.degrade import (
    DEGRADATIONS,
    JPEG,
    WRONG_ORDER,
    degraded,
    in_wrong_order,
    write_degraded,
)
from modelaudit.bench.distort import DISTORTIONS
from modelaudit.cleanset import read_clean_set
from modelaudit.errors import ConfigError, DataError
from tests.helpers.attacks import tiny_data
from tests.helpers.images import picture, write_folders

if TYPE_CHECKING:
    from pathlib import Path


def batch(n: int) -> tuple[list[np.ndarray], np.ndarray]:
    return [picture(i % 3, i) for i in range(n)], np.arange(n) % 3


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize(("n", "count"), [(50, 5), (26, 3), (4, 0)])
def test_a_tenth_of_the_images_is_distorted_and_the_rest_is_untouched(
    name: str, n: int, count: int
) -> None:
    images, labels = batch(n)
    before = [image.copy() for image in images]
    made = degraded(images, labels, name)
    differing = [i for i in range(n) if not np.array_equal(made.images[i], images[i])]
    assert tuple(differing) == made.changed
    assert len(differing) == count
    assert made.labels.tolist() == labels.tolist()
    assert all(np.array_equal(a, b) for a, b in zip(images, before, strict=True))
    assert {image.dtype for image in made.images} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_seed_decides_everything(name: str) -> None:
    images, labels = batch(30)
    one, two = degraded(images, labels, name, seed=3), degraded(images, labels, name, seed=3)
    assert one.changed == two.changed
    assert all(np.array_equal(a, b) for a, b in zip(one.images, two.images, strict=True))
    if name in DISTORTIONS:
        assert degraded(images, labels, name, seed=4).changed != one.changed


def test_jpeg_changes_every_image_a_little() -> None:
    images, labels = batch(6)
    made = degraded(images, labels, JPEG)
    assert made.changed == tuple(range(6))
    for image, original in zip(made.images, images, strict=True):
        assert image.shape == original.shape
        difference = np.abs(image.astype(int) - original.astype(int))
        assert 0 < difference.mean() < 40


def test_a_wrong_order_moves_every_label_to_the_next_that_occurs() -> None:
    assert in_wrong_order(np.array([7, 2, 2, 4])).tolist() == [2, 4, 4, 7]
    images, labels = batch(6)
    made = degraded(images, labels, WRONG_ORDER)
    assert made.changed == ()
    assert made.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert all(np.array_equal(a, b) for a, b in zip(made.images, images, strict=True))


def test_an_unknown_degradation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"among color_jitter, .*, got 'fog'"):
        degraded(*batch(3), "fog")


def test_a_copy_of_a_folder_is_a_folder_that_differs_as_asked(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "clean", ("ant", "bee", "cow"), per_folder=10)
    made = write_degraded(source, tmp_path / "bad", "snow")
    assert len(made.changed) == 3
    one, two = read_clean_set(source), read_clean_set(tmp_path / "bad")
    assert two.folders == one.folders
    assert two.class_counts == (10, 10, 10)
    ordered = sorted(zip(two.names, two.images, strict=True), key=lambda pair: pair[0][-9:])
    same = [np.array_equal(a, b) for a, (_, b) in zip(one.images, ordered, strict=True)]
    assert [i for i, is_same in enumerate(same) if not is_same] == list(made.changed)


def test_a_copy_in_wrong_order_has_its_pictures_under_the_next_name(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "clean", ("ant", "bee", "cow"), per_folder=2)
    write_degraded(source, tmp_path / "bad", WRONG_ORDER)
    bee = read_clean_set(tmp_path / "bad")
    moved = [i for i, label in zip(bee.images, bee.labels, strict=True) if label == 1]  # type: ignore[arg-type]  # labelled
    assert all(any(np.array_equal(m, picture(0, i)) for i in range(2)) for m in moved)


def test_fewer_images_may_be_asked_for(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "clean", ("ant", "bee"), per_folder=20)
    made = write_degraded(source, tmp_path / "few", "polar_warp", images=20)
    assert len(made.images) == 20
    assert read_clean_set(tmp_path / "few").class_counts == (10, 10)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "clean", ("ant", "bee"))
    with pytest.raises(DataError, match="empty or new folder"):
        write_degraded(source, source, JPEG)


def test_unlabelled_images_cannot_be_sorted(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "clean", ("ant",)) / "ant"
    with pytest.raises(DataError, match="unlabelled"):
        write_degraded(source, tmp_path / "out", JPEG)


@pytest.mark.parametrize("name", ["salt_and_pepper", WRONG_ORDER])
def test_a_population_keeps_a_degraded_set_beside_the_plain_one(tmp_path: Path, name: str) -> None:
    data = tiny_data(n_train=60, held_out=40)
    plain = store_clean_set(tmp_path, lambda: data, name="toy", images=20)
    bad = store_clean_set(tmp_path, lambda: data, name="toy", images=20, degradation=name)
    assert (bad.name, bad.degradation) == (f"toy_20_{name}", name)
    one, two = read_clean_set(plain.path), read_clean_set(bad.path)
    same = [np.array_equal(a, b) for a, b in zip(one.images, two.images, strict=True)]
    assert one.labels is not None
    assert two.labels is not None
    if name == WRONG_ORDER:
        assert all(same)
        assert two.labels.tolist() == in_wrong_order(one.labels).tolist()
    else:
        assert same.count(False) == 2
        assert two.labels.tolist() == one.labels.tolist()
    with pytest.raises(ConfigError, match="expected a degradation"):
        store_clean_set(tmp_path, lambda: data, name="toy", images=20, degradation="fog")
