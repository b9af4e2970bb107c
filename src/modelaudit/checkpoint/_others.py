"""Other weights in a file: a running average, the best epoch so far, a network beside the network.

What is not read is not scanned, and loaders differ in which weights they take
(docs/adr/0031-weights-beside-those-that-are-read.md). The search goes through a stranger's values:
each container once, without recursion, in time that its entries bound.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._modules import attributes_of, children_of, is_module, own_tensors_of
from modelaudit.checkpoint._state_dict import OUTERMOST, bare_name, parts_of
from modelaudit.checkpoint._values import StandIn, TensorRecord
from modelaudit.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from modelaudit.checkpoint._types import Limits

#: Share of the network's tensors, by name and shape, from which a container holds weights of it.
_ENOUGH: Final = 0.5
#: Filters and matrices, by name, from which a container holds weights of some network.
_WEIGHTS: Final = 2
#: What optimisers keep may bear the parameters' names; no loader takes these for a network.
_OPTIMISER: Final = re.compile(
    r"optim(i[sz]ers?)?(_states?|_state_dicts?)?"
    r"|(max_)?exp_avg(_sq)?|momentum(_buffers?)?",
    re.IGNORECASE,
)
_MAX_CONTAINERS: Final = 300_000
#: How many others are named, and by how many of the innermost keys.
_MAX_NAMED: Final = 200
_MAX_KEYS: Final = 64
_MAX_KEY: Final = 1_000
#: Elements that are compared, in units of the network's: more copies than that count as others.
_MAX_COMPARED: Final = 16

#: Where a tensor is in a file.
Place = tuple[str, str, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWeights:
    """A container of weights that are not those that are read.

    Attributes:
        path: keys of the containers down to it, outermost first; None behind the first 200.
        holder: the container.
        records: the tensors in it that are others.
    """

    path: tuple[str, ...] | None
    holder: object
    records: tuple[TensorRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What there is beside the weights that are read.

    Attributes:
        found: containers of other weights, by their keys.
        copies: id of each record that has the values of a tensor that is read: its name.
    """

    found: tuple[OtherWeights, ...]
    copies: Mapping[int, str]

    @property
    def keys(self) -> tuple[str, ...]:
        """What `find_weights` takes for those that were found, and how many more there are."""
        paths = sorted(other.path for other in self.found if other.path is not None)
        keys = [(".".join(path) or OUTERMOST)[:_MAX_KEY] for path in paths]
        more = len(self.found) - len(keys)
        return (*keys, f"… and {more:,} more") if more else tuple(keys)


def place_of(record: TensorRecord) -> Place:
    """Return what two records share that are the same tensor of a file."""
    return (record.storage.key, record.dtype, record.offset, record.size, record.stride)


def find_others(
    value: object,
    own: Mapping[str, TensorRecord],
    is_same: Callable[[TensorRecord, TensorRecord], bool],
    limits: Limits,
) -> Others:
    """Return what else in a file looks like a network's weights.

    That is a container, or a pickled module, with two filters or matrices that are called weights,
    or with half of the network's tensors by name and shape; or a list with as many tensors of each
    shape of two axes or more as the network has. Wrapper prefixes do not count, nor do tensors that
    are the network's own or have the same values under the same name.

    Args:
        value: the file's value.
        own: the weights that are read: name to record.
        is_same: whether two records of one shape have the same values.
        limits: `Limits.max_key_length` applies.

    Raises:
        CorruptCheckpointError: the file has more containers than anybody needs.
    """
    search = _Search(own, is_same, limits)
    found = search.through(value)
    return Others(found=found, copies=search.copies)


