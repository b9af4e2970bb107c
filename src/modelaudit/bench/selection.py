"""Which models of a population are measured, and what they are measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.bench.cards import read_card
from modelaudit.bench.plan import find_plan
from modelaudit.bench.runner import find_data
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.data import ImageData


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Models of a population, and the data that they were trained on.

    Attributes:
        folder: of the population.
        data_root: folder of the data packs.
        only: ids of models; all if empty.
        population: A or B; both if None.
        plan: name or file of the plan whose models are meant; None for all that have cards.
        is_with_failed: whether models that failed the gate are measured too.
    """

    folder: Path
    data_root: Path
    only: tuple[str, ...] = ()
    population: str | None = None
    plan: str | None = None
    is_with_failed: bool = False

    def cards(self) -> tuple[ModelCard, ...]:
        """Return the cards of the models that are to be measured, in the order of their ids.

        Attacked models that are not judged yet are left out, for what is known of them will change,
        and so are those that failed the gate.

        Raises:
            ConfigError: there is no card, none of an id that was asked for, or one that names no
                population.
        """
        paths = sorted((self.folder / "cards").glob("*.json"))
        if not paths:
            raise ConfigError(
                f"expected model cards in {str(self.folder / 'cards')!r}, found none; "
                "give the folder that 'bench train' wrote"
            )
        cards = {path.stem: read_card(path) for path in paths}
        unknown = sorted(set(self.only) - set(cards))
        if unknown:
            raise ConfigError(f"{str(self.folder)!r} has no models {unknown!r}")
        if self.plan is not None:
            ids = {model.id for model in find_plan(self.plan).models}
            cards = {id_: card for id_, card in cards.items() if id_ in ids}
        return tuple(card for id_, card in cards.items() if self._holds(id_, card))

    def _holds(self, id_: str, card: ModelCard) -> bool:
        is_usable = card.attack is None or card.gate_passed is not None
        if card.gate_passed is False and not self.is_with_failed:
            is_usable = False
        if not is_usable or (self.only and id_ not in self.only):
            return False
        if card.population is None:
            raise ConfigError(
                f"the card of {id_!r} names no population; run 'bench judge' with its plan"
            )
        return self.population in {None, card.population}

    def data_of(self, card: ModelCard) -> ImageData:
        """Return the data that the model of a card was trained on."""
        return find_data(
            card.dataset, self.data_root, cache=self.folder / "cache", size=card.image_size
        )
