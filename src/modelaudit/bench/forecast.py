"""How long a run still takes, from what its like took before."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What decides how long a unit of work takes, the most telling last.
Kind = tuple[str | int | None, ...]


class Forecast:
    """Mean seconds per unit of work of each kind, where none is known of the kinds like it.

    Likeness is a common beginning: of ("cifar10", "cifar_vgg16", 16, "blend") first the kind
    itself is looked up, then ("cifar10", "cifar_vgg16", 16), and so on to ().
    """

    def __init__(self) -> None:
        self._seconds: dict[Kind, float] = defaultdict(float)
        self._units: dict[Kind, float] = defaultdict(float)

    def observe(self, kind: Kind, *, units: float, seconds: float) -> None:
        """Note that `units` of a kind took `seconds`."""
        for length in range(len(kind) + 1):
            self._seconds[kind[:length]] += seconds
            self._units[kind[:length]] += units

    def seconds(self, work: Iterable[tuple[Kind, float]]) -> float | None:
        """Return how long the units of each kind take one after the other, None if unknown."""
        total = 0.0
        for kind, units in work:
            if not units:
                continue
            known = next(
                (kind[:n] for n in range(len(kind), -1, -1) if self._units.get(kind[:n])), None
            )
            if known is None:
                return None
            total += units * self._seconds[known] / self._units[known]
        return total


def duration(seconds: float) -> str:
    """Return a time in words, such as ``"3 h 20 min"``.

    Example:
        >>> duration(12_345)
        '3 h 26 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
