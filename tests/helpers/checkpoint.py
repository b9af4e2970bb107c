"""Builders of checkpoints, honest and hostile: every file is made here, none is stored."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.arguments)


class Net(nn.Module):
    """A small classifier with everything a pickled module can have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.arange(3))
        self.label = "net"
        self.sizes = [1, (2, 3)]
        self.unusual = {"a": 1}

    def forward(self, x: Tensor) -> Tensor:
        return x


def net() -> Net:
    """Return a `Net` with fixed weights."""
    model = Net()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def saved(value: object, **options: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def legacy(value: object, protocol: int = 2) -> bytes:
    """Return what ``torch.save`` writes in the legacy format."""
    return saved(value, _use_new_zipfile_serialization=False, pickle_protocol=protocol)


def write(folder: Path, content: bytes, name: str = "model.pt") -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.write_bytes(content)
    return path


def system_call(command: str = "echo owned", protocol: int = 2) -> bytes:
    """Return a pickle that calls ``os.system`` when it is loaded."""
    return pickle.dumps(Calls(os.system, command), protocol)


def packed(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], **options: Any) -> bytes:
    """Return a zip archive of `members`, in order."""
    buffer = io.BytesIO()
    items = members.items() if hasattr(members, "items") else members
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in items:
            archive.writestr(name, content)
    return buffer.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    """Return the members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def with_pickle(pickled: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Return a torch zip around a pickle and raw storages."""
    members = {"archive/data.pkl": pickled, "archive/byteorder": b"little"}
    members |= {f"archive/data/{key}": raw for key, raw in (storages or {}).items()}
    return packed({**members, "archive/version": b"3\n"})


def text(value: str) -> bytes:
    """Return the instruction that pushes a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Return the instruction that pushes an integer of up to 8 bytes."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def pushed(value: object) -> bytes:
    """Return the instructions that push a plain value, without memo."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        return number(value)
    if isinstance(value, tuple):
        return b"(" + b"".join(pushed(item) for item in value) + b"t"
    raise TypeError(value)


def storage_instructions(key: str, numel: int, kind: str = "torch FloatStorage") -> bytes:
    """Return the instructions that push a storage."""
    module, name = kind.split()
    return (
        b"("
        + text("storage")
        + f"c{module}\n{name}\n".encode()
        + text(key)
        + text("cpu")
        + number(numel)
        + b"tQ"
    )


def tensor_instructions(
    *,
    key: str = "0",
    numel: int = 4,
    offset: object = 0,
    size: object = (4,),
    stride: object = (1,),
    kind: str = "torch FloatStorage",
) -> bytes:
    """Return the instructions that push a tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage_instructions(key, numel, kind)
        + pushed(offset)
        + pushed(size)
        + pushed(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state_dict_pickle(**tensors: bytes) -> bytes:
    """Return the pickle of a dict of name to tensor instructions."""
    entries = b"".join(text(name) + body for name, body in tensors.items())
    return b"\x80\x02}(" + entries + b"u."


def one_tensor(content: bytes = bytes(16), **claims: Any) -> bytes:
    """Return a torch zip of one tensor ``w`` with the given claims over the given bytes."""
    return with_pickle(state_dict_pickle(w=tensor_instructions(**claims)), {"0": content})


def safetensors(
    header: Mapping[str, Any] | bytes, body: bytes = b"", *, length: int | None = None
) -> bytes:
    """Return a safetensors file with that header, whether or not it is true."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def entry(dtype: str = "F32", shape: object = (2,), start: int = 0, end: int = 8) -> dict[str, Any]:
    """Return one tensor's entry of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def tar_block(name: str, *, is_old: bool = False) -> bytes:
    """Return a tar file of one empty member; an old one has no magic."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = b"00000000000\0"
    if not is_old:
        block[257:263] = b"ustar\0"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + bytes(1024)


def central_position(content: bytes, name: str) -> int:
    """Return where the central directory's record of a member starts."""
    end = content.rfind(name.encode())
    return end - 46


def patched(content: bytes, position: int, raw: bytes) -> bytes:
    """Return `content` with bytes replaced."""
    return content[:position] + raw + content[position + len(raw) :]


def crc(content: bytes) -> int:
    """Return the checksum that a zip archive stores."""
    return zlib.crc32(content)
