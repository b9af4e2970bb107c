from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.checkpoint import packed, state_dict_pickle, tensor_instructions, write

if TYPE_CHECKING:
    from pathlib import Path

PICKLE = state_dict_pickle(w=tensor_instructions())
GOOD = {"a/data.pkl": PICKLE, "a/data/0": bytes(16)}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({**GOOD, "b/data.pkl": PICKLE}, "ambiguous archive: 2 members named data.pkl in"),
        ({"data.pkl": PICKLE}, "ambiguous archive: 0 members named data.pkl in"),
        ({**GOOD, "b/version": b"3"}, "holds b/version, which torch does not write"),
        ({**GOOD, "a/evil.sh": b""}, "holds a/evil.sh, which torch does not write"),
        ({**GOOD, "a/data/0x": b""}, "holds a/data/0x, which torch does not write"),
        ({**GOOD, "a/data/0/1": b""}, "holds a/data/0/1, which torch does not write"),
        ({**GOOD, "a/": b""}, "holds a/, which torch does not write"),
        ({**GOOD, "version": b"3"}, "holds version, which torch does not write"),
    ],
)
def test_members_that_torch_does_not_write_are_refused(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(write(tmp_path, packed(members)))
    assert sentence in str(caught.value)


def test_members_that_torch_writes_are_read(tmp_path: Path) -> None:
    members = {
        **GOOD,
        "a/version": b"3\n",
        "a/byteorder": b"little",
        "a/.format_version": b"1",
        "a/.storage_alignment": b"64",
        "a/.data/serialization_id": b"1",
    }
    assert list(read_checkpoint(write(tmp_path, packed(members))).weights.tensors) == ["w"]


def test_archive_without_a_byte_order_is_little_endian(tmp_path: Path) -> None:
    content = packed({**GOOD, "a/data/0": b"\x00\x00\x80\x3f" * 4})
    assert read_checkpoint(write(tmp_path, content)).weights.tensors["w"].tolist() == [1] * 4


def test_unknown_byte_order_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="byteorder is b'middle', expected"):
        read_checkpoint(write(tmp_path, packed({**GOOD, "a/byteorder": b"middle"})))


@pytest.mark.parametrize("name", ["a/data.pkl", "a/data/0", "a/byteorder"])
def test_wrong_checksum_of_any_member_in_use_is_told(tmp_path: Path, name: str) -> None:
    import zlib

    members = {**GOOD, "a/byteorder": b"little"}
    checksum = zlib.crc32(members[name]).to_bytes(4, "little")
    content = packed(members)
    assert content.count(checksum) == 2
    with pytest.raises(CorruptCheckpointError, match=f"the checksum of {name} is wrong"):
        read_checkpoint(write(tmp_path, content.replace(checksum, b"oops")))


def test_real_torchscript_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        # torch announces the end of TorchScript; the files are still about
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript archive: contains program code"):
        read_checkpoint(tmp_path / "m.pt")


def test_real_torch_export_is_refused(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        # what torch warns of while it exports is its own affair
        warnings.simplefilter("ignore")
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(UnsafeCheckpointError, match=r"torch.export archive \(.pt2\)"):
        read_checkpoint(tmp_path / "m.pt2")
