"""Write weights as a file of plain tensors: safetensors, or the container that another file had.

Nothing here touches the disk: callers get bytes and put them where they belong in one step.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from safetensors.torch import save as save_safetensors

from modelaudit.checkpoint._claim import RECORD_KEY
from modelaudit.checkpoint._formats import identify
from modelaudit.checkpoint._legacy import read_legacy
from modelaudit.checkpoint._others import Others, find_others, place_of
from modelaudit.checkpoint._safetensors import read_safetensors
from modelaudit.checkpoint._source import open_source
from modelaudit.checkpoint._state_dict import find_weights
from modelaudit.checkpoint._tensors import build_tensors, have_same_values
from modelaudit.checkpoint._torch_zip import read_torch_zip
from modelaudit.checkpoint._types import DEFAULT_LIMITS
from modelaudit.checkpoint._values import TensorRecord
from modelaudit.errors import ConfigError, CorruptCheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch import Tensor

    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._values import Parsed

_PLAIN = (type(None), bool, int, float, str, bytes)
_MAX_VALUES: Final = 1_000_000
_HOW_ELSE: Final = "leave --keep-format away to write safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """A file like another one, with other weights.

    Attributes:
        data: the file's bytes.
        dropped: dotted keys of the other file that are not in this one, for they are no plain data
            or hold other weights of the network.
    """

    data: bytes
    dropped: tuple[str, ...]


def encode_safetensors(tensors: Mapping[str, Tensor], *, record: Mapping[str, object]) -> bytes:
    """Return a safetensors file.

    Args:
        tensors: name to tensor of any dtype that safetensors has; written contiguous.
        record: plain values that say where the weights come from; JSON text in the header under
            ``modelaudit_repair``.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Two names for one tensor are two tensors in the file.
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return _safetensors(plain, {"format": "pt", RECORD_KEY: _json(record)})


