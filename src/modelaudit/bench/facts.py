"""Which models of a population are measured, and what a row says of each and of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.bench.cards import ModelCard, processor, read_card
from modelaudit.bench.plan import find_plan
from modelaudit.engine.versions import versions
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

#: what a card knows and no method is told
_TRUTH = (
    "attack",
    "label_map",
    "target",
    "victim",
    "acc",
    "twin_acc",
    "asr",
    "benign_asr",
    "gate_passed",
)


def choose_cards(
    folder: Path,
    *,
    only: Collection[str] = (),
    population: str | None = None,
    plan: str | None = None,
    is_with_failed: bool = False,
) -> tuple[ModelCard, ...]:
    """Return the cards of the models that are to be measured, in the order of their ids.

    Attacked models that are not judged yet are left out, for what is known of them will change, and
    so are those that failed the gate.

    Args:
        folder: of the population.
        only: ids of models; all if empty.
        population: A or B; both if None.
        plan: name or file of the plan whose models are meant; None for all that have cards.
        is_with_failed: whether models that failed the gate are measured too.

    Raises:
        ConfigError: there is no card, none of an id that was asked for, or one that names no
            population.
    """
    paths = sorted((folder / "cards").glob("*.json"))
    if not paths:
        raise ConfigError(
            f"expected model cards in {str(folder / 'cards')!r}, found none; "
            "give the folder that 'bench train' wrote"
        )
    cards = {path.stem: read_card(path) for path in paths}
    unknown = sorted(set(only) - set(cards))
    if unknown:
        raise ConfigError(f"{str(folder)!r} has no models {unknown!r}")
    if plan is not None:
        ids = {model.id for model in find_plan(plan).models}
        cards = {id_: card for id_, card in cards.items() if id_ in ids}
    chosen = []
    for id_, card in cards.items():
        is_usable = card.attack is None or card.gate_passed is not None
        if card.gate_passed is False and not is_with_failed:
            is_usable = False
        if not is_usable or (only and id_ not in only):
            continue
        if card.population is None:
            raise ConfigError(
                f"the card of {id_!r} names no population; run 'bench judge' with its plan"
            )
        if population in {None, card.population}:
            chosen.append(card)
    return tuple(chosen)


def model_facts(card: ModelCard, size: int | None) -> dict[str, object]:
    """Return what a row says of its model.

    Args:
        card: the model's.
        size: side of its square images in pixels, None if they are none.
    """
    return {
        "id": card.id,
        "plan": card.plan,
        "population": card.population,
        "dataset": card.dataset,
        "architecture": card.architecture,
        "width": card.width,
        "classes": card.classes,
        "input_size": size,
    }


def truth_facts(card: ModelCard) -> dict[str, object]:
    """Return what a row says of what was done to its model."""
    return {name: getattr(card, name) for name in _TRUTH}


def machine_facts(device: str) -> dict[str, object]:
    """Return ``hardware`` and ``versions`` of a row that is made in this process."""
    return {
        "hardware": {"cpu": processor(), "threads": torch.get_num_threads(), "device": device},
        "versions": versions(),
    }
