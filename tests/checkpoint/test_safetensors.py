from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save

from modelaudit.checkpoint import Limits, read_checkpoint
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.checkpoint import entry, net, safetensors, write

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def damage(folder: Path, content: bytes, limits: Limits | None = None) -> str:
    path = write(folder, content)
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(path, limits=limits or Limits())
    return str(caught.value).replace(f"{path}", "model.pt")


def test_files_of_the_library_come_back_equal(tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = {
        str(dtype): torch.tensor([[0, 1], [2, 3]]).to(dtype) for dtype in DTYPES
    }
    state |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}
    result = read_checkpoint(write(tmp_path, save(state, {"arch": "resnet18"})))
    assert result.weights.tensors.keys() == state.keys()
    for key, tensor in state.items():
        assert result.weights.tensors[key].dtype == tensor.dtype
        assert torch.equal(result.weights.tensors[key], tensor)
    assert result.format == "safetensors"
    assert result.weights.metadata == {"arch": "resnet18"}


def test_wrapper_prefix_is_removed(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in net().state_dict().items()}
    result = read_checkpoint(write(tmp_path, save(state)))
    assert result.stripped_prefix == "module."
    assert "conv.weight" in result.weights.tensors


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            safetensors(b"{}", bytes(94), length=1 << 63),
            "model.pt: header length 9,223,372,036,854,775,808 exceeds the file (104 bytes)",
        ),
        (
            safetensors({"a": entry(), "b": entry(start=4, end=12)}, bytes(12)),
            "tensor 'b' overlaps 'a' in model.pt",
        ),
        (
            safetensors({"a": entry(), "b": entry(start=12, end=20)}, bytes(20)),
            "4 bytes before tensor 'b' belong to none in model.pt",
        ),
        (
            safetensors({"a": entry()}, bytes(4)),
            "model.pt is cut short: its tensors need 8 bytes, the file holds 4; download it again",
        ),
        (
            safetensors(
                b'{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
                b'"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
            ),
            "duplicate tensor 'w' in the header of model.pt",
        ),
        (safetensors(b'{"w":'), "the header of model.pt is no JSON"),
        (safetensors(b'{"\xff":1}'), "the header of model.pt is no JSON"),
        (safetensors(b'{"a":' + b"[" * 100_000), "the header of model.pt is no JSON"),
        (safetensors(b'{"a":' + b"1" * 5000 + b"}"), "the header of model.pt is no JSON"),
        (safetensors({"a": 3}), "tensor 'a' needs dtype, shape and data_offsets in the header"),
        (safetensors({"a": {**entry(), "x": 1}}), "tensor 'a' needs dtype, shape and data_offsets"),
        (safetensors({"a": entry(shape=[-2])}), "tensor 'a' has a shape that is none"),
        (safetensors({"a": entry(shape=[True])}), "tensor 'a' has a shape that is none"),
        (safetensors({"a": entry(shape="2")}), "tensor 'a' has a shape that is none"),
        (safetensors({"a": entry(shape=[1] * 65)}), "tensor 'a' has a shape that is none"),
        (safetensors({"a": entry(start=8, end=0)}), "tensor 'a' has data_offsets that are none"),
        (safetensors({"a": entry(start=-8, end=0)}), "tensor 'a' has data_offsets that are none"),
        (
            safetensors({"a": {**entry(), "data_offsets": [0]}}),
            "tensor 'a' has data_offsets that are none",
        ),
        (safetensors({"a": entry("F3\x1b")}), "tensor 'a' has the unknown dtype F3\\x1b"),
        (safetensors({"a": {**entry(), "dtype": 3}}), "tensor 'a' has the unknown dtype no text"),
        (
            safetensors({"a": entry(shape=[3])}, bytes(8)),
            "tensor 'a' needs 12 bytes, the file holds 8",
        ),
        (
            safetensors({"a": entry(shape=[1 << 62] * 64)}, bytes(8)),
            "tensor 'a' needs ",
        ),
        (safetensors({"__metadata__": 3}), "__metadata__ is no JSON object"),
        (safetensors({"__metadata__": {"a": 3}}), "__metadata__ 'a' is no text"),
        (safetensors({}), "no state_dict found; the value is of type dict"),
        (
            safetensors({"a": entry("F8_E4M3", [8])}, bytes(8)),
            "tensor 'a' has dtype float8_e4m3fn, which is not supported; save it as float32",
        ),
        (
            safetensors({"a\n": entry(shape=[3])}, bytes(8)),
            "tensor 'a\\n' needs 12 bytes, the file holds 8",
        ),
    ],
)
def test_header_that_contradicts_itself_is_told(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    assert damage(tmp_path, content).startswith(sentence)


def test_header_that_is_a_list_is_told(tmp_path: Path) -> None:
    # a brace decides on the format, so the list hides behind a key that ends early
    assert damage(tmp_path, safetensors(b"{} []")) == "the header of model.pt is no JSON"


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="4 bytes follow the last tensor"):
        read_checkpoint(write(tmp_path, safetensors({"a": entry()}, bytes(12))))


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(max_header_bytes=10), "is over the limit 10"),
        (Limits(max_tensors=1), "has 2 tensors, the limit is 1"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: Limits, sentence: str) -> None:
    header: dict[str, Any] = {"a": entry(), "b": entry(start=8, end=16)}
    assert sentence in damage(tmp_path, safetensors(header, bytes(16)), limits)
