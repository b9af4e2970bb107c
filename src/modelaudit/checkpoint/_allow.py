"""The exact list of callables that a file may call, and what each amounts to; none is called.

Torch's own ``weights_only`` list without what is harmless to run but not to size (``bytearray``)
and without the device and wrapper rebuilds, plus the data classes that training scripts leave
beside weights (methods/intake.md, layer L2). Entries are exact (module, name) pairs: an allowed
module prefix would let ``numpy.__builtins__`` through.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._values import (
    ITEM_SIZES,
    GlobalRef,
    OddKey,
    SetValue,
    StandIn,
    StorageRef,
    TensorRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.checkpoint._values import Key

#: Modules whose functions everybody knows under another name.
_SHOWN_MODULES: Final = {"posix": "os", "nt": "os"}

_INT64: Final = 1 << 63
_MAX_RANK: Final = 64

_STORAGE_DTYPES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}


class ArgumentError(Exception):
    """An allowed callable was given arguments that its real counterpart would reject."""


def global_ref(module: str, name: str) -> GlobalRef:
    """Return the record of a name, spelled as Python 3 does (pickles up to protocol 2 do not)."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return GlobalRef(IMPORT_MAPPING.get(module, module), name)


def shown(reference: GlobalRef) -> str:
    """Return the name that people know a callable by: ``os.system`` for ``posix.system``."""
    return f"{_SHOWN_MODULES.get(reference.module, reference.module)}.{reference.name}"


def storage_dtype(value: object) -> str | None:
    """Return the dtype of a torch storage class, or None if `value` names none."""
    if not isinstance(value, GlobalRef) or value.module not in {
        "torch",
        "torch.cuda",
        "torch.storage",
    }:
        return None
    return _STORAGE_DTYPES.get(value.name)


def as_key(value: object) -> Key:
    """Return `value` as a dict key that is cheap to hash.

    Integers beyond 64 bits collide in bulk, and a tuple's hash takes as long as its sharing is
    deep, so both become descriptions.

    Raises:
        ArgumentError: `value` is a list, a dict or a set, which no dict takes as a key.
    """
    if value is None or isinstance(value, (str, float, bytes, OddKey)):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else OddKey(hex(value))
    if isinstance(value, tuple):
        parts = [repr(v) if isinstance(v, (str, int, float)) else type(v).__name__ for v in value]
        return OddKey("(" + ", ".join(part[:100] for part in parts[:8]) + f"; {len(value)})")
    if isinstance(value, GlobalRef):
        return OddKey(value.qualified)
    if isinstance(value, (StandIn, TensorRecord)):
        return OddKey(f"object {id(value)}")
    raise ArgumentError("a dict key is a list, a dict or a set")


def put(target: dict[Key, object], key: object, value: object) -> None:
    """Set one entry of a dict of the file.

    Raises:
        ArgumentError: the key is unhashable.
    """
    target[as_key(key)] = value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INT64


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_RANK:
        raise ArgumentError("a tensor's shape is not a tuple of numbers")
    numbers = tuple(v for v in value if isinstance(v, int) and _is_count(v))
    if len(numbers) != len(value):
        raise ArgumentError("a tensor's shape or stride is not a whole number of at least 0")
    return numbers


def _tensor(
    storage: object, offset: object, size: object, stride: object, dtype: str | None = None
) -> TensorRecord:
    if not isinstance(storage, StorageRef):
        raise ArgumentError("a tensor has no storage")
    if not isinstance(offset, int) or not _is_count(offset):
        raise ArgumentError("a tensor's offset is not a whole number of at least 0")
    shape, strides = _shape(size), _shape(stride)
    if len(shape) != len(strides):
        raise ArgumentError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    return TensorRecord(storage, dtype or storage.dtype, offset, shape, strides)


def _rebuild_tensor(args: tuple[object, ...]) -> object:
    if not 4 <= len(args) <= 7:
        raise ArgumentError(f"a tensor is made of {len(args)} arguments")
    return _tensor(args[0], args[1], args[2], args[3])


def _rebuild_tensor_v3(args: tuple[object, ...]) -> object:
    if not 7 <= len(args) <= 8:
        raise ArgumentError(f"a tensor is made of {len(args)} arguments")
    dtype = args[6]
    if not isinstance(dtype, GlobalRef) or dtype.module != "torch" or dtype.name not in ITEM_SIZES:
        raise ArgumentError("a tensor has an unknown dtype")
    return _tensor(args[0], args[1], args[2], args[3], dtype.name)


def _first(args: tuple[object, ...]) -> object:
    if not args:
        raise ArgumentError("an argument is missing")
    return args[0]


def _rebuild_from_type(args: tuple[object, ...]) -> object:
    if len(args) != 4 or not isinstance(args[0], GlobalRef) or not isinstance(args[2], tuple):
        raise ArgumentError("a tensor subclass has other arguments than torch writes")
    maker = _TENSOR_MAKERS.get((args[0].module, args[0].name))
    if maker is None:
        raise NotAllowedError(args[0], args[2])
    return maker(args[2])


