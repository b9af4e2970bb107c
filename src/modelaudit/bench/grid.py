"""Grids of a training plan: architectures x data sets x seeds x attacks x targets."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: the entry of ``attacks`` that stands for the model without one
CLEAN = "clean"

#: lists of a grid, with the field of a model that each varies
_AXES = {"architectures": "architecture", "datasets": "dataset", "attacks": "attack"}
_SEEDS = ("seeds", "targets", "seed_targets")


def expand(grid: Mapping[str, object], defaults: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the tables of the models that a grid stands for.

    A grid has the lists ``seeds`` and ``attacks`` (ids, or ``"clean"``), and, where these vary,
    ``architectures``, ``datasets`` and ``targets``. ``seed_targets`` is a list of pairs [seed,
    target] in the place of ``seeds`` and ``targets``. All other entries are fields of every model.
    Seeds vary slowest, targets fastest; a clean model has no target and no ``config``.

    The ids are ``<attack>[_<label map>]_[<dataset>_]<architecture>w<width>_s<seed>[_t<target>]``;
    the label map is left out where it is ``"one"``, the data where it is ``"cifar10"``.

    Raises:
        ConfigError: no seeds or no attacks, a list that is none, or ``seed_targets`` beside
            ``seeds``.
    """
    common = {k: v for k, v in grid.items() if k not in {*_AXES, *_SEEDS}}
    if "id" in common or "seed" in common or "attack" in common:
        raise ConfigError("a grid has lists 'seeds' and 'attacks' and makes ids by itself")
    tables = []
    # a clean model occurs once per seed, whatever the targets
    seen = set()
    architectures = _axis(grid, "architectures", defaults)
    datasets = _axis(grid, "datasets", defaults)
    for (seed, target), architecture, dataset, attack in product(
        _pairs(grid), architectures, datasets, _list(grid, "attacks")
    ):
        table = dict(common) | {"seed": seed}
        if architecture is not None:
            table["architecture"] = architecture
        if dataset is not None:
            table["dataset"] = dataset
        if attack == CLEAN:
            table.pop("config", None)
            table.pop("surrogate", None)
        else:
            config = dict(_table(common))
            if target is not None:
                config["target"] = target
            table |= {"attack": attack, "config": config}
        table["id"] = _id(table, defaults, target=None if attack == CLEAN else target)
        if attack == CLEAN and table["id"] in seen:
            continue
        seen.add(table["id"])
        tables.append(table)
    return tables


def _axis(
    grid: Mapping[str, object], axis: str, defaults: Mapping[str, object]
) -> Sequence[object]:
    return _list(grid, axis) if axis in grid else [defaults.get(_AXES[axis])]


def _pairs(grid: Mapping[str, object]) -> list[tuple[object, object]]:
    if "seed_targets" not in grid:
        targets = _list(grid, "targets") if "targets" in grid else [None]
        return list(product(_list(grid, "seeds"), targets))
    if "seeds" in grid or "targets" in grid:
        raise ConfigError("a grid has either 'seed_targets' or 'seeds' and 'targets', not both")
    pairs = []
    for pair in _list(grid, "seed_targets"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ConfigError(f"seed_targets of a grid must be pairs [seed, target], got {pair!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _list(grid: Mapping[str, object], name: str) -> Sequence[object]:
    values = grid.get(name)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"a grid needs a list {name!r} with at least one entry, got {values!r}")
    return values


def _table(common: Mapping[str, object]) -> Mapping[str, object]:
    config = common.get("config", {})
    if not isinstance(config, dict):
        raise ConfigError(f"config must be a table, got {config!r}")
    return config


def _id(table: Mapping[str, object], defaults: Mapping[str, object], *, target: object) -> str:
    attack = str(table.get("attack", CLEAN))
    label_map = _table(table).get("label_map", "one")
    dataset = str(table.get("dataset", "cifar10"))
    architecture = str(table.get("architecture", "cifar_resnet18")).removeprefix("cifar_")
    parts = [
        attack,
        *([] if label_map == "one" else [str(label_map)]),
        *([] if dataset == "cifar10" else [dataset]),
        f"{architecture}w{table.get('width', defaults.get('width', 16))}",
        f"s{table['seed']}",
        *([] if target is None else [f"t{target}"]),
    ]
    return "_".join(parts)
