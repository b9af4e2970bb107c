from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelaudit.bench.data import load_data, load_folder, load_pack, pack_jpeg
from modelaudit.errors import DataError
from tests.helpers.attacks import write_pack

PACKS = Path("../shared/data")


def write_folder(root: Path, counts: dict[str, int]) -> None:
    for value, (name, n) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (10, 8), 30 * value + i).save(root / name / f"{i:03}.png")


def test_pack_gives_images_labels_and_classes(tmp_path: Path) -> None:
    write_pack(tmp_path / "toy_jpeg.npz")
    data = load_data(tmp_path / "toy_jpeg.npz")
    assert data.name == "toy"
    assert data.train_images.shape == (40, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels[:5].tolist() == [0, 1, 2, 3, 0]
    assert data.test_images.shape == (8, 3, 32, 32)
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert data.shape == (3, 32, 32)
    assert abs(int(data.train_images[3].float().mean()) - 120) <= 2


def test_last_tenth_is_held_out_unless_the_pack_says_otherwise(tmp_path: Path) -> None:
    write_pack(tmp_path / "plain.npz")
    write_pack(tmp_path / "stated.npz", train_attacker_count=np.int64(31))
    assert load_pack(tmp_path / "plain.npz").attacker_count == 36
    assert load_pack(tmp_path / "stated.npz").attacker_count == 31


def test_decoded_pixels_are_kept_and_read_again(tmp_path: Path) -> None:
    write_pack(tmp_path / "toy.npz")
    first = load_pack(tmp_path / "toy.npz", cache=tmp_path / "cache")
    kept = sorted(file.name for file in (tmp_path / "cache").iterdir())
    second = load_pack(tmp_path / "toy.npz", cache=tmp_path / "cache")
    assert len(kept) == 2
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.test_images, second.test_images)


def test_stored_bytes_come_back_unchanged(tmp_path: Path) -> None:
    write_pack(tmp_path / "toy.npz")
    jpegs = pack_jpeg(tmp_path / "toy.npz", [3, 0])
    with Image.open(io.BytesIO(jpegs[0])) as image:
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))
    assert torch.equal(pixels, load_pack(tmp_path / "toy.npz").train_images[3])
    assert len(jpegs) == 2


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_file_that_is_no_pack_raises(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pack.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="expected a pack"):
        load_data(path)
    with pytest.raises(DataError, match="expected a pack"):
        pack_jpeg(path, [0])


def test_pack_with_too_few_offsets_raises(tmp_path: Path) -> None:
    write_pack(tmp_path / "toy.npz", test_offsets=np.arange(3))
    with pytest.raises(DataError, match="3 test offsets for 8 labels"):
        load_pack(tmp_path / "toy.npz")


def test_pack_without_labels_raises(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="train_labels"):
        load_pack(tmp_path / "other.npz")


def test_folder_is_split_by_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"b": 20, "a": 10})
    (tmp_path / "notes.txt").write_text("no class")
    data = load_data(tmp_path, size=16)
    assert data.classes == ("a", "b")
    assert data.train_images.shape == (27, 3, 16, 16)
    assert data.test_labels.tolist() == [0, 1, 1]
    assert data.attacker_count == 25
    held_out = data.train_labels[data.attacker_count :].tolist()
    assert sorted(held_out) == [0, 1]


def test_tiny_imagenet_is_read_as_it_is_published(tmp_path: Path) -> None:
    write_folder(tmp_path / "flat", {"n01": 20, "n02": 10})
    for name in ("n01", "n02"):
        images = tmp_path / "published" / name / "images"
        images.mkdir(parents=True)
        for file in (tmp_path / "flat" / name).iterdir():
            with Image.open(file) as image:
                image.convert("RGB").save(images / f"{name}_{file.stem}.JPEG")
        (images.parent / f"{name}_boxes.txt").write_text(f"{name}_000.JPEG\t0\t0\t62\t62\n")
    data = load_folder(tmp_path / "published")
    flat = load_folder(tmp_path / "flat")
    assert data.classes == ("n01", "n02")
    assert torch.equal(data.train_labels, flat.train_labels)
    assert (data.train_images.float() - flat.train_images.float()).abs().max() <= 2


def test_what_is_hidden_or_no_image_is_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 5, "b": 5})
    expected = load_folder(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "a" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "a" / "._000.png").write_bytes(b"Mac")
    (tmp_path / "a" / ".cache").mkdir()
    (tmp_path / "a" / ".cache" / "000.png").write_bytes(b"thumbnail")
    (tmp_path / "b" / "labels.csv").write_text("000.png,1")
    data = load_folder(tmp_path)
    assert data.classes == ("a", "b")
    assert torch.equal(data.train_images, expected.train_images)


def test_folder_with_one_class_raises(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 5})
    with pytest.raises(DataError, match="found 1 subfolders"):
        load_folder(tmp_path)


def test_class_with_too_few_images_raises(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 5, "b": 2})
    with pytest.raises(DataError, match="at least 3 images"):
        load_folder(tmp_path)


def test_file_that_is_no_image_raises(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b" / "000.png").write_text("text")
    with pytest.raises(DataError, match="expected an image"):
        load_folder(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "attacker"), [("cifar10", 10, 45000), ("gtsrb", 43, None)]
)
def test_shared_packs_keep_the_split_convention(
    name: str, classes: int, attacker: int | None
) -> None:
    path = PACKS / f"{name}_jpeg.npz"
    if not path.exists():
        pytest.skip(f"the data pack {path} is not here")
    data = load_pack(path)
    assert len(data.classes) == classes
    assert data.shape == (3, 32, 32)
    assert data.attacker_count == (attacker or data.attacker_count)
    assert 0.8 < data.attacker_count / len(data.train_images) < 0.95
