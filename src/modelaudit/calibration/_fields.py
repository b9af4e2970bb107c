"""One JSON object whose fields are taken out one by one, each with its type checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelaudit.errors import ConfigError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.results import Json


class Fields:
    """The fields of one object.

    Args:
        values: the object.
        where: its place in the file, for messages.
    """

    def __init__(self, values: dict[str, Json], where: str) -> None:
        self._left = dict(values)
        self.where = where

    @classmethod
    def of(cls, value: Json, where: str) -> Fields:
        """Return the fields of a value that must be an object.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected an object, got {_shown(value)}")
        return cls(value, where)

    def finish(self) -> None:
        """Raise a `ConfigError` if there are fields that nobody took."""
        if self._left:
            names = ", ".join(_shown(name) for name in sorted(self._left)[:5])
            raise ConfigError(f"{self.where}: expected no further fields, got {names}")

    def text(self, name: str) -> str:
        """Take a text."""
        value = self._take(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text", value)
        return value

    def optional_text(self, name: str) -> str | None:
        """Take a text or null."""
        value = self._take(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "text or null", value)
        return value

    def flag(self, name: str) -> bool:
        """Take true or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def whole(self, name: str) -> int:
        """Take a whole number."""
        value = self._take(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number", value)
        return value

    def number(self, name: str) -> float:
        """Take a finite number."""
        return self.as_number(name, self._take(name))

    def as_number(self, name: str, value: Json) -> float:
        """Return a value that must be a finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        # 1e999 is valid JSON and an infinity to Python
        if not math.isfinite(value):
            raise self._wrong(name, "a finite number", value)
        return float(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Take a list of texts."""
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts", value)
        return tuple(map(str, value))

    def mapping(self, name: str) -> list[tuple[str, Json]]:
        """Take an object whose keys are free."""
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return list(value.items())

    def object(self, name: str) -> Fields:
        """Take an object."""
        return Fields.of(self._take(name), f"{self.where}.{name}")

    def optional_object(self, name: str) -> Fields | None:
        """Take an object or null."""
        value = self._take(name)
        return None if value is None else Fields.of(value, f"{self.where}.{name}")

    def objects(self, name: str) -> list[Fields]:
        """Take a list of objects."""
        value = self._take(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        return [Fields.of(item, f"{self.where}.{name}[{i}]") for i, item in enumerate(value)]

    def _take(self, name: str) -> Json:
        if name not in self._left:
            raise ConfigError(f"{self.where}: expected a field {name!r}, there is none")
        return self._left.pop(name)

    def _wrong(self, name: str, wanted: str, value: Json) -> ConfigError:
        return ConfigError(f"{self.where}.{name}: expected {wanted}, got {_shown(value)}")


def _shown(value: Json) -> str:
    return f"'{escape_untrusted(value, 60)}'" if isinstance(value, str) else repr(value)[:60]
