"""Whether a trained model is the one that a plan names."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from modelaudit.bench.cards import SCHEDULE_FIELDS, ModelCard
from modelaudit.bench.typed import build_config
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from modelaudit.attacks.base import Attack
    from modelaudit.bench.plan import ModelPlan

#: side in pixels of the images of cards that do not say it
_SIDE = 32


def differences(card: ModelCard, model: ModelPlan) -> list[str]:
    """Return the names of the settings in which a trained model is not the one of the plan.

    The settings of an attack are compared in full, those that the plan leaves at their defaults
    too. One that an older card lacks had not been thought of when the model was trained: its
    default stands for what was done then.

    Args:
        card: of the trained model; one that names no population is of any.
        model: the plan's.
    """
    shared = ("dataset", "attack", *SCHEDULE_FIELDS)
    differing = sorted(name for name in shared if getattr(card, name) != getattr(model, name))
    if card.population not in {None, model.population}:
        differing.append("population")
    if model.attack is not None and card.attack == model.attack:
        differing += _settings(card, model, model.attack)
    return differing


def _settings(card: ModelCard, model: ModelPlan, attack: str) -> list[str]:
    attack_type: type[Attack[object]] = Registry("attacks").load(attack)
    config_type = attack_type.config_type
    names = [f.name for f in fields(config_type)]
    gone = sorted(set(card.attack_config) - set(names))
    known = {name: value for name, value in card.attack_config.items() if name in names}
    # What a setting leaves open can depend on the images' size.
    shape = _image_shape(card)
    one, two = (
        attack_type.complete(build_config(config_type, values), shape)
        for values in (known, model.config)
    )
    return gone + [name for name in names if getattr(one, name) != getattr(two, name)]


def _image_shape(card: ModelCard) -> tuple[int, int, int]:
    if card.image_shape:
        channels, height, width = card.image_shape
        return channels, height, width
    side = _SIDE if card.image_size is None else card.image_size
    return 3, side, side
