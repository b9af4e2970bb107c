"""Contact sheets of attacks: with their defaults, or as the models of a population learned them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from modelaudit.attacks.contact_sheet import contact_sheet
from modelaudit.bench.plan import ModelPlan, find_plan
from modelaudit.bench.runner import Population, find_data, make_attack
from modelaudit.errors import ModelAuditError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from modelaudit.bench.data import ImageData

#: images of a sheet
COLUMNS = 8


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
    ids: tuple[str, ...], *, dataset: str, data_root: Path, out: Path, seed: int = 0
) -> Iterator[Drawn]:
    """Draw attacks with their defaults; those that have to learn their trigger have none here.

    Args:
        ids: of attacks; every registered one if empty.
        dataset: whose test images are triggered.
        data_root: folder of the data.
        out: folder of the sheets.
        seed: of the attacks.

    Yields:
        One sheet per attack, ``<id>.png``.

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
            chosen = _test_images(data)
            sheet = contact_sheet(attack, data.test_images[chosen], indices=chosen)
        except ModelAuditError as err:
            yield Drawn(name=id_, reason=str(err))
            continue
        save_png(sheet, out / f"{id_}.png")
        yield Drawn(name=id_, path=out / f"{id_}.png")


def draw_population(plan: str, *, models: Path, data_root: Path, out: Path) -> Iterator[Drawn]:
    """Draw the triggers of the trained models of a plan, as they were learned.

    Args:
        plan: name or file.
        models: folder of the population.
        data_root: folder of the data.
        out: folder of the sheets.

    Yields:
        One sheet per attacked model that is trained, ``<id>.png``.

    Raises:
        ConfigError: no such plan, or a folder of another one.
        DataError: the data is missing.
    """
    population = Population(find_plan(plan), folder=models, data_root=data_root)
    for model in population.plan.models:
        if model.attack is None or population.card(model) is None:
            continue
        data, attack = population.attack(model)
        chosen = _test_images(data)
        sheet = contact_sheet(attack, data.test_images[chosen], indices=chosen)
        save_png(sheet, out / f"{model.id}.png")
        yield Drawn(name=model.id, path=out / f"{model.id}.png")


def save_png(sheet: NDArray[np.uint8], path: Path) -> None:
    """Write a sheet as a PNG file, whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    Image.fromarray(sheet).save(partial, format="PNG")
    partial.replace(path)


def _test_images(data: ImageData) -> Tensor:
    """Return the indices of test images, one per class in turn."""
    labels = data.test_labels
    turn = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        turn[mine] = torch.arange(int(mine.sum()))
    return turn.argsort(stable=True)[:COLUMNS]
