"""Check a tensor's claims against the bytes of its storage before anything is allocated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelaudit.checkpoint._values import ITEM_SIZES, WEIGHT_DTYPES
from modelaudit.errors import CorruptCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.checkpoint._values import TensorRecord


def check_record(key: str, record: TensorRecord, storages: Mapping[str, memoryview]) -> int:
    """Return the number of elements of a tensor whose claims hold.

    Args:
        key: its name.
        record: its claims.
        storages: storage key to bytes.

    Returns:
        The number of elements, each with its own bytes in the file.

    Raises:
        CorruptCheckpointError: the storage is missing or of another size, the view leaves it or
            counts elements twice, or the dtype is none of a weight.
    """
    label = f"tensor '{escape_untrusted(key)}'"
    if record.dtype not in WEIGHT_DTYPES:
        raise CorruptCheckpointError(
            f"{label} has dtype {record.dtype}, which is not supported; save it as float32"
        )
    storage = record.storage
    held = len(storages.get(storage.key, b""))
    if storage.nbytes != held:
        raise CorruptCheckpointError(
            f"{label} needs {storage.nbytes:,} bytes, the file holds {held:,}"
        )
    numel = math.prod(record.size)
    if numel == 0:
        return 0
    reach = record.offset + 1
    # Dimensions by growing stride: each must step over all that the smaller ones reach.
    span = 1
    for stride, size in sorted(zip(record.stride, record.size, strict=True)):
        if size == 1:
            continue
        if stride < span:
            raise CorruptCheckpointError(
                f"{label} declares {numel:,} elements that share memory; save it contiguous"
            )
        span += stride * (size - 1)
        reach += stride * (size - 1)
    needed = reach * ITEM_SIZES[record.dtype]
    if needed > held:
        raise CorruptCheckpointError(f"{label} needs {needed:,} bytes, the file holds {held:,}")
    return numel
