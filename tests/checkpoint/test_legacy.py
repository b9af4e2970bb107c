from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import Limits, read_checkpoint
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import legacy, patched, write

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = legacy({"w": torch.tensor([1.0, 2.0])})
SIZE = len(PLAIN) - 16


def damage(folder: Path, content: bytes, limits: Limits | None = None) -> str:
    path = write(folder, content)
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(path, limits=limits or Limits())
    return str(caught.value).replace(f"{path}", "model.pt")


@pytest.mark.parametrize("cut", [1, 8, 9, 16])
def test_cut_file_says_so(tmp_path: Path, cut: int) -> None:
    assert damage(tmp_path, PLAIN[:-cut]) == (
        "model.pt is cut short: it ends within a tensor; download it again"
    )


@pytest.mark.parametrize("count", [-1, 3, 1 << 62])
def test_storage_that_claims_more_than_the_file_is_told(tmp_path: Path, count: int) -> None:
    content = patched(PLAIN, SIZE, struct.pack("<q", count))
    assert "is cut short" in damage(tmp_path, content)


def test_storage_smaller_than_its_tensor_is_told(tmp_path: Path) -> None:
    content = patched(PLAIN, SIZE, struct.pack("<q", 1))[:-4]
    assert damage(tmp_path, content) == "tensor 'w' needs 8 bytes, the file holds 4"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"\x80\x02M\xe9\x03.", b"\x80\x02M\xea\x03.", "the legacy protocol is not 1001"),
        (b"\x80\x02M\xe9\x03.", b"\x80\x02N.", "the legacy protocol is not 1001"),
        (b"\x80\x02]q\x00", b"\x80\x02}q\x00", "appended to something that is no list"),
    ],
)
def test_broken_frame_of_the_format_is_told(
    tmp_path: Path, old: bytes, new: bytes, sentence: str
) -> None:
    assert sentence in damage(tmp_path, PLAIN.replace(old, new))


def test_system_record_must_be_a_dict(tmp_path: Path) -> None:
    start = PLAIN.index(b"\x80\x02M\xe9\x03.") + 6
    end = PLAIN.index(b"\x80\x02}q\x00X\x01\x00\x00\x00w")
    content = PLAIN[:start] + b"\x80\x02N." + PLAIN[end:]
    assert "the system record is no dict" in damage(tmp_path, content)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (b"N.", "the list of storages is no list"),
        (b"]Na.", "the list of storages is not that of the tensors"),
        (b"]U\x011a.", "the list of storages is not that of the tensors"),
    ],
)
def test_list_of_storages_must_be_that_of_the_tensors(
    tmp_path: Path, keys: bytes, sentence: str
) -> None:
    start = PLAIN.index(b"\x80\x02]q\x00")
    assert sentence in damage(tmp_path, PLAIN[:start] + b"\x80\x02" + keys)


def test_storage_that_is_not_listed_is_told(tmp_path: Path) -> None:
    start = PLAIN.index(b"\x80\x02]q\x00")
    assert damage(tmp_path, PLAIN[:start] + b"\x80\x02].") == (
        "tensor 'w' needs 8 bytes, the file holds 0"
    )


def test_big_endian_machine_is_believed(tmp_path: Path) -> None:
    content = PLAIN.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    content = content[:-8] + struct.pack(">2f", 1.0, 2.0)
    assert read_checkpoint(write(tmp_path, content)).weights.tensors["w"].tolist() == [1.0, 2.0]


def test_pickle_longer_than_the_limit_is_told(tmp_path: Path) -> None:
    assert "longer than 200 bytes" in damage(tmp_path, PLAIN, Limits(max_pickle_bytes=200))


def nested(content: bytes) -> bytes:
    return (
        b"\x80\x03}U\x01wctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(content))
        + content
        + b"\x85RK\x00K\x02\x85K\x01\x85\x89}tRs."
    )


def test_storage_within_a_bare_pickle_is_read(tmp_path: Path) -> None:
    content = nested(legacy(torch.tensor([1.0, 2.0])._typed_storage()))
    assert read_checkpoint(write(tmp_path, content)).weights.tensors["w"].tolist() == [1.0, 2.0]


def test_file_within_a_bare_pickle_must_be_a_storage(tmp_path: Path) -> None:
    assert "holds something other than a storage" in damage(tmp_path, nested(PLAIN))
    assert "a file within the file is no bytes" in damage(
        tmp_path, b"\x80\x03ctorch.storage\n_load_from_bytes\nN\x85R."
    )


def test_bare_pickle_of_mixed_byte_orders_is_refused(tmp_path: Path) -> None:
    little = legacy(torch.tensor([1.0, 2.0])._typed_storage())
    big = little.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    first, second = nested(little)[:-1], nested(big)[3:]
    content = b"\x80\x03(" + first[2:] + b"}" + second + b""
    content = content[:-1] + b"t."
    assert "mixes byte orders" in damage(tmp_path, content)