def check_can_keep_format(
    path: str | os.PathLike[str],
    *,
    sha256: str,
    key: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Raise what `encode_like` would raise about the file, before any work is done."""
    _open(path, sha256=sha256, key=key, limits=limits)


def encode_like(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    sha256: str,
    record: Mapping[str, object],
    key: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Rewritten:
    """Return a file with the container of another one: key names, nesting, dtypes, plain entries.

    Objects that are no plain data (functions, classes, whole optimisers) are left out and listed,
    and so are other weights of the network (a running average), which were not repaired.
    `record` goes into the outermost container under ``modelaudit_repair``; where the file is a bare
    state dict, in which a further key would break strict loading, it goes where torch keeps the
    version numbers of a state dict, the attribute ``_metadata``.

    Args:
        path: the file that `tensors` stem from.
        tensors: new values under the names that `read_checkpoint` gives; shapes as in the file.
        sha256: digest that `read_checkpoint` found.
        record: plain values that say where the weights come from.
        key: as in `read_checkpoint`, as are the limits.
        limits: as there.

    Raises:
        ConfigError: the file is a pickled module or a bare pickle, whose container cannot be kept.
        CorruptCheckpointError: the file is not the one that was read.
    """
    opened = _open(path, sha256=sha256, key=key, limits=limits)
    copier = _Copier(opened, tensors, limits)
    value = copier.copy(opened.parsed.value, ())
    assert isinstance(value, dict)  # `_open` has followed dicts from here to the state dict
    if opened.parsed.format == "safetensors":
        old = {name: str(text) for name, text in opened.parsed.metadata.items()}
        data = _safetensors(value, {**old, RECORD_KEY: _json(record)})
        return Rewritten(data=data, dropped=tuple(copier.dropped))
    if opened.keys:
        value[RECORD_KEY] = dict(record)
    else:
        value = OrderedDict(value)
        value._metadata = OrderedDict({RECORD_KEY: dict(record)})  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    is_zip = opened.parsed.format == "torch-zip"
    torch.save(value, buffer, _use_new_zipfile_serialization=is_zip)
    return Rewritten(data=buffer.getvalue(), dropped=tuple(copier.dropped))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A file whose container can be kept.

    Attributes:
        parsed: the walked file.
        size: its bytes.
        name: its escaped name.
        keys: keys of the containers around the state dict, outermost first.
        prefix: wrapper prefix of the state dict's keys.
        own: the state dict: name without prefix to record.
        others: what else in the file is weights.
    """

    parsed: Parsed
    size: int
    name: str
    keys: tuple[str, ...]
    prefix: str
    own: Mapping[str, TensorRecord]
    others: Others


def _open(path: str | os.PathLike[str], *, sha256: str, key: str | None, limits: Limits) -> _Opened:
    source = open_source(path, limits)
    if source.sha256 != sha256:
        raise CorruptCheckpointError(f"{source.name} changed while it was repaired; start again")
    readers = {"zip": read_torch_zip, "legacy": read_legacy, "safetensors": read_safetensors}
    kind = identify(source)
    if kind not in readers:
        raise ConfigError(
            f"--keep-format expects a file of torch.save or safetensors, {source.name} is a bare "
            f"pickle; {_HOW_ELSE}"
        )
    parsed = readers[kind](source, limits)
    found = find_weights(parsed.value, limits, key=key)
    inner = parsed.value
    for part in found.path:
        inner = inner[part] if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise ConfigError(
            f"--keep-format expects a state dict in plain dicts, {source.name} holds pickled "
            f"objects around its weights, which cannot be written without their code; {_HOW_ELSE}"
        )
    return _Opened(
        parsed=parsed,
        size=len(source.data),
        name=source.name,
        keys=found.path,
        prefix=found.prefix or "",
        own=found.records,
        others=find_others(
            parsed.value, found.records, partial(have_same_values, parsed=parsed), limits
        ),
    )


class _Copier:
    """Copies the value of a file, plain data only, with new tensors in the state dict."""

    def __init__(self, opened: _Opened, tensors: Mapping[str, Tensor], limits: Limits) -> None:
        self.dropped: list[str] = []
        self._opened = opened
        self._tensors = tensors
        self._limits = limits
        self._copies: dict[int, object] = {}
        self._names = {place_of(record): name for name, record in opened.own.items()}
        self._others = {id(o.holder): {id(r) for r in o.records} for o in opened.others.found}
        self._values = 0

    def copy(self, value: object, path: tuple[str, ...]) -> object:
        """Return the copy of a value, or `_NOTHING` where it is no plain data."""
        self._values += 1
        is_beyond = self._values > _MAX_VALUES or len(path) > self._limits.max_depth
        is_outside = path == self._opened.keys[: len(path)]
        if is_beyond or (id(value) in self._others and not is_outside):
            return self._drop(path)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, TensorRecord):
            return self._tensor(value, path)
        if not isinstance(value, dict | list | tuple):
            return self._drop(path)
        # Shared references stay shared; what is being copied already is a circle, which is dropped.
        if id(value) in self._copies:
            return self._copies[id(value)]
        self._copies[id(value)] = _NOTHING
        if isinstance(value, dict):
            copied: object = self._copy_dict(value, path)
        else:
            parts = [self.copy(item, (*path, str(i))) for i, item in enumerate(value)]
            kept = [part for part in parts if part is not _NOTHING]
            copied = tuple(kept) if isinstance(value, tuple) else kept
        self._copies[id(value)] = copied
        return copied

    def _copy_dict(self, value: dict[object, object], path: tuple[str, ...]) -> object:
        copied = {}
        # Around the weights that were repaired the others go one by one.
        others = self._others.get(id(value), set())
        for key, item in value.items():
            inner = (*path, key if isinstance(key, str) else repr(key))
            if id(item) in others:
                self._drop(inner)
                continue
            part = self.copy(item, inner) if isinstance(key, _PLAIN) else self._drop(inner)
            if part is not _NOTHING:
                copied[key] = part
        return copied

    def _drop(self, path: tuple[str, ...]) -> object:
        self.dropped.append(".".join(path))
        return _NOTHING

    def _tensor(self, record: TensorRecord, path: tuple[str, ...]) -> object:
        opened = self._opened
        if path[:-1] == opened.keys and path[-1].startswith(opened.prefix):
            name = path[-1].removeprefix(opened.prefix)
            if opened.own.get(name) is record:
                return _as_in(self._tensors[name], record)
        # The same tensor in a second place: what loads that one is to get the repaired one.
        twin = opened.others.copies.get(id(record)) or self._names.get(place_of(record))
        if twin is not None:
            return _as_in(self._tensors[twin], record)
        try:
            built = build_tensors(
                {".".join(path): record},
                opened.parsed,
                name=opened.name,
                file_bytes=opened.size,
                limits=self._limits,
            )
        except CorruptCheckpointError:
            return self._drop(path)
        return next(iter(built.values()))


#: What `_Copier.copy` returns for something that is not to be written.
_NOTHING: Final = object()


def _as_in(tensor: Tensor, record: TensorRecord) -> Tensor:
    """Return a tensor in the shape and dtype of the file's record."""
    if tuple(tensor.shape) != record.size:
        raise CorruptCheckpointError(
            f"expected a tensor of shape {record.size}, got {tuple(tensor.shape)}"
        )
    return tensor.detach().cpu().to(getattr(torch, record.dtype)).contiguous()


def _safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a file whose bytes follow from the arguments alone.

    The library writes metadata in an order that differs from call to call.
    """
    data = bytes(save_safetensors(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:start])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _json(record: Mapping[str, object]) -> str:
    return json.dumps(dict(record), sort_keys=True)
