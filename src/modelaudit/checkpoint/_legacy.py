"""Read torch legacy checkpoints (before 1.6, or saved without the zip format) and bare pickles.

A legacy file is five pickles (magic, protocol 1001, system, object, storage keys), then per key a
64-bit element count and the elements (torch, *serialization.py*, ``_legacy_save``). A bare pickle
is one pickle in which each storage is a legacy file of its own, as bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._formats import unknown
from modelaudit.checkpoint._opcodes import Stream
from modelaudit.checkpoint._unpickle import walk
from modelaudit.checkpoint._values import ITEM_SIZES, Parsed, StorageRef
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from modelaudit.checkpoint._source import Source
    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._unpickle import Walk

_PROTOCOL: Final = 1001
_COUNT: Final = struct.Struct("<q")


def read_legacy(source: Source, limits: Limits) -> Parsed:
    """Parse a legacy checkpoint.

    Args:
        source: a file that starts with the legacy magic.
        limits: those on pickles apply.

    Returns:
        The walked object pickle and the storages.

    Raises:
        UnsafeCheckpointError: a call in any of the pickles, or bytes after the last storage.
        CorruptCheckpointError: damage or a limit.
    """
    return _parse(source.data, "", source.name, limits)


def _parse(data: memoryview, label: str, name: str, limits: Limits) -> Parsed:
    stream = _stream(data, label, limits)
    magic = walk(stream, 0, name=name, limits=limits)
    protocol = walk(stream, magic.end, name=name, limits=limits)
    system = walk(stream, protocol.end, name=name, limits=limits)
    if not isinstance(protocol.value, int) or protocol.value != _PROTOCOL:
        raise stream.damaged(magic.end, f"the legacy protocol is not {_PROTOCOL}")
    if not isinstance(system.value, dict):
        raise stream.damaged(protocol.end, "the system record is no dict")
    walked = walk(stream, system.end, name=name, limits=limits)
    keys = walk(stream, walked.end, name=name, limits=limits)
    storages = _read_storages(data, stream, name, walked, keys)
    return Parsed(
        format="torch-legacy",
        value=walked.value,
        storages=storages,
        is_big_endian=system.value.get("little_endian") is False,
        findings=tuple(walked.findings),
        attached=tuple(walked.attached),
    )


def _stream(data: memoryview, label: str, limits: Limits) -> Stream:
    limit = limits.max_pickle_bytes
    return Stream(bytes(data[:limit]), label, is_partial=len(data) > limit)


def _read_storages(
    data: memoryview, stream: Stream, name: str, walked: Walk, keys: Walk
) -> dict[str, memoryview]:
    if not isinstance(keys.value, list):
        raise stream.damaged(walked.end, "the list of storages is no list")
    storages: dict[str, memoryview] = {}
    position = keys.end
    for key in keys.value:
        if not isinstance(key, str) or key not in walked.storages or key in storages:
            raise stream.damaged(walked.end, "the list of storages is not that of the tensors")
        if position + _COUNT.size > len(data):
            raise _cut_short(name)
        count = _COUNT.unpack_from(data, position)[0]
        position += _COUNT.size
        size = count * ITEM_SIZES[walked.storages[key].dtype]
        if count < 0 or position + size > len(data):
            raise _cut_short(name)
        storages[key] = data[position : position + size]
        position += size
    if position != len(data):
        raise UnsafeCheckpointError(
            f"REFUSED: {len(data) - position:,} bytes follow the last tensor in {name}. "
            "Nothing was executed"
        )
    return storages


def _cut_short(name: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{name} is cut short: it ends within a tensor; download it again"
    )


def read_bare_pickle(source: Source, limits: Limits, *, is_certain: bool) -> Parsed:
    """Parse a bare pickle, such as ``pickle.dump(model.state_dict(), file)`` writes.

    Args:
        source: the file.
        limits: those on pickles apply.
        is_certain: whether the file starts as a pickle of protocol 2 to 5; otherwise it may be
            anything.

    Returns:
        The walked pickle; storages are the files within it.

    Raises:
        UnsafeCheckpointError: a call, or bytes after the end.
        CorruptCheckpointError: damage, a limit, or no pickle after all.
    """
    storages: dict[str, memoryview] = {}
    orders: set[bool] = set()

    def load_nested(content: bytes, place: str) -> StorageRef:
        nested = _parse(memoryview(bytearray(content)), f"the file at {place}", source.name, limits)
        if not isinstance(nested.value, StorageRef) or nested.value.key not in nested.storages:
            raise CorruptCheckpointError(
                f"the file at {place} holds something other than a storage"
            )
        # one running number per nested file: its own keys are addresses, and may repeat
        key = str(len(storages))
        storages[key] = nested.storages[nested.value.key]
        orders.add(nested.is_big_endian)
        return StorageRef(key, nested.value.dtype, nested.value.numel)

    stream = _stream(source.data, "", limits)
    try:
        walked = walk(stream, 0, name=source.name, limits=limits, load_nested=load_nested)
    except CorruptCheckpointError as err:
        if is_certain:
            raise
        raise unknown(source) from err
    if walked.end != len(source.data):
        if not is_certain:
            raise unknown(source)
        raise UnsafeCheckpointError(
            f"REFUSED: {len(source.data) - walked.end:,} bytes follow the end of the pickle in "
            f"{source.name}. Nothing was executed"
        )
    if len(orders) > 1:
        raise CorruptCheckpointError(f"{source.name} mixes byte orders")
    return Parsed(
        format="pickle",
        value=walked.value,
        storages=storages,
        is_big_endian=True in orders,
        findings=tuple(walked.findings),
        attached=tuple(walked.attached),
    )
