"""Typed records from tables of TOML or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TypeVar, get_args, get_origin, get_type_hints

from modelaudit.errors import ConfigError

T = TypeVar("T")


def build_config(config_type: type[T], values: Mapping[str, object]) -> T:
    """Make a dataclass from a table, checking names and types.

    Args:
        config_type: a dataclass of plain, optional or literal types, tuples and mappings.
        values: field name to value; an int is taken for a float.

    Raises:
        ConfigError: an unknown or missing field, or a value of the wrong type.
    """
    hints = get_type_hints(config_type, localns={"Mapping": Mapping})
    names = [f.name for f in fields(config_type)]  # type: ignore[arg-type]  # by contract
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(f"{config_type.__name__} has fields {names!r}, found also {unknown!r}")
    arguments = {name: _typed(name, value, hints[name]) for name, value in values.items()}
    try:
        return config_type(**arguments)
    except TypeError as err:
        raise ConfigError(f"{config_type.__name__} cannot be made: {err}") from err


def _typed(name: str, value: object, hint: object) -> object:
    if get_origin(hint) is Mapping:
        if isinstance(value, dict):
            return MappingProxyType(value)
        raise ConfigError(f"{name} must be a table, got {value!r}")
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise ConfigError(f"{name} must be a list, got {value!r}")
    allowed = get_args(hint) or (hint,)
    if any(isinstance(choice, str) for choice in allowed):
        return value  # a Literal: the config's own check names the choices
    if type(value) in allowed:
        return value
    if type(value) is int and float in allowed:
        return float(value)
    raise ConfigError(f"{name} must be of type {getattr(hint, '__name__', hint)}, got {value!r}")
