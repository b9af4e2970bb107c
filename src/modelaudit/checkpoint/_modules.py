"""Read a whole pickled ``nn.Module`` off its stand-in: weights, plain attributes and class names.

What `torch.nn.Module.state_dict` would return, worked out from the attributes that every module
pickles (``_parameters``, ``_buffers``, ``_modules``), without the class.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._allow import UNSUPPORTED_TENSORS
from modelaudit.checkpoint._values import SetValue, StandIn, TensorRecord
from modelaudit.errors import CorruptCheckpointError
from modelaudit.text import escape_untrusted
from modelaudit.weights import ModuleHint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.checkpoint._types import Limits
    from modelaudit.weights import Attribute

_MAX_ATTRIBUTES: Final = 64
_MAX_ITEMS: Final = 64
_MAX_NESTING: Final = 3
_MAX_TEXT: Final = 200


@dataclass(slots=True)
class Model:
    """Named tensors of one model.

    Attributes:
        records: state-dict key to record.
        hints: module path to hint; empty for a plain state dict.
        others: keys that hold no tensor.
    """

    records: dict[str, TensorRecord] = field(default_factory=dict)
    hints: dict[str, ModuleHint] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def is_module(value: object) -> bool:
    """Return whether a value is a pickled module."""
    return isinstance(value, StandIn) and isinstance(attributes_of(value).get("_modules"), dict)


def add_tensor(model: Model, key: str, value: object, limits: Limits) -> None:
    """Add one entry of a state dict to `model`.

    Raises:
        CorruptCheckpointError: a tensor that is no plain weight, or a key that is too long.
    """
    if isinstance(value, StandIn) and value.class_name in UNSUPPORTED_TENSORS:
        raise CorruptCheckpointError(
            f"tensor '{escape_untrusted(key)}' is {UNSUPPORTED_TENSORS[value.class_name]}; "
            "save plain weights"
        )
    if not isinstance(value, TensorRecord):
        model.others.append(key)
        return
    if len(key) > limits.max_key_length:
        raise CorruptCheckpointError(
            f"a tensor's name has {len(key):,} characters, the limit is {limits.max_key_length:,}"
        )
    model.records[key] = value


def read_module(root: StandIn, limits: Limits) -> Model:
    """Return the state dict and the hints of a pickled module.

    Non-persistent buffers and empty parameters are left out, as torch does. A module that hangs in
    two places is listed in both.

    Args:
        root: the stand-in, with `is_module` true.
        limits: `Limits.max_modules`, `max_depth` and `max_key_length` apply.

    Returns:
        Keys in the order of ``state_dict()``.

    Raises:
        CorruptCheckpointError: modules nest deeper or are more than the limits allow.
    """
    model = Model()
    pending: list[tuple[str, StandIn, int]] = [("", root, 0)]
    count = 0
    while pending:
        path, module, depth = pending.pop()
        count += 1
        if depth > limits.max_depth or count > limits.max_modules:
            raise CorruptCheckpointError(
                f"modules nest deeper than {limits.max_depth} or are more than "
                f"{limits.max_modules:,}"
            )
        attributes = attributes_of(module)
        children = children_of(attributes)
        for name, value in own_tensors_of(attributes):
            add_tensor(model, f"{path}{name}", value, limits)
        model.hints[path.removesuffix(".")] = ModuleHint(
            class_name=module.class_name,
            attributes=MappingProxyType(_plain(attributes)),
            children=tuple(name for name, _ in children),
        )
        pending.extend((f"{path}{name}.", child, depth + 1) for name, child in reversed(children))
    return model


def attributes_of(module: StandIn) -> Mapping[object, object]:
    """Return what a stand-in's attributes would have been set from."""
    state = module.state
    # an object with slots pickles (attributes, slots)
    if isinstance(state, tuple) and len(state) == 2:
        state = state[0]
    return state if isinstance(state, dict) else {}


def _named(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        return []
    return [(key, item) for key, item in value.items() if isinstance(key, str)]


def children_of(attributes: Mapping[object, object]) -> list[tuple[str, StandIn]]:
    """Return the modules inside a module by name."""
    return [
        (name, child)
        for name, child in _named(attributes.get("_modules"))
        if isinstance(child, StandIn)
    ]


def own_tensors_of(attributes: Mapping[object, object]) -> list[tuple[str, object]]:
    """Return a module's own parameters and persistent buffers by name, without empty ones."""
    transient = attributes.get("_non_persistent_buffers_set")
    skipped: set[str] = set()
    if isinstance(transient, SetValue):
        skipped = {item for item in transient.items if isinstance(item, str)}
    buffers = [item for item in _named(attributes.get("_buffers")) if item[0] not in skipped]
    return [
        (name, value)
        for name, value in [*_named(attributes.get("_parameters")), *buffers]
        if value is not None
    ]


def _plain(attributes: Mapping[object, object]) -> dict[str, Attribute]:
    result: dict[str, Attribute] = {}
    for name, value in attributes.items():
        if len(result) == _MAX_ATTRIBUTES:
            break
        if not isinstance(name, str) or name.startswith("_") or len(name) > _MAX_TEXT:
            continue
        try:
            result[name] = _attribute(value, 0)
        except _NotPlainError:
            continue
    return result


class _NotPlainError(Exception):
    """A value is no plain attribute."""


def _attribute(value: object, depth: int) -> Attribute:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        return value
    if isinstance(value, (tuple, list)) and len(value) <= _MAX_ITEMS and depth < _MAX_NESTING:
        return tuple(_attribute(item, depth + 1) for item in value)
    raise _NotPlainError
