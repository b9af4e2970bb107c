"""Configurations are frozen dataclasses; this reads their fields from text and checks ranges."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import TYPE_CHECKING, TypeVar

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.results import Json

C = TypeVar("C")

_TRUE, _FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}


def require_range(
    owner: object,
    field: str,
    *,
    low: float | None = None,
    high: float | None = None,
    is_low_open: bool = False,
) -> None:
    """Raise unless ``owner.field`` is a finite number in the range; None passes.

    Raises:
        ConfigError: naming field, value and range.
    """
    value = getattr(owner, field)
    if value is None:
        return
    is_low_bad = low is not None and (value < low or (is_low_open and value == low))
    is_infinite = value in {math.inf, -math.inf}
    if value != value or is_infinite or is_low_bad or (high is not None and value > high):
        opening = "(-inf" if low is None else f"({low}" if is_low_open else f"[{low}"
        closing = "inf)" if high is None else f"{high}]"
        raise ConfigError(
            f"{type(owner).__name__}.{field} must be in {opening}, {closing}, got {value!r}"
        )


def fields(config: object) -> dict[str, Json]:
    """Return every field of a configuration as JSON values."""
    assert dataclasses.is_dataclass(config)
    out: dict[str, Json] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def replace_from_text(config: C, raw: Mapping[str, str], *, owner: str) -> C:
    """Return `config` with the fields of `raw` parsed to their declared types.

    Args:
        config: a frozen dataclass.
        raw: field name to text, as given by ``--set OWNER.FIELD=VALUE``.
        owner: id to name in messages.

    Raises:
        ConfigError: unknown field, or text that is no value of the field's type or range.
    """
    assert dataclasses.is_dataclass(config)
    if not raw:
        # A plug-in's annotations need not resolve as long as nobody sets its fields.
        return config
    hints = typing.get_type_hints(type(config))
    known = [f.name for f in dataclasses.fields(config)]
    values: dict[str, object] = {}
    for name, text in raw.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{owner!r} has no setting {name!r}, it has {', '.join(known) or 'none'}{hint}"
            )
        values[name] = _parse(text, hints[name], f"{owner}.{name}")
    return dataclasses.replace(config, **values)  # type: ignore[type-var]  # C is a dataclass


def _parse(text: str, annotation: object, name: str) -> object:
    origin = typing.get_origin(annotation)
    if origin in {typing.Union, types.UnionType}:
        options = [a for a in typing.get_args(annotation) if a is not type(None)]
        if text.lower() in {"none", "null"} and len(options) < len(typing.get_args(annotation)):
            return None
        return _parse(text, options[0], name)
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        return tuple(_parse(part.strip(), item, name) for part in text.split(",") if part.strip())
    if annotation is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigError(f"{name} must be true or false, got {text!r}")
    if annotation in {int, float}:
        assert annotation is int or annotation is float
        try:
            return annotation(text)
        except ValueError:
            kind = "a whole number" if annotation is int else "a number"
            raise ConfigError(f"{name} must be {kind}, got {text!r}") from None
    return text
