"""Other weights of the same network in a file: a running average, the best epoch so far.

What is not read is not scanned, and loaders differ in which weights they take.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._modules import is_module, read_module
from modelaudit.checkpoint._state_dict import strip_prefixes
from modelaudit.checkpoint._values import StandIn, TensorRecord
from modelaudit.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from modelaudit.checkpoint._state_dict import Found
    from modelaudit.checkpoint._types import Limits

#: Share of the network's tensors, by name and shape, from which a container holds one like it.
_ENOUGH: Final = 0.5
#: States of optimisers may bear the parameters' names; no loader takes these for a network.
_OPTIMISER: Final = "optim"
_MAX_VALUES: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWeights:
    """Weights beside those that are read.

    Attributes:
        path: keys of the containers down to them, outermost first.
        records: of tensors whose name and shape are the network's; empty for a list, whose tensors
            have no names.
    """

    path: tuple[str, ...]
    records: Mapping[str, TensorRecord]


def find_others(value: object, found: Found, limits: Limits) -> tuple[OtherWeights, ...]:
    """Return the weights in a file that would fit the network that was found, but are others.

    Containers that hold the very tensors that are read are none of them.

    Args:
        value: the file's value.
        found: of `find_weights`.
        limits: those on modules and keys apply.
    """
    others = []
    pending: list[tuple[object, tuple[str, ...]]] = [(value, ())]
    seen = {id(value)}
    while pending:
        item, path = pending.pop()
        if len(path) > limits.max_depth or len(seen) > _MAX_VALUES:
            break
        if path and path[-1].lower().startswith(_OPTIMISER):
            continue
        records = _like(item, found, limits)
        if records is not None:
            others.append(OtherWeights(path=path, records=records))
            continue
        for key, part in _parts(item):
            if isinstance(part, dict | list | tuple | StandIn) and id(part) not in seen:
                seen.add(id(part))
                pending.append((part, (*path, key)))
    return tuple(sorted(others, key=lambda other: other.path))


def _parts(item: object) -> Iterator[tuple[str, object]]:
    if isinstance(item, dict):
        yield from (
            (key if isinstance(key, str) else repr(key), part) for key, part in item.items()
        )
    elif isinstance(item, list | tuple):
        yield from ((str(i), part) for i, part in enumerate(item))
    elif isinstance(item, StandIn):
        yield from _parts(item.entries)
        yield from _parts(item.elements)
        yield from _parts(item.state)


def _like(item: object, found: Found, limits: Limits) -> Mapping[str, TensorRecord] | None:
    """Return the tensors of a container that are named and shaped like the network's.

    None where it holds no such network, or the very tensors of the one that was found.
    """
    own = found.records
    if isinstance(item, list | tuple):
        return {} if _is_list_like(item, own) else None
    try:
        records = _records(item, limits)
    except CorruptCheckpointError:
        return None
    same = {
        name: record
        for name, record in strip_prefixes(records).items()
        if name in own and own[name].size == record.size
    }
    is_enough = len(same) >= _ENOUGH * len(own)
    if not is_enough or all(own[name] is record for name, record in same.items()):
        return None
    return same


def _records(item: object, limits: Limits) -> dict[str, TensorRecord]:
    if isinstance(item, StandIn) and is_module(item):
        return read_module(item, limits).records
    entries = item if isinstance(item, dict) else getattr(item, "entries", {})
    return {
        key: part
        for key, part in entries.items()
        if isinstance(key, str) and isinstance(part, TensorRecord)
    }


def _is_list_like(item: list[object] | tuple[object, ...], own: Mapping[str, TensorRecord]) -> bool:
    """Whether a list holds as many tensors of each shape as the network has, of two axes or more.

    Running averages are kept so; statistics and biases, which not all of them keep, say nothing.
    """
    records = [part for part in item if isinstance(part, TensorRecord)]
    theirs = _shapes(records)
    ours = _shapes(own.values())
    are_ours = {id(record) for record in own.values()}
    return bool(ours) and theirs == ours and not all(id(r) in are_ours for r in records)


def _shapes(records: Iterable[TensorRecord]) -> Counter[tuple[int, ...]]:
    return Counter(record.size for record in records if len(record.size) > 1)
