"""Entry-point registries of scanners, repairs, attacks and architectures, whoever brings them."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from modelaudit.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOG = logging.getLogger(__name__)

GROUPS = ("scanners", "repairs", "attacks", "architectures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One registered id.

    Attributes:
        id: the entry point's name.
        distribution: who brings it.
        entry_point: how to import it; imported only by `load`.
    """

    id: str
    distribution: str
    entry_point: EntryPoint = field(repr=False)

    def load(self) -> type:
        """Import and return the registered class.

        Raises:
            PluginError: the import fails or gives something that is no class.
        """
        try:
            loaded = self.entry_point.load()
        except Exception as err:
            raise PluginError(
                f"{self.id!r} of {self.distribution!r} cannot be imported: "
                f"{type(err).__name__}: {err}"
            ) from err
        if not isinstance(loaded, type):
            raise PluginError(f"{self.id!r} of {self.distribution!r} is not a class: {loaded!r}")
        return loaded


class Registry:
    """The ids of one entry-point group.

    Args:
        group: one of `GROUPS`.
        points: entry points to hold; those installed in this environment if omitted.
    """

    def __init__(self, group: str, points: Iterable[EntryPoint] | None = None) -> None:
        self.group = group
        found = entry_points(group=f"modelaudit.{group}") if points is None else points
        self._entries: dict[str, Entry] = {}
        for point in sorted(found, key=lambda p: (p.name, p.value)):
            owner = point.dist.name if point.dist is not None else "unknown"
            other = self._entries.get(point.name)
            if other is not None and other.entry_point.value != point.value:
                raise PluginError(
                    f"two distributions register {group[:-1]} {point.name!r}: "
                    f"{other.distribution!r} and {owner!r}; uninstall one of them"
                )
            self._entries[point.name] = Entry(id=point.name, distribution=owner, entry_point=point)

    def ids(self) -> tuple[str, ...]:
        """Return the registered ids, sorted."""
        return tuple(self._entries)

    def entry(self, id_: str) -> Entry:
        """Return the record of `id_`.

        Raises:
            ConfigError: nothing is registered under `id_`.
        """
        try:
            return self._entries[id_]
        except KeyError:
            near = difflib.get_close_matches(id_, self._entries, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"unknown {self.group[:-1]} {id_!r}, registered are "
                f"{', '.join(self._entries) or 'none'}{hint}"
            ) from None

    def load(self, id_: str) -> type:
        """Return the class registered as `id_`."""
        return self.entry(id_).load()

    def load_all(self) -> list[tuple[Entry, type]]:
        """Return every class that imports; the others are warned about and left out."""
        loaded = []
        for entry in self._entries.values():
            try:
                loaded.append((entry, entry.load()))
            except PluginError as err:
                _LOG.warning("plug-in left out: %s", err)
        return loaded