def _mapping(args: tuple[object, ...]) -> object:
    result: dict[Key, object] = {}
    if not args:
        return result
    if isinstance(args[0], dict):
        result.update(args[0])
        return result
    if not isinstance(args[0], (list, tuple)):
        raise ArgumentError("a mapping is made of something that holds no pairs")
    for pair in args[0]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ArgumentError("a mapping is made of something other than pairs")
        put(result, pair[0], pair[1])
    return result


def _default_dict(args: tuple[object, ...]) -> object:
    return _mapping(args[1:])


def _set(args: tuple[object, ...]) -> object:
    if not args:
        return SetValue([])
    if not isinstance(args[0], (list, tuple)):
        raise ArgumentError("a set is made of something that is no list")
    return SetValue(list(args[0]))


def _size(args: tuple[object, ...]) -> object:
    return _shape(tuple(args[0]) if args and isinstance(args[0], (list, tuple)) else ())


def _encode(args: tuple[object, ...]) -> object:
    if len(args) not in {1, 2} or not isinstance(args[0], str):
        raise ArgumentError("an encoded string is no string")
    encoding = args[1] if len(args) == 2 else "utf-8"
    if not isinstance(encoding, str) or encoding not in {"latin1", "latin-1", "utf-8", "ascii"}:
        raise ArgumentError("a string has another encoding than Python writes")
    try:
        return args[0].encode(encoding)
    except UnicodeEncodeError as err:
        raise ArgumentError("a string does not fit its encoding") from err


class NotAllowedError(Exception):
    """A call inside an allowed call is not allowed.

    Attributes:
        reference: what would be called.
        arguments: with what.
    """

    def __init__(self, reference: GlobalRef, arguments: tuple[object, ...]) -> None:
        super().__init__(reference.qualified)
        self.reference = reference
        self.arguments = arguments


_TENSOR_MAKERS: Final[dict[tuple[str, str], Callable[[tuple[object, ...]], object]]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch.nn.parameter", "Parameter"): _first,
}

_VALUE_MAKERS: Final[dict[tuple[str, str], Callable[[tuple[object, ...]], object]]] = {
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("collections", "defaultdict"): _default_dict,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _set,
    ("_codecs", "encode"): _encode,
}

#: Tensors that torch would rebuild and that are no plain weights: sparse, quantised, without data.
UNSUPPORTED_TENSORS: Final = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_meta_tensor_no_storage": "without data (device meta)",
}

_INERT: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch.serialization", "_get_layout"),
        ("torch", "device"),
        ("builtins", "complex"),
        ("argparse", "Namespace"),
        ("functools", "partial"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
        *(
            (module, name)
            for module in ("pathlib", "pathlib._local")
            for name in (
                "Path",
                "PosixPath",
                "WindowsPath",
                "PurePath",
                "PurePosixPath",
                "PureWindowsPath",
            )
        ),
        *(
            ("datetime", name)
            for name in ("date", "datetime", "time", "timedelta", "timezone", "tzinfo")
        ),
    }
)

#: Every callable that a file may call by REDUCE. ``torch.storage._load_from_bytes`` is a whole
#: file inside the file; it is walked by the same rules.
ALLOWED: Final[frozenset[tuple[str, str]]] = frozenset(
    {*_TENSOR_MAKERS, *_VALUE_MAKERS, *_INERT, ("torch.storage", "_load_from_bytes")}
)

#: Names that are harmless to mention: nothing a reader should be told about.
_UNREMARKABLE: Final[frozenset[tuple[str, str]]] = ALLOWED | {
    ("builtins", name)
    for name in (
        *("int", "long", "float", "bool", "str", "unicode", "bytes"),
        *("list", "dict", "tuple", "object", "type"),
    )
}


def is_unremarkable(reference: GlobalRef) -> bool:
    """Return whether a mere mention of `reference` needs no finding: torch's layers and types."""
    if (reference.module, reference.name) in _UNREMARKABLE or storage_dtype(reference) is not None:
        return True
    if reference.module == "torch" and reference.name in ITEM_SIZES:
        return True
    return reference.module == "torch.nn.functional" or reference.module.startswith(
        ("torch.nn.modules.", "torch.nn.parallel.")
    )


def apply(reference: GlobalRef, arguments: tuple[object, ...]) -> object:
    """Return what calling an allowed callable amounts to, without calling it.

    Args:
        reference: a member of `ALLOWED`, other than ``_load_from_bytes``.
        arguments: what the file passes.

    Returns:
        A plain value, a `TensorRecord`, or a `StandIn` that keeps the arguments.

    Raises:
        ArgumentError: the arguments are none that torch or Python writes.
        NotAllowedError: an argument is itself to be called and is not on the list.
    """
    pair = (reference.module, reference.name)
    maker = _TENSOR_MAKERS.get(pair) or _VALUE_MAKERS.get(pair)
    if maker is not None:
        return maker(arguments)
    return StandIn(reference.qualified, arguments)