class _Search:
    def __init__(
        self,
        own: Mapping[str, TensorRecord],
        is_same: Callable[[TensorRecord, TensorRecord], bool],
        limits: Limits,
    ) -> None:
        self.copies: dict[int, str] = {}
        self._own = {bare_name(name): (name, record) for name, record in own.items()}
        self._places = {place_of(record) for record in own.values()}
        self._shapes = _shapes(own.values())
        self._is_same = is_same
        self._limits = limits
        self._modules: set[int] = set()
        self._compared: dict[tuple[Place, Place], bool] = {}
        self._budget = _MAX_COMPARED * sum(math.prod(record.size) for record in own.values())

    def through(self, value: object) -> tuple[OtherWeights, ...]:
        found: list[OtherWeights] = []
        #: of each container that was entered: its parent's number, and its key there
        links: list[tuple[int, str]] = []
        seen: set[int] = set()
        pending: list[tuple[object, int, str]] = [(value, -1, "")]
        while pending:
            item, parent, key = pending.pop()
            # A container may hang in several places: under an optimiser's key it is not entered.
            if id(item) in seen or _OPTIMISER.fullmatch(key):
                continue
            seen.add(id(item))
            if len(seen) > _MAX_CONTAINERS:
                raise CorruptCheckpointError(
                    f"the file holds more than {_MAX_CONTAINERS:,} containers, which is the limit; "
                    "save the weights by themselves"
                )
            number = len(links)
            links.append((parent, key))
            records = self._others_in(item)
            if records:
                path = _path(links, number) if len(found) < _MAX_NAMED else None
                found.append(OtherWeights(path=path, holder=item, records=tuple(records)))
            pending.extend(
                (part, number, name)
                for name, part in parts_of(item)
                if isinstance(part, dict | list | tuple | StandIn)
            )
        return tuple(found)

    def _others_in(self, item: object) -> list[TensorRecord]:
        """Return the tensors that make a container one of other weights; none where it is not."""
        if isinstance(item, StandIn) and is_module(item):
            return self._others_named(self._flattened(item))
        named = [
            (name, part)
            for name, part in parts_of(item)
            if isinstance(part, TensorRecord) and len(name) <= self._limits.max_key_length
        ]
        if isinstance(item, list | tuple):
            pairs = [p for p in item if isinstance(p, tuple) and len(p) == 2]
            named_pairs = [
                (name, part)
                for name, part in pairs
                if isinstance(name, str)
                and isinstance(part, TensorRecord)
                and len(name) <= self._limits.max_key_length
            ]
            return self._others_named(named_pairs) or self._others_listed([r for _, r in named])
        return self._others_named(named)

    def _others_named(self, named: Iterable[tuple[str, TensorRecord]]) -> list[TensorRecord]:
        others: list[TensorRecord] = []
        like: set[str] = set()
        differing = weights = 0
        for name, record in named:
            bare = bare_name(name)
            own_name, mine = self._own.get(bare, ("", None))
            is_like = mine is not None and mine.size == record.size
            if is_like:
                like.add(bare)
            if place_of(record) in self._places:
                continue
            if is_like and mine is not None and self._has_values_of(mine, record):
                self.copies[id(record)] = own_name
                continue
            others.append(record)
            is_weight = len(record.size) > 1 and "weight" in bare.rpartition(".")[2]
            weights += is_weight
            differing += is_weight or is_like
        is_enough = differing and len(like) >= _ENOUGH * len(self._own)
        return others if is_enough or weights >= _WEIGHTS else []

    def _has_values_of(self, mine: TensorRecord, record: TensorRecord) -> bool:
        pair = place_of(mine), place_of(record)
        if pair not in self._compared:
            self._budget -= math.prod(record.size)
            self._compared[pair] = self._budget >= 0 and self._is_same(record, mine)
        return self._compared[pair]

    def _others_listed(self, records: list[TensorRecord]) -> list[TensorRecord]:
        """Statistics and biases, which not every average keeps, say nothing of a list."""
        if not self._shapes or not self._shapes <= _shapes(records):
            return []
        return [record for record in records if place_of(record) not in self._places]

    def _flattened(self, root: StandIn) -> list[tuple[str, TensorRecord]]:
        """Return the tensors of a pickled module under their dotted names.

        Each module is taken once in all: one that hangs in many places would be in as many names.
        """
        named: list[tuple[str, TensorRecord]] = []
        pending: list[tuple[str, StandIn]] = [("", root)]
        while pending:
            path, module = pending.pop()
            if id(module) in self._modules:
                continue
            self._modules.add(id(module))
            if len(self._modules) > self._limits.max_modules:
                raise CorruptCheckpointError(
                    f"the file holds more than {self._limits.max_modules:,} modules, which is the "
                    "limit; save the weights by themselves"
                )
            attributes = attributes_of(module)
            named += [
                (f"{path}{name}", part)
                for name, part in own_tensors_of(attributes)
                if isinstance(part, TensorRecord)
            ]
            pending += [
                (f"{path}{name}."[-self._limits.max_key_length :], child)
                for name, child in children_of(attributes)
            ]
        return named


def _path(links: list[tuple[int, str]], number: int) -> tuple[str, ...]:
    keys: list[str] = []
    while number > 0 and len(keys) < _MAX_KEYS:
        number, key = links[number]
        keys.append(key)
    return tuple(reversed(keys))


def _shapes(records: Iterable[TensorRecord]) -> Counter[tuple[int, ...]]:
    return Counter(record.size for record in records if len(record.size) > 1)
