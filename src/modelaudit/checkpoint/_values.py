"""What a symbolic read yields: plain values, and inert records for code and tensors.

A value of a file is typed ``object``: None, bool, int, float, str, bytes, list, tuple, dict, or
one of the records below. Values come from a stranger and may be cyclic or astronomically deep when
followed through shared references, so nothing may compare, hash, copy or print them recursively;
records compare by identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.results import StaticFinding

#: Element size in bytes of every dtype that a weight may have.
WEIGHT_DTYPES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}

#: Element size in bytes of the dtypes that are read over but never become a weight.
OTHER_DTYPES: dict[str, int] = {
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
    "qint8": 1,
    "quint8": 1,
    "qint32": 4,
    "quint4x2": 1,
    "quint2x4": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
}

ITEM_SIZES: dict[str, int] = WEIGHT_DTYPES | OTHER_DTYPES


@dataclass(frozen=True, slots=True, eq=False)
class GlobalRef:
    """A class or function that the file names; it was not looked up.

    Attributes:
        module: module name as the file says it, Python 2 spellings translated.
        name: qualified name within the module.
    """

    module: str
    name: str

    @property
    def qualified(self) -> str:
        """Return ``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class StandIn:
    """An object of a class that was not imported: what the file would have made it of.

    Attributes:
        class_name: qualified name of the class or of the callable that would have made it.
        arguments: what the file would have passed.
        state: what the file would have set its attributes from.
        entries: what the file would have set by key.
        elements: what the file would have appended.
    """

    class_name: str
    arguments: tuple[object, ...] = ()
    state: object = None
    entries: dict[Key, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class SetValue:
    """A set or frozenset, kept as a list because hashing a stranger's values can take forever."""

    items: list[object]


@dataclass(frozen=True, slots=True)
class OddKey:
    """A dict key that is neither text, number nor bytes, reduced to a description."""

    text: str


#: Keys that are cheap to hash and cannot be made to collide in bulk.
Key = str | int | float | bytes | None | OddKey


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A run of elements somewhere in the file.

    Attributes:
        key: name of the storage in the file.
        dtype: element type.
        numel: number of elements that the file claims.
    """

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Return the claimed length in bytes."""
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """A tensor as a view of a storage; nothing is allocated and nothing is believed yet.

    Attributes:
        storage: the elements.
        dtype: element type of the view.
        offset: first element, counted in elements.
        size: shape.
        stride: elements to step per dimension.
    """

    storage: StorageRef
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """One file, parsed.

    Attributes:
        format: as in `Checkpoint.format`.
        value: the value of the file's one object.
        storages: storage key to its bytes in the file.
        is_big_endian: byte order of the elements.
        metadata: plain text beside the weights.
        findings: what was noticed.
        attached: dicts in it, and the attributes that each would have got.
    """

    format: str
    value: object
    storages: Mapping[str, memoryview]
    is_big_endian: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[StaticFinding, ...] = ()
    attached: tuple[tuple[object, object], ...] = ()


def contiguous_stride(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of a shape, in elements."""
    strides: list[int] = []
    step = 1
    for length in reversed(size):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))
