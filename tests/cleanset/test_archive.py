from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from modelaudit.cleanset import ImageLimits, read_clean_set
from modelaudit.errors import DataError
from tests.helpers.images import picture

IMAGES = np.stack([picture(i % 2, i, size=8) for i in range(6)])
LABELS = np.arange(6) % 2


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes names for its flag
    return path


def write_raw(path: Path, content: bytes, name: str = "images.npy") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image_key", "label_key"), [("images", "labels"), ("x", "y"), ("data", "y")]
)
def test_arrays_are_found_by_their_usual_names(
    tmp_path: Path, image_key: str, label_key: str
) -> None:
    path = write(tmp_path / "a.npz", **{image_key: IMAGES, label_key: LABELS})
    clean = read_clean_set(path)
    assert clean.folders == ("0", "1")
    assert clean.labels is not None
    assert clean.labels.tolist() == LABELS.tolist()
    assert np.array_equal(np.stack(clean.images), IMAGES)
    assert clean.names[3] == "images[3]"


def test_layouts_of_the_axes_agree(tmp_path: Path) -> None:
    last = read_clean_set(write(tmp_path / "a.npz", images=IMAGES))
    first = read_clean_set(write(tmp_path / "b.npz", images=IMAGES.transpose(0, 3, 1, 2)))
    fortran = read_clean_set(write(tmp_path / "c.npz", images=np.asfortranarray(IMAGES)))
    grey = read_clean_set(write(tmp_path / "d.npz", images=IMAGES[..., 0]))
    for i in range(6):
        assert np.array_equal(last.images[i], first.images[i])
        assert np.array_equal(last.images[i], fortran.images[i])
        assert np.array_equal(grey.images[i][..., 2], IMAGES[i, ..., 0])
    assert grey.is_grey
    assert last.labels is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_between_zero_and_one_are_pixels(tmp_path: Path, dtype: type) -> None:
    clean = read_clean_set(write(tmp_path / "a.npz", images=(IMAGES / 255).astype(dtype)))
    assert np.array_equal(np.stack(clean.images), IMAGES)


def test_labels_may_be_strings(tmp_path: Path) -> None:
    labels = np.array(["dog", "cat"] * 3)
    clean = read_clean_set(write(tmp_path / "a.npz", images=IMAGES, labels=labels))
    assert clean.folders == ("cat", "dog")
    assert clean.labels is not None
    assert clean.labels.tolist() == [1, 0] * 3


def test_maximum_is_stratified(tmp_path: Path) -> None:
    clean = read_clean_set(write(tmp_path / "a.npz", images=IMAGES, labels=LABELS), max_images=4)
    assert clean.class_counts == (2, 2)
    assert clean.available == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "expected an array 'images', 'x' or 'data', found"),
        ({"images": IMAGES * 1.0}, r"expected floats in \[0, 1\], found \[.*\]; save the pixels"),
        ({"images": np.full((2, 4, 4, 3), np.nan)}, r"found \[nan, nan\]"),
        ({"images": IMAGES.astype(np.int64)}, "found int64"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, r"found shape \(2, 4, 4, 4\)"),
        ({"images": np.zeros((4,), np.uint8)}, r"found shape \(4,\)"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "is empty"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "expected 6 labels"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, "found float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "at least 0, found -1"),
        ({"images": IMAGES, "labels": LABELS * 0}, "at least 2 classes, found 1"),
        ({"images": IMAGES, "labels": np.array(["a", ""] * 3)}, "found an empty string"),
        ({"images": np.array([{}, []], dtype=object)}, "Python objects"),
        ({"images": np.zeros(3, dtype=[("a", "u1")])}, "Python objects"),
    ],
)
def test_unusable_arrays_raise(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_clean_set(write(tmp_path / "a.npz", **arrays))


def test_header_that_claims_more_than_there_is_raises(tmp_path: Path) -> None:
    content = npy(np.zeros((2, 4, 4, 3), np.uint8)).replace(b"(2, 4, 4, 3)", b"(9999999999,)")
    with pytest.raises(DataError, match="declares shape"):
        read_clean_set(write_raw(tmp_path / "a.npz", content))


def test_negative_shape_raises(tmp_path: Path) -> None:
    content = npy(np.zeros((2, 4, 4, 3), np.uint8)).replace(b"(2, 4, 4, 3)", b"(-2,-4,4, 3)")
    with pytest.raises(DataError, match="declares shape"):
        read_clean_set(write_raw(tmp_path / "a.npz", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged header"),
        (b"\x93NUMPY\x01\x00\x04\x00{[[[", "damaged header"),
        (b"\x93NUMPY\x03\x00\x04\x00\x00\x00{}  ", "unknown format version"),
    ],
)
def test_damaged_array_raises(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_clean_set(write_raw(tmp_path / "a.npz", content))


def test_second_header_version_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, IMAGES, version=(2, 0))
    assert len(read_clean_set(write_raw(tmp_path / "a.npz", stream.getvalue()))) == 6


def test_archive_that_expands_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.npz", b"\0" * 10_000_000)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="expands to 10000000 bytes, the limit is 1000000"):
        read_clean_set(path, limits=ImageLimits(array_bytes=1_000_000))


def test_other_file_called_npz_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"expected an \.npz"):
        read_clean_set(path)


def test_damaged_member_raises(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.npz", npy(IMAGES))
    content = bytearray(path.read_bytes())
    content[100:140] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_clean_set(path)


def test_encrypted_member_raises(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.npz", npy(IMAGES))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_clean_set(path)


def test_archive_that_may_not_be_read_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.npz", images=IMAGES)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read \\(Permission denied\\)"):
        read_clean_set(path)
