from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.bench.clean_sets import draw_held_out, store_clean_set, write_clean_set
from modelaudit.cleanset import read_clean_set
from modelaudit.errors import ConfigError
from tests.helpers.attacks import tiny_data

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.data import ImageData


def uneven() -> ImageData:
    """Return data whose 40 held-out images are 25 of class 0 and 5 of each other."""
    data = tiny_data(n_train=60, held_out=40)
    labels = data.train_labels.clone()
    labels[20:] = torch.tensor([0] * 25 + [1, 2, 3] * 5)
    return replace(data, train_labels=labels)


def test_only_held_out_images_are_drawn_as_many_of_each_class_as_possible() -> None:
    data = uneven()
    chosen = draw_held_out(data, 22)
    assert chosen.min() >= data.attacker_count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert data.train_labels[chosen].bincount().tolist() == [7, 5, 5, 5]


def test_draw_follows_its_seed() -> None:
    data = uneven()
    assert torch.equal(draw_held_out(data, 12), draw_held_out(data, 12))
    assert not torch.equal(draw_held_out(data, 12), draw_held_out(data, 12, seed=1))


def test_all_are_taken_where_there_are_fewer() -> None:
    assert draw_held_out(uneven(), 500).tolist() == list(range(20, 60))


@pytest.mark.parametrize(("held_out", "count"), [(0, 5), (8, 0)])
def test_nothing_to_draw_raises(held_out: int, count: int) -> None:
    with pytest.raises(ConfigError, match="a clean set needs at least one"):
        draw_held_out(tiny_data(held_out=held_out), count)


def test_stored_set_is_what_a_user_would_give(tmp_path: Path) -> None:
    data = tiny_data(n_train=60, held_out=40)
    stored = store_clean_set(tmp_path, lambda: data, name="toy", images=20)
    read = read_clean_set(stored.path, max_images=stored.images)
    chosen = draw_held_out(data, 20)
    assert (stored.name, stored.degradation) == ("toy_20", None)
    assert read.class_counts == (5, 5, 5, 5)
    assert read.labels is not None
    assert read.labels.tolist() == data.train_labels[chosen].tolist()
    pixels = read.tensor(32, 3)
    assert torch.equal(pixels, data.train_images[chosen].float() / 255)


def test_set_is_made_once(tmp_path: Path) -> None:
    first = store_clean_set(tmp_path, tiny_data, name="toy", images=4, image_size=32)

    def unavailable() -> ImageData:
        raise AssertionError

    again = store_clean_set(tmp_path, unavailable, name="toy", images=4, image_size=32)
    assert again == first
    assert first.name == "toy_32px_4"


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    data = tiny_data()
    for name in ("one.npz", "two.npz"):
        write_clean_set(tmp_path / name, data.test_images, data.test_labels)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
