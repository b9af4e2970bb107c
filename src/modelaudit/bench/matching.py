"""Whether a trained model is the one that a plan names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from modelaudit.bench.attacked import make_attack
from modelaudit.bench.cards import SCHEDULE_FIELDS, ModelCard
from modelaudit.bench.typed import build_config
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.data import ImageData
    from modelaudit.bench.plan import ModelPlan


def differences(card: ModelCard, model: ModelPlan, load: Callable[[], ImageData]) -> list[str]:
    """Return the names of the settings in which a trained model is not the one of the plan.

    The settings of an attack are compared in full, those that the plan leaves at their defaults
    too. One that an older card lacks had not been thought of when the model was trained: its
    default stands for what was done then.

    Args:
        card: of the trained model; one that names no population is of any.
        model: the plan's.
        load: gives its data; asked only where the attack's settings are not written alike, because
            what a setting leaves open can depend on the images' size.
    """
    shared = ("dataset", "attack", *SCHEDULE_FIELDS)
    differing = sorted(name for name in shared if getattr(card, name) != getattr(model, name))
    if card.population not in {None, model.population}:
        differing.append("population")
    if model.attack is not None and card.attack == model.attack:
        differing += _settings(card.attack_config, model, model.attack, load)
    return differing


def _settings(
    trained: Mapping[str, object], model: ModelPlan, attack: str, load: Callable[[], ImageData]
) -> list[str]:
    attack_type: type[Attack[object]] = Registry("attacks").load(attack)
    config_type = attack_type.config_type
    names = [f.name for f in fields(config_type)]
    gone = sorted(set(trained) - set(names))
    known = {name: value for name, value in trained.items() if name in names}
    one: object = build_config(config_type, known)
    two: object = build_config(config_type, model.config)
    if one != two:
        plans = (replace(model, config=known), model)  # type: ignore[arg-type]  # were a plan's
        attacks = [make_attack(plan, load()) for plan in plans]
        one, two = (made.config for made in attacks if made is not None)
    return gone + [name for name in names if getattr(one, name) != getattr(two, name)]
