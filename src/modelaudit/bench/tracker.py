"""How far a run over a population is, and how long it still takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.bench.forecast import Forecast, duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.events import Event
    from modelaudit.bench.forecast import Kind
    from modelaudit.bench.plan import ModelPlan
    from modelaudit.bench.scan import ScanEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        done: finished units.
        total: all units.
        models: finished models.
        all_models: all models.
        remaining: what is left, in words; empty while unknown.
        said: what happened last, in words.
    """

    done: int
    total: int
    models: int
    all_models: int
    remaining: str
    said: str

    @property
    def line(self) -> str:
        """One line for a log."""
        left = f", {self.remaining} left" if self.remaining else ""
        return f"{self.said} ({self.models} of {self.all_models} models{left})"


class TrainTracker:
    """Follows `bench train`; a unit is an epoch.

    Args:
        models: the chosen models.
        cards: of those of the plan that are trained, by id; their times are the first forecast.
        workers: how many models are trained at once.
    """

    def __init__(
        self, models: Sequence[ModelPlan], cards: Mapping[str, ModelCard], *, workers: int
    ) -> None:
        self._models = {model.id: model for model in models}
        self._workers = workers
        self._epochs = {m.id: _units(m) if m.id in cards else 0 for m in models}
        self._ended = {model.id for model in models if model.id in cards}
        self._forecast = Forecast()
        for card in cards.values():
            if card.epochs:
                kind = (card.dataset, card.architecture, card.width, card.attack)
                self._forecast.observe(kind, units=card.epochs, seconds=card.seconds)

    def update(self, event: Event) -> Status:
        """Take in an event and return how far the run is."""
        model = self._models.get(event.id)
        if model is not None:
            if event.kind == "epoch":
                self._epochs[event.id] = event.epochs
                self._forecast.observe(_kind(model), units=1, seconds=event.seconds)
            elif event.kind in {"trained", "failed"}:
                self._epochs[event.id] = _units(model)
                self._ended.add(event.id)
        said = f"{event.id}: {event.kind}" + (f": {event.text}" if event.text else "")
        if event.kind == "epoch":
            of = f" of {model.epochs}" if model is not None else ""
            said = f"{event.id}: epoch {event.epochs}{of}, {event.seconds:.0f} s"
        return self.status(said)

    def status(self, said: str = "") -> Status:
        """Return how far the run is."""
        left = [(_kind(m), _units(m) - self._epochs[m.id]) for m in self._models.values()]
        seconds = self._forecast.seconds(left)
        return Status(
            done=sum(self._epochs.values()),
            total=sum(_units(model) for model in self._models.values()),
            models=len(self._ended),
            all_models=len(self._models),
            remaining="" if seconds is None else duration(seconds / self._workers),
            said=said,
        )


class ScanTracker:
    """Follows `bench scan`; a unit is a model.

    Args:
        cards: of the chosen models.
        workers: how many models are scanned at once.
    """

    def __init__(self, cards: Sequence[ModelCard], *, workers: int) -> None:
        self._kinds = {card.id: (card.dataset, card.architecture, card.width) for card in cards}
        self._workers = workers
        self._ended: set[str] = set()
        self._forecast = Forecast()

    def update(self, event: ScanEvent) -> Status:
        """Take in an event and return how far the run is."""
        self._ended.add(event.id)
        if event.rows:
            self._forecast.observe(self._kinds[event.id], units=1, seconds=event.seconds)
        return self.status(f"{event.id}: {event.text}")

    def status(self, said: str = "") -> Status:
        """Return how far the run is."""
        left: list[tuple[Kind, float]] = [
            (kind, 1) for id_, kind in self._kinds.items() if id_ not in self._ended
        ]
        seconds = self._forecast.seconds(left)
        return Status(
            done=len(self._ended),
            total=len(self._kinds),
            models=len(self._ended),
            all_models=len(self._kinds),
            remaining="" if seconds is None else duration(seconds / self._workers),
            said=said,
        )


def _kind(model: ModelPlan) -> Kind:
    return (model.dataset, model.architecture, model.width, model.attack)


def _units(model: ModelPlan) -> int:
    return max(1, model.epochs)
