"""How far `bench repair` is, and how long it still takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.forecast import Forecast, duration
from modelaudit.bench.tracker import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.forecast import Kind
    from modelaudit.bench.repair import RepairEvent
    from modelaudit.bench.repair_methods import Method


class RepairTracker:
    """Follows `bench repair`; a unit is one repair of one model.

    Args:
        cards: of the chosen models.
        methods: that each of them is repaired by.
        workers: how many models are repaired at once.
    """

    def __init__(
        self, cards: Sequence[ModelCard], methods: Sequence[Method], *, workers: int
    ) -> None:
        # the method decides most, so that it comes first
        self._kinds: dict[tuple[str, str], Kind] = {
            (card.id, m.full_id): (m.full_id, card.dataset, card.architecture, card.width)
            for card in cards
            for m in methods
        }
        self._models = len(cards)
        self._methods = len(methods)
        self._workers = workers
        self._ended: set[tuple[str, str]] = set()
        self._forecast = Forecast()

    def update(self, event: RepairEvent) -> Status:
        """Take in an event and return how far the run is."""
        unit = (event.id, event.method)
        self._ended.add(unit)
        if event.rows:
            self._forecast.observe(self._kinds[unit], units=1, seconds=event.seconds)
        return self.status(f"{event.id}: {event.method}: {event.text}")

    def status(self, said: str = "") -> Status:
        """Return how far the run is."""
        left: list[tuple[Kind, float]] = [
            (kind, 1) for unit, kind in self._kinds.items() if unit not in self._ended
        ]
        seconds = self._forecast.seconds(left)
        finished = [id_ for id_, _ in self._ended]
        return Status(
            done=len(self._ended),
            total=len(self._kinds),
            models=sum(finished.count(id_) == self._methods for id_ in set(finished)),
            all_models=self._models,
            remaining="" if seconds is None else duration(seconds / self._workers),
            said=said,
        )
