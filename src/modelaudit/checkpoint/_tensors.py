"""Turn records into torch tensors, after every claim is checked against the bytes that are there.

With `_sanity`, the only module of this room that imports torch.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from modelaudit.checkpoint._records import check_record
from modelaudit.checkpoint._values import WEIGHT_DTYPES
from modelaudit.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._values import Parsed, TensorRecord


def build_tensors(
    records: Mapping[str, TensorRecord],
    parsed: Parsed,
    *,
    name: str,
    file_bytes: int,
    limits: Limits,
) -> OrderedDict[str, Tensor]:
    """Build dense CPU tensors that own their memory.

    Args:
        records: key to record, in the file's order.
        parsed: the file, for its storages and byte order.
        name: the file, escaped, for messages.
        file_bytes: its size, which the expansion limit is relative to.
        limits: `Limits.max_tensors`, `max_parameters` and the expansion limit apply.

    Returns:
        Key to tensor, contiguous, in the file's dtype, in the same order.

    Raises:
        CorruptCheckpointError: a record contradicts its storage, has a dtype that no weight has,
            or they are together over a limit.
    """
    if len(records) > limits.max_tensors:
        raise CorruptCheckpointError(
            f"{name} has {len(records):,} tensors, the limit is {limits.max_tensors:,}"
        )
    numel = total = 0
    for key, record in records.items():
        count = check_record(key, record, parsed.storages)
        numel += count
        total += count * WEIGHT_DTYPES[record.dtype]
        if numel > limits.max_parameters:
            raise CorruptCheckpointError(
                f"{name} declares more than {limits.max_parameters:,} parameters, "
                "which is the limit"
            )
    if total > limits.expanded_bytes(file_bytes):
        raise CorruptCheckpointError(
            f"{name} would expand from {file_bytes:,} to {total:,} bytes "
            f"(limit {limits.expanded_bytes(file_bytes):,}); no option "
            "raises that"
        )
    views: dict[tuple[str, str], Tensor] = {}
    return OrderedDict((key, _built(record, parsed, views)) for key, record in records.items())


def have_same_values(one: TensorRecord, other: TensorRecord, *, parsed: Parsed) -> bool:
    """Return whether two records of a file have the same shape, dtype and values, bit for bit."""
    if (one.size, one.dtype) != (other.size, other.dtype):
        return False
    try:
        for record in (one, other):
            check_record("", record, parsed.storages)
    except CorruptCheckpointError:
        return False
    return torch.equal(_built(one, parsed, {}), _built(other, parsed, {}))


def _built(record: TensorRecord, parsed: Parsed, views: dict[tuple[str, str], Tensor]) -> Tensor:
    """Build one checked tensor; `views` holds what was made of storages before."""
    size, stride = record.size, record.stride
    if 0 in size:
        return torch.empty(size, dtype=getattr(torch, record.dtype))
    place = (record.storage.key, record.dtype)
    if place not in views:
        is_swapped = parsed.is_big_endian != (sys.byteorder == "big")
        views[place] = _view(parsed.storages[record.storage.key], record.dtype, is_swapped)
    view = views[place].as_strided(size, stride, record.offset)
    return view.clone(memory_format=torch.contiguous_format)


def _view(content: memoryview, dtype: str, is_swapped: bool) -> Tensor:
    """Return the whole elements of a storage as a 1-D tensor, copied only if need be."""
    item = WEIGHT_DTYPES[dtype]
    raw = torch.frombuffer(content, dtype=torch.uint8, count=len(content) // item * item)
    if dtype == "bool":
        # any other byte than 0 and 1 in a boolean tensor is undefined behaviour further on
        return raw.ne(0)
    if is_swapped and item > 1:
        raw = raw.view(-1, item).flip(1).reshape(-1)
    elif raw.data_ptr() % item:
        raw = raw.clone()
    return raw.view(getattr(torch, dtype))
