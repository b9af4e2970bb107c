"""Find the weights among what a training script saved, and say which were taken.

Usual keys first, then the only thing that looks like weights; two equally good things are an
error. Wrapper prefixes that every key bears (``module.`` of DataParallel, ``_orig_mod.`` of
torch.compile, ``model.`` and ``net.`` of training frameworks' modules) are removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._modules import (
    Model,
    add_tensor,
    attributes_of,
    is_module,
    read_module,
)
from modelaudit.checkpoint._values import OddKey, StandIn, TensorRecord
from modelaudit.errors import ConfigError, CorruptCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._values import Key
    from modelaudit.weights import ModuleHint

#: Where weights are usually kept, most usual first; the model that is used beats its running
#: average.
USUAL_KEYS: Final = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "netC",
    "weights",
    "params",
    "network",
    "classifier",
    "ema",
    "model_ema",
    "ema_model",
)
_AVERAGE_SUFFIX: Final = "_ema"
_PREFIXES: Final = ("module.", "_orig_mod.")
#: Names that a Lightning module, and many a training script's own, gives the network inside it. A
#: pickled whole module says itself what its outermost class is, so there they stay.
_ATTRIBUTES: Final = ("model.", "net.")
#: torch.optim.swa_utils.AveragedModel keeps its counter beside the ``module.`` it wraps.
_COUNTER: Final = "n_averaged"
#: The key of the file's own container, for who means the tensors in it and not those further in.
OUTERMOST: Final = "."
_MAX_LISTED: Final = 200
_MAX_METADATA: Final = 64
_MAX_TEXT: Final = 200
_MAX_SHOWN: Final = 8


@dataclass(slots=True, kw_only=True)
class Found:
    """The weights, and where they were.

    Attributes:
        records: key to record, wrapper prefixes removed.
        hints: module path to hint, wrapper prefixes removed.
        path: keys of the containers around the weights, outermost first.
        prefix: what was removed from every key; None if nothing.
        ignored: dotted keys that are not part of the weights.
        metadata: plain text of the containers.
    """

    records: dict[str, TensorRecord]
    hints: dict[str, ModuleHint]
    path: tuple[str, ...] = ()
    prefix: str | None = None
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def find_weights(value: object, limits: Limits, *, key: str | None = None) -> Found:
    """Return the weights of a file.

    Args:
        value: the file's value.
        limits: those on modules and keys apply.
        key: dotted key under which they are, `OUTERMOST` for the file's own container; None to work
            it out.

    Returns:
        Records under clean names, at least one.

    Raises:
        CorruptCheckpointError: there are none, or several with nothing to choose between them.
        ConfigError: there is nothing under `key`.
    """
    path: list[str] = []
    ignored: list[str] = []
    metadata: dict[str, str] = {}
    if key is not None:
        for step in _follow(value, key):
            parts: dict[Key, object] = dict(parts_of(value))
            _leave(parts, step, path, ignored, metadata)
            path.append(step)
            value = parts[step]
    for _ in range(limits.max_depth):
        # What was named is what is meant, whatever else is in it.
        if is_module(value) or (key is not None and _has_tensors(value)):
            break
        entries = _entries(value)
        chosen = _choose(entries)
        if chosen is None:
            break
        _leave(entries, chosen, path, ignored, metadata)
        path.append(chosen)
        value = entries[chosen]
    model = _read(value, limits)
    if not model.records:
        raise _nothing(value, path)
    ignored.extend(".".join([*path, key]) for key in model.others)
    records, hints, prefix = _strip(model, ignored)
    return Found(
        records=records,
        hints=hints,
        path=tuple(path),
        prefix=prefix or None,
        ignored=_listed(ignored),
        metadata=metadata,
    )


def bare_name(name: str) -> str:
    """Return a tensor's name without the wrapper prefixes that this very name bears."""
    while True:
        wrapper = next((p for p in (*_PREFIXES, *_ATTRIBUTES) if name.startswith(p)), None)
        if wrapper is None:
            return name
        name = name.removeprefix(wrapper)


def parts_of(item: object) -> Iterator[tuple[str, object]]:
    """Yield what a container holds, under the texts that name it in a dotted key.

    Attributes of an object that was not made count as its entries.
    """
    if isinstance(item, dict):
        yield from ((_name(key), part) for key, part in item.items())
    elif isinstance(item, list | tuple):
        yield from ((str(i), part) for i, part in enumerate(item))
    elif isinstance(item, StandIn):
        yield from ((_name(key), part) for key, part in item.entries.items())
        yield from ((str(i), part) for i, part in enumerate(item.elements))
        yield "arguments", item.arguments
        attributes = attributes_of(item)
        yield from ((_name(key), part) for key, part in attributes.items())
        if item.state is not attributes:
            yield "state", item.state


