from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from modelaudit.cleanset import ImageLimits, read_clean_set
from modelaudit.cleanset.listing import read_limited
from modelaudit.errors import ConfigError, DataError
from tests.helpers.images import encoded, picture, write_folders

FOLDERS = ("cat", "dog", "owl")
#: a script of the project makes these from the shared CIFAR-10 pack
EXAMPLES = Path(__file__).parents[2] / "examples" / "clean"


def write_flat(root: Path, rows: str | None, count: int = 6) -> Path:
    root.mkdir(exist_ok=True)
    for i in range(count):
        (root / f"{i}.png").write_bytes(encoded(picture(i % 3, i)))
    if rows is not None:
        (root / "labels.csv").write_text(rows, encoding="utf-8")
    return root


def test_class_folders_give_images_labels_and_names(tmp_path: Path) -> None:
    clean = read_clean_set(write_folders(tmp_path / "clean", FOLDERS))
    assert clean.folders == FOLDERS
    assert clean.class_counts == (3, 3, 3)
    assert clean.available == 9
    assert clean.labels is not None
    at = clean.names.index("dog/2.png")
    assert clean.labels[at] == 1
    assert np.array_equal(clean.images[at], picture(1, 2))
    assert not clean.is_grey
    assert len(clean.sha256) == 64


def test_folders_are_sorted_naturally(tmp_path: Path) -> None:
    clean = read_clean_set(
        write_folders(tmp_path / "c", ("10", "9", "x2", "x10", "x1"), per_folder=1)
    )
    assert clean.folders == ("9", "10", "x1", "x2", "x10")


def test_other_files_are_counted_and_skipped(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS)
    (root / "readme.txt").write_text("x")
    (root / "cat" / "notes.md").write_text("x")
    (root / "cat" / ".hidden.png").write_text("x")
    (root / ".cache").mkdir()
    (root / "stray.png").write_bytes(encoded(picture(0, 0)))
    (root / "empty").mkdir()
    os.mkfifo(root / "cat" / "pipe.png")
    clean = read_clean_set(root)
    assert clean.folders == FOLDERS
    assert clean.skipped_files == 6
    assert clean.available == 9


def test_pictures_one_folder_deeper_are_found_and_no_deeper(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS)
    deeper = root / "cat" / "images"
    (deeper / "more").mkdir(parents=True)
    (deeper / "x.png").write_bytes(encoded(picture(0, 9)))
    (deeper / "more" / "y.png").write_bytes(encoded(picture(0, 9)))
    clean = read_clean_set(root)
    assert "cat/images/x.png" in clean.names
    assert clean.available == 10
    assert clean.skipped_files == 1


def test_maximum_is_shared_among_the_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS, per_folder=6)
    for i in range(2, 6):
        (root / "owl" / f"{i}.png").unlink()
    clean = read_clean_set(root, max_images=8)
    assert clean.class_counts == (3, 3, 2)
    assert clean.available == 14


def test_choice_follows_the_seed(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS, per_folder=8)
    first = read_clean_set(root, max_images=6, seed=1)
    assert first.names == read_clean_set(root, max_images=6, seed=1).names
    assert first.names != read_clean_set(root, max_images=6, seed=2).names
    assert first.sha256 == read_clean_set(root, max_images=6, seed=1).sha256
    assert len(read_clean_set(root, max_images=None)) == 24


def test_fewer_images_than_classes_keep_every_class_name(tmp_path: Path) -> None:
    clean = read_clean_set(write_folders(tmp_path / "clean", FOLDERS), max_images=2)
    assert clean.folders == FOLDERS
    assert clean.class_counts == (1, 1, 0)


def test_broken_picture_is_counted_and_replaced(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS, per_folder=4)
    for i in range(3):
        (root / "cat" / f"{i}.png").write_bytes(b"broken")
    clean = read_clean_set(root, max_images=6)
    assert clean.class_counts[0] == 1
    assert clean.class_counts[1] + clean.class_counts[2] == 5
    assert clean.skipped_files == 3
    assert clean.available == 9


def test_folder_of_broken_pictures_is_no_class(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS)
    for i in range(3):
        (root / "cat" / f"{i}.png").write_bytes(b"broken")
    clean = read_clean_set(root)
    assert clean.folders == ("dog", "owl")
    assert clean.labels is not None
    assert set(clean.labels.tolist()) == {0, 1}
    for i in range(3):
        (root / "dog" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="at least 2 classes, found 1 \\('owl'\\)"):
        read_clean_set(root)


