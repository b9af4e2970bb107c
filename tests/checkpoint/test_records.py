from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.checkpoint._records import check_record
from modelaudit.checkpoint._values import StorageRef, TensorRecord, contiguous_stride
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import one_tensor, write

if TYPE_CHECKING:
    from pathlib import Path


def damage(folder: Path, content: bytes = bytes(16), **claims: Any) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(write(folder, one_tensor(content, **claims)))
    return str(caught.value)


@pytest.mark.parametrize("held", [0, 4, 12, 20])
def test_storage_of_another_size_is_told(tmp_path: Path, held: int) -> None:
    assert damage(tmp_path, bytes(held)) == f"tensor 'w' needs 16 bytes, the file holds {held}"


def test_missing_storage_is_told(tmp_path: Path) -> None:
    assert damage(tmp_path, key="7") == "tensor 'w' needs 16 bytes, the file holds 0"


@pytest.mark.parametrize(
    ("offset", "size", "stride", "needed"),
    [
        (1, (4,), (1,), 20),
        (0, (5,), (1,), 20),
        (0, (2, 2), (3, 1), 20),
        (4, (), (), 20),
        (1 << 62, (1,), (1,), (1 << 64) + 4),
        (0, (2,), (1 << 62,), (1 << 64) + 4),
    ],
)
def test_view_that_leaves_its_storage_is_told(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], needed: int
) -> None:
    assert damage(tmp_path, offset=offset, size=size, stride=stride) == (
        f"tensor 'w' needs {needed:,} bytes, the file holds 16"
    )


@pytest.mark.parametrize(
    ("size", "stride"), [((9,), (0,)), ((2, 2), (1, 1)), ((2, 3), (2, 1)), ((3, 2), (1, 2))]
)
def test_view_that_counts_elements_twice_is_told(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    assert "elements that share memory; save it contiguous" in damage(
        tmp_path, size=size, stride=stride
    )


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        ((2, 2), (1, 2), [[0, 2], [1, 3]]),
        ((2,), (3,), [0, 3]),
        ((1, 4), (0, 1), [[0, 1, 2, 3]]),
        ((1, 4), (99, 1), [[0, 1, 2, 3]]),
        ((0,), (0,), []),
        ((), (), 0),
    ],
)
def test_honest_views_are_read(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], expected: object
) -> None:
    content = torch.arange(4.0).numpy().tobytes()
    path = write(tmp_path, one_tensor(content, size=size, stride=stride))
    assert read_checkpoint(path).weights.tensors["w"].tolist() == expected


def test_dtype_that_no_weight_has_is_told(tmp_path: Path) -> None:
    sentence = damage(tmp_path, bytes(32), kind="torch ComplexFloatStorage")
    assert sentence == "tensor 'w' has dtype complex64, which is not supported; save it as float32"


def test_view_of_raw_bytes_is_bounded_in_its_own_unit() -> None:
    raw = StorageRef("0", "uint8", 10)
    storages = {"0": memoryview(bytes(10))}
    assert check_record("w", TensorRecord(raw, "float32", 0, (2,), (1,)), storages) == 2
    with pytest.raises(CorruptCheckpointError, match="needs 12 bytes, the file holds 10"):
        check_record("w", TensorRecord(raw, "float32", 0, (3,), (1,)), storages)


def test_contiguous_strides_are_torchs() -> None:
    for size in ((), (3,), (2, 3, 4), (2, 0, 4), (1, 1)):
        assert contiguous_stride(size) == torch.empty(size).stride()