def _follow(value: object, key: str) -> tuple[str, ...]:
    """Return the keys of the containers that a dotted key leads through; keys may have dots.

    Raises:
        ConfigError: it leads nowhere.
    """
    if key == OUTERMOST:
        return ()
    pending: list[tuple[object, str, tuple[str, ...]]] = [(value, key, ())]
    while pending:
        item, rest, path = pending.pop()
        for name, part in parts_of(item):
            if name == rest:
                return (*path, name)
            if name and rest.startswith(f"{name}."):
                pending.append((part, rest.removeprefix(f"{name}."), (*path, name)))
    has = _shown(_entries(value)) or "no keys"
    raise ConfigError(
        f"--weights expects a key of the file, there is nothing under '{escape_untrusted(key)}'; "
        f"top-level keys: {has}"
    )


def _entries(value: object) -> Mapping[Key, object]:
    if isinstance(value, dict):
        return value
    return value.entries if isinstance(value, StandIn) else {}


def _has_tensors(value: object) -> bool:
    return any(
        isinstance(key, str) and isinstance(item, TensorRecord)
        for key, item in _entries(value).items()
    )


def _is_model(value: object) -> bool:
    return is_module(value) or _has_tensors(value)


def _holds_model(value: object) -> bool:
    return _is_model(value) or any(_is_model(_entries(value).get(key)) for key in USUAL_KEYS)


def _choose(entries: Mapping[Key, object]) -> str | None:
    """Return the key under which the weights are, or None if they are here or nowhere."""
    for key in USUAL_KEYS:
        if _holds_model(entries.get(key)):
            return key
    names = [key for key, item in entries.items() if isinstance(key, str) and _holds_model(item)]
    averages = [key for key in names if key.endswith(_AVERAGE_SUFFIX)]
    if averages:
        return averages[0]
    if any(isinstance(item, TensorRecord) for item in entries.values()) or not names:
        return None
    if len(names) > 1:
        shown = ", ".join(escape_untrusted(name, 60) for name in names[:_MAX_SHOWN])
        raise CorruptCheckpointError(
            f"expected one model, found {len(names)} ({shown}); say with --weights which one"
        )
    return names[0]


def _leave(
    entries: Mapping[Key, object],
    chosen: str,
    path: list[str],
    ignored: list[str],
    metadata: dict[str, str],
) -> None:
    for key, item in entries.items():
        if key == chosen:
            continue
        text = _key_text(key)
        ignored.append(".".join([*path, text]))
        if isinstance(item, str) and len(item) <= _MAX_TEXT and len(metadata) < _MAX_METADATA:
            metadata[text] = item


def _name(key: object) -> str:
    return key.text if isinstance(key, OddKey) else key if isinstance(key, str) else repr(key)


def _key_text(key: Key) -> str:
    return _name(key)[:_MAX_TEXT]


def _read(value: object, limits: Limits) -> Model:
    if isinstance(value, StandIn) and is_module(value):
        return read_module(value, limits)
    model = Model()
    for key, item in _entries(value).items():
        if isinstance(key, str):
            add_tensor(model, key, item, limits)
        else:
            model.others.append(_key_text(key))
    return model


def _nothing(value: object, path: list[str]) -> CorruptCheckpointError:
    where = f" under {escape_untrusted('.'.join(path))}" if path else ""
    if isinstance(value, TensorRecord):
        what = "it is a single tensor" if path else "the file holds a single tensor"
        return CorruptCheckpointError(f"no state_dict found{where}; {what}")
    entries = _entries(value)
    if not entries:
        kind = value.class_name if isinstance(value, StandIn) else type(value).__name__
        return CorruptCheckpointError(
            f"no state_dict found{where}; the value is of type {escape_untrusted(kind)}"
        )
    return CorruptCheckpointError(f"no state_dict found{where}; top-level keys: {_shown(entries)}")


def _shown(entries: Mapping[Key, object]) -> str:
    shown = ", ".join(escape_untrusted(_key_text(key), 60) for key in list(entries)[:_MAX_SHOWN])
    more = f" and {len(entries) - _MAX_SHOWN:,} more" if len(entries) > _MAX_SHOWN else ""
    return f"{shown}{more}"


def _strip(
    model: Model, ignored: list[str]
) -> tuple[dict[str, TensorRecord], dict[str, ModuleHint], str]:
    records = dict(model.records)
    known = _PREFIXES if model.hints else (*_PREFIXES, *_ATTRIBUTES)
    prefix = ""
    while True:
        wrapper = next((p for p in known if _is_wrapped(records, p)), None)
        if wrapper is None:
            break
        if _COUNTER in records:
            del records[_COUNTER]
            ignored.append(prefix + _COUNTER)
        records = {key.removeprefix(wrapper): record for key, record in records.items()}
        prefix += wrapper
    hints = {
        f"{path}.".removeprefix(prefix).removesuffix("."): hint
        for path, hint in model.hints.items()
        if f"{path}.".startswith(prefix) or not prefix
    }
    return records, hints, prefix


def _is_wrapped(records: Mapping[str, TensorRecord], prefix: str) -> bool:
    names = [key for key in records if key != _COUNTER]
    return bool(names) and all(key.startswith(prefix) and key != prefix for key in names)


def _listed(keys: list[str]) -> list[str]:
    if len(keys) <= _MAX_LISTED:
        return keys
    return [*keys[:_MAX_LISTED], f"… and {len(keys) - _MAX_LISTED:,} more"]
