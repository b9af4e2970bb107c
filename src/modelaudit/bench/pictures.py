"""Contact sheets of attacks: with their defaults, or as the models of a population learned them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from modelaudit import seeds
from modelaudit.attacks.contact_sheet import Shown, contact_sheet
from modelaudit.bench.attacked import make_attack
from modelaudit.bench.plan import ModelPlan, find_plan
from modelaudit.bench.runner import Population, find_data
from modelaudit.errors import ConfigError, ModelAuditError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.data import ImageData

#: images of a sheet
COLUMNS = 8

_ADVICE = "give --plan and --models that trained it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A sheet, or why there is none.

    Attributes:
        name: the attack's or the model's id.
        path: the file; None if there is none.
        reason: why not; empty otherwise.
    """

    name: str
    path: Path | None = None
    reason: str = ""


def draw_attacks(
    ids: tuple[str, ...],
    *,
    dataset: str,
    data_root: Path,
    out: Path,
    shown: Shown = "test",
    seed: int = 0,
) -> Iterator[Drawn]:
    """Draw attacks with their defaults; those that need a training run for it have none here.

    Args:
        ids: of attacks; every registered one if empty.
        dataset: whose images are triggered.
        data_root: folder of the data.
        out: folder of the sheets.
        shown: what is put on them; the training trigger on images that the plan poisons, all else
            on test images.
        seed: of the attacks.

    Yields:
        One sheet per attack, ``<id>.png``, or ``<id>_training.png`` and ``<id>_cover.png``.

    Raises:
        ConfigError: an attack is not registered.
        DataError: the data is missing.
    """
    registry = Registry("attacks")
    for id_ in ids:
        registry.entry(id_)
    data = find_data(dataset, data_root, cache=None)
    for id_ in ids or registry.ids():
        plan = ModelPlan(id=id_, seed=seed, epochs=1, attack=id_)
        try:
            attack = make_attack(plan, data)
            assert attack is not None
            if attack.trigger.learned:
                raise ConfigError(f"its trigger is learned; {_ADVICE}")
            if shown == "training" and attack.trigger.prepared:
                raise ConfigError(f"its training images are made in a run; {_ADVICE}")
            path = _draw(attack, data, data.attacker_count, shown, out / id_)
        except ModelAuditError as err:
            yield Drawn(name=id_, reason=str(err))
        else:
            yield Drawn(name=id_, path=path)


def draw_population(
    plan: str, *, models: Path, data_root: Path, out: Path, shown: Shown = "test"
) -> Iterator[Drawn]:
    """Draw the triggers of the trained models of a plan, as they were learned.

    Args:
        plan: name or file.
        models: folder of the population.
        data_root: folder of the data.
        out: folder of the sheets.
        shown: see `draw_attacks`.

    Yields:
        One sheet per attacked model that is trained, named as those of `draw_attacks`; none of a
        model whose learned trigger is not in the folder.

    Raises:
        ConfigError: no such plan, or a folder of another one.
        DataError: the data is missing.
    """
    population = Population(find_plan(plan), folder=models, data_root=data_root)
    for model in population.plan.models:
        card = population.card(model)
        if model.attack is None or card is None:
            continue
        try:
            data, attack = population.attack(model)
            path = _draw(attack, data, card.attacker_last + 1, shown, out / model.id)
        except ConfigError as err:
            yield Drawn(name=model.id, reason=str(err))
        else:
            yield Drawn(name=model.id, path=path)


def save_png(sheet: NDArray[np.uint8], path: Path) -> None:
    """Write a sheet as a PNG file, whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    Image.fromarray(sheet).save(partial, format="PNG")
    partial.replace(path)


def _draw(attack: Attack[object], data: ImageData, seen: int, shown: Shown, stem: Path) -> Path:
    """Draw a sheet and return its file; `seen` training images are the attacker's."""
    if shown == "training":
        poison = _poisoned(attack, data.train_labels[:seen])
        chosen = poison[_in_turn(data.train_labels[poison])]
        images = data.train_images[chosen]
    else:
        chosen = _in_turn(data.test_labels)
        images = data.test_images[chosen]
    path = stem.with_name(stem.name + ("" if shown == "test" else f"_{shown}") + ".png")
    save_png(contact_sheet(attack, images, indices=chosen, shown=shown), path)
    return path


def _poisoned(attack: Attack[object], labels: Tensor) -> Tensor:
    """Return the indices of images that the plan poisons, of all of them as one batch if it draws.

    Args:
        attack: whose plan it is.
        labels: of the attacker's images.
    """
    if attack.plan.granularity == "static":
        return attack.plan.draw(labels)[0]
    draw = seeds.generator(attack.seed, "pictures")
    return attack.plan.draw_batch(labels, generator=draw)[0].nonzero().flatten()


def _in_turn(labels: Tensor) -> Tensor:
    """Return the positions of a few images, one per class in turn."""
    turn = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        turn[mine] = torch.arange(int(mine.sum()))
    return turn.argsort(stable=True)[:COLUMNS]
