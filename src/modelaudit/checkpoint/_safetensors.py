"""Read a safetensors file: a JSON header whose every claim is checked, then plain bytes.

Format: huggingface/safetensors, README "Format"; the checks are those of its ``tensor.rs`` (header
length, bounds, order, holes, size) plus unique names, which lax parsers disagree about.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._values import (
    ITEM_SIZES,
    Parsed,
    StorageRef,
    TensorRecord,
    contiguous_stride,
)
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._source import Source
    from modelaudit.checkpoint._types import Limits

_DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_MAX_RANK: Final = 64
_METADATA: Final = "__metadata__"


class _DuplicateError(Exception):
    """A JSON object has a key twice."""


def read_safetensors(source: Source, limits: Limits) -> Parsed:
    """Parse a safetensors file.

    Args:
        source: the file.
        limits: `Limits.max_header_bytes` and `Limits.max_tensors` apply.

    Returns:
        A flat dict of `TensorRecord`, its storages, and the header's metadata.

    Raises:
        CorruptCheckpointError: the header contradicts itself or the file.
        UnsafeCheckpointError: bytes after the last tensor.
    """
    length = struct.unpack_from("<Q", source.data)[0]
    if length > len(source.data) - 8:
        raise CorruptCheckpointError(
            f"{source.name}: header length {length:,} exceeds the file ({len(source.data):,} bytes)"
        )
    if length > limits.max_header_bytes:
        raise CorruptCheckpointError(
            f"{source.name}: header length {length:,} is over the limit {limits.max_header_bytes:,}"
        )
    header = _parse_header(bytes(source.data[8 : 8 + length]), source.name)
    metadata = _metadata(header.pop(_METADATA, {}))
    if len(header) > limits.max_tensors:
        raise CorruptCheckpointError(
            f"{source.name} has {len(header):,} tensors, the limit is {limits.max_tensors:,}"
        )
    body = source.data[8 + length :]
    value: dict[str, object] = {}
    storages: dict[str, memoryview] = {}
    spans: list[tuple[int, int, str]] = []
    for key, entry in header.items():
        record, start, end = _record(key, entry)
        value[key] = record
        spans.append((start, end, key))
        storages[key] = body[start:end]
    _check_cover(spans, len(body), source.name)
    return Parsed(format="safetensors", value=value, storages=storages, metadata=metadata)


def _parse_header(raw: bytes, name: str) -> dict[str, object]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateError as err:
        raise CorruptCheckpointError(f"duplicate tensor {err} in the header of {name}") from err
    except (ValueError, RecursionError) as err:
        raise CorruptCheckpointError(f"the header of {name} is no JSON") from err
    # it starts with a brace, or the file would not have been taken for safetensors
    assert isinstance(header, dict)
    return header


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateError(_quoted(key))
        result[key] = value
    return result


def _quoted(key: str) -> str:
    return f"'{escape_untrusted(key)}'"


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{_METADATA} is no JSON object")
    result: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise CorruptCheckpointError(f"{_METADATA} {_quoted(key)} is no text")
        result[key] = text
    return result


def _counts(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        return None
    numbers = tuple(
        v for v in value if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 63
    )
    return numbers if len(numbers) == len(value) else None


def _record(key: str, entry: object) -> tuple[TensorRecord, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptCheckpointError(
            f"tensor {_quoted(key)} needs dtype, shape and data_offsets in the header"
        )
    shape = _counts(entry["shape"])
    offsets = _counts(entry["data_offsets"])
    if shape is None:
        raise CorruptCheckpointError(f"tensor {_quoted(key)} has a shape that is none")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptCheckpointError(f"tensor {_quoted(key)} has data_offsets that are none")
    label = entry["dtype"]
    if not isinstance(label, str) or label not in _DTYPES:
        text = escape_untrusted(label, 40) if isinstance(label, str) else "no text"
        raise CorruptCheckpointError(f"tensor {_quoted(key)} has the unknown dtype {text}")
    dtype = _DTYPES[label]
    numel = 1
    for count in shape:
        numel *= count
    needed, held = numel * ITEM_SIZES[dtype], offsets[1] - offsets[0]
    if needed != held:
        raise CorruptCheckpointError(
            f"tensor {_quoted(key)} needs {needed:,} bytes, the file holds {held:,}"
        )
    storage = StorageRef(key, dtype, numel)
    return TensorRecord(storage, dtype, 0, shape, contiguous_stride(shape)), *offsets


def _check_cover(spans: list[tuple[int, int, str]], length: int, name: str) -> None:
    position = 0
    previous = ""
    for start, end, key in sorted(spans):
        if start < position:
            raise CorruptCheckpointError(
                f"tensor {_quoted(key)} overlaps {_quoted(previous)} in {name}"
            )
        if start > position:
            raise CorruptCheckpointError(
                f"{start - position:,} bytes before tensor {_quoted(key)} belong to none in {name}"
            )
        position, previous = end, key
    if position > length:
        raise CorruptCheckpointError(
            f"{name} is cut short: its tensors need {position:,} bytes, the file holds {length:,}; "
            "download it again"
        )
    if position < length:
        raise UnsafeCheckpointError(
            f"REFUSED: {length - position:,} bytes follow the last tensor in {name}. "
            "Nothing was executed"
        )
