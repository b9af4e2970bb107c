"""The attack of a plan or a card, as it is made and as it was learned, and images it poisoned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit import seeds
from modelaudit.bench.cards import SCHEDULE_FIELDS, ModelCard
from modelaudit.bench.plan import ModelPlan
from modelaudit.bench.state import load_trigger
from modelaudit.bench.typed import build_config
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.data import ImageData

#: images of a mixture
MIXTURE_IMAGES = 1_000


def make_attack(plan: ModelPlan, data: ImageData) -> Attack[object] | None:
    """Return the attack that a plan names, made for its data, or None for a clean model.

    Raises:
        ConfigError: no such attack, or a config it does not take.
    """
    if plan.attack is None:
        return None
    attack_type: type[Attack[object]] = Registry("attacks").load(plan.attack)
    return attack_type(
        build_config(attack_type.config_type, plan.config),
        shape=data.shape,
        num_classes=len(data.classes),
        seed=plan.seed,
    )


def trained_attack(card: ModelCard, data: ImageData, *, folder: Path) -> Attack[object] | None:
    """Return the attack of a trained model with the trigger that it has learned, on the CPU.

    Args:
        card: the model's; no plan is needed.
        data: what it was trained on.
        folder: of the population, whose ``state`` keeps what triggers learn.

    Returns:
        The attack; None for a clean model.

    Raises:
        ConfigError: the trigger is not the one that the card names: what it learned is gone, or
            belongs to another model, or cannot be read.
    """
    attack = make_attack(plan_of(card), data)
    if attack is None:
        return None
    path = folder / "state" / f"{card.id}.safetensors"
    load_trigger(path, attack.trigger)
    if attack.trigger.state_hash() != card.trigger_sha256:
        found = "another one" if path.exists() else "no such file"
        raise ConfigError(
            f"expected the trigger that the card of {card.id!r} names in {str(path)!r}, found "
            f"{found}; give the folder that the model was trained in"
        )
    return attack


def plan_of(card: ModelCard) -> ModelPlan:
    """Return the plan of a trained model, every field of its attack's configuration written out."""
    return ModelPlan(
        id=card.id,
        dataset=card.dataset,
        attack=card.attack,
        config=card.attack_config,  # type: ignore[arg-type]  # as the trainer wrote it
        population=card.population or "A",
        **{name: getattr(card, name) for name in SCHEDULE_FIELDS},
    )


def draw_mixture(
    card: ModelCard,
    data: ImageData,
    attack: Attack[object] | None,
    *,
    images: int = MIXTURE_IMAGES,
    seed: int = 0,
) -> Tensor:
    """Return images of what a model was trained on, poisoned ones among them as they come.

    Of a static plan these are the very images that the attacker poisoned; of one that draws anew
    in every batch, a batch. They are not cropped or mirrored.

    Args:
        card: the model's.
        data: what it was trained on.
        attack: as `trained_attack` returns it; a clean model's mixture is clean.
        images: how many; all where there are fewer.
        seed: of the choice.

    Returns:
        ``(M, C, H, W)`` float32 in [0, 1], in random order.
    """
    draw = seeds.generator(seed, "mixture", data.name)
    seen = card.attacker_last + 1
    chosen = torch.randperm(seen, generator=draw)[:images]
    mixture = data.train_images[chosen].float() / 255
    if attack is None:
        return mixture
    if attack.plan.granularity == "static":
        poison, cover = attack.plan.draw(data.train_labels[:seen])
        is_poison, is_cover = torch.isin(chosen, poison), torch.isin(chosen, cover)
    else:
        is_poison, is_cover = attack.plan.draw_batch(data.train_labels[chosen], generator=draw)
    clean = mixture.clone()
    with torch.no_grad():
        if is_poison.any():
            mixture[is_poison] = attack.trigger.apply_train(
                clean[is_poison], indices=chosen[is_poison], generator=draw
            )
        if is_cover.any():
            mixture[is_cover] = attack.trigger.cover(
                clean[is_cover], donors=clean.roll(1, 0)[is_cover], generator=draw
            )
    return mixture