def test_folder_of_only_broken_pictures_raises(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of its 1 pictures can be used"):
        read_clean_set(tmp_path)


def test_oversized_file_is_skipped(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS)
    (root / "cat" / "big.png").write_bytes(b"x" * 5000)
    clean = read_clean_set(root, limits=ImageLimits(file_bytes=4000))
    assert clean.skipped_files == 1


def test_unlabelled_folder_has_no_labels(tmp_path: Path) -> None:
    clean = read_clean_set(write_flat(tmp_path / "flat", None))
    assert clean.labels is None
    assert clean.folders == ()
    assert len(clean) == 6


def test_grey_pictures_are_noticed(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(np.full((4, 4), i, dtype=np.uint8)))
    clean = read_clean_set(tmp_path)
    assert clean.is_grey
    assert clean.images[0].shape == (4, 4, 3)


def test_labels_file_labels_a_flat_folder(tmp_path: Path) -> None:
    rows = "filename,label\n" + "".join(f"{i}.png,k{i % 2}\n" for i in range(4)) + "gone.png,k0\n\n"
    clean = read_clean_set(write_flat(tmp_path / "flat", rows))
    assert clean.folders == ("k0", "k1")
    assert clean.labels is not None
    assert clean.labels.tolist() == [0, 1, 0, 1]
    assert clean.skipped_files == 3  # one missing, two without a row


def test_labels_file_counts_into_the_digest(tmp_path: Path) -> None:
    rows = "filename,label\n0.png,a\n1.png,b\n"
    first = read_clean_set(write_flat(tmp_path / "x", rows)).sha256
    second = read_clean_set(write_flat(tmp_path / "y", rows.replace(",b", ",c"))).sha256
    assert first != second


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.png,a\n1.png,b\n", "expected the header 'filename,label', found '0.png,a'"),
        ("", "expected the header"),
        ("filename,label\n", "found none"),
        ("filename,label\n0.png\n", "line 2: expected 'filename,label'"),
        ("filename,label\n0.png,\n", "line 2: expected 'filename,label'"),
        ("filename,label\n0.png,a\n0.png,b\n", "line 3: '0.png' is labelled twice"),
        ("filename,label\n../0.png,a\n", "line 2: '../0.png' leads out of the folder"),
        ("filename,label\n/etc/hostname,a\n", "leads out of the folder"),
        ("filename,label\nC:\\x.png,a\n", "leads out of the folder"),
        ("filename,label\nx.png,a\ny.png,b\n", "none of its 2 files exists"),
        ("filename,label\n0.png,a\n1.png,a\n", "at least 2 classes, found 1 \\('a'\\)"),
        ('filename,label\n"0.png,a\n', "not a CSV file"),
    ],
)
def test_unusable_labels_file_raises(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_clean_set(write_flat(tmp_path / "flat", rows))


def test_labels_file_of_other_bytes_raises(tmp_path: Path) -> None:
    write_flat(tmp_path, None)
    (tmp_path / "labels.csv").write_bytes(b"filename,label\n\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_clean_set(tmp_path)


def test_labels_file_with_too_many_rows_raises(tmp_path: Path) -> None:
    root = write_flat(tmp_path, "filename,label\n" + "".join(f"{i}.png,a\n" for i in range(9)))
    with pytest.raises(DataError, match="more than 8 rows"):
        read_clean_set(root, limits=ImageLimits(files=8))


def test_pipe_is_no_picture_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="expected a regular file"):
        read_limited(tmp_path / "pipe.png", 10)


def test_symbolic_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(picture(0, 0)))
    root = write_flat(tmp_path / "flat", "filename,label\n0.png,a\nlink.png,b\n")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"'link\.png' leads out of the folder"):
        read_clean_set(root)


def test_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder or \.npz file"):
        read_clean_set(tmp_path / "none")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_name_that_is_no_path_raises(name: str) -> None:
    with pytest.raises(DataError):
        read_clean_set(name)


def test_file_instead_of_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded(picture(0, 0)))
    with pytest.raises(DataError, match=r"is a file; expected a folder of pictures or an \.npz"):
        read_clean_set(tmp_path / "x.png")


def test_empty_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="found none \\(1 other files\\)"):
        read_clean_set(tmp_path)


def test_one_class_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 2 classes, found 1 \('cat'\)"):
        read_clean_set(write_folders(tmp_path / "clean", FOLDERS[:1]))


def test_parts_of_a_dataset_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a dataset's parts \\['test', 'train'\\]"):
        read_clean_set(write_folders(tmp_path / "clean", ("train", "test")))


def test_too_many_files_raise(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "clean", FOLDERS)
    with pytest.raises(DataError, match="more than 5 files"):
        read_clean_set(root, limits=ImageLimits(files=5))


def test_folder_that_may_not_be_listed_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    root = write_folders(tmp_path / "clean", FOLDERS)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be listed \\(Permission denied\\)"):
        read_clean_set(root)


def test_file_that_may_not_be_read_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = os.open

    def refuse(path: str, flags: int) -> int:
        if str(path).endswith("1.png"):
            raise PermissionError(13, "Permission denied")
        return really_open(path, flags)

    root = write_folders(tmp_path / "clean", FOLDERS)
    monkeypatch.setattr(os, "open", refuse)
    assert read_clean_set(root).skipped_files == 3


def test_pipe_called_labels_file_is_no_labels_file(tmp_path: Path) -> None:
    root = write_flat(tmp_path, None)
    os.mkfifo(root / "labels.csv")
    assert read_clean_set(root).labels is None


def test_folder_behind_the_name_of_a_labels_row_is_skipped(tmp_path: Path) -> None:
    root = write_flat(tmp_path, "filename,label\n0.png,a\n1.png,b\nsub,a\n")
    (root / "sub").mkdir()
    assert read_clean_set(root).skipped_files == 5


def test_three_images_of_three_classes_are_read(tmp_path: Path) -> None:
    clean = read_clean_set(write_folders(tmp_path / "clean", FOLDERS, per_folder=1))
    assert clean.class_counts == (1, 1, 1)


def test_no_image_at_all_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        read_clean_set(tmp_path, max_images=0)


def test_example_images_are_read() -> None:
    if not EXAMPLES.is_dir():
        pytest.skip("examples/clean has not been made")
    clean = read_clean_set(EXAMPLES)
    assert len(clean) == 500
    assert clean.class_counts == (50,) * 10
    assert clean.native_size == 32
