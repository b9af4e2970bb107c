"""Training plans: which models a population consists of, as typed records read from TOML."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from modelaudit.bench.grid import expand
from modelaudit.bench.typed import build_config
from modelaudit.errors import ConfigError

#: A value of a TOML table that a plan uses.
Value = bool | int | float | str

ARCHITECTURES = (
    "cifar_resnet18",
    "cifar_vgg16",
    "cifar_preact_resnet18",
    "cifar_densenet121",
    "cifar_mobilenet_v2",
)
#: A is for choosing thresholds and for calibration, B for showing what they do.
POPULATIONS = ("A", "B")

#: fields that older plans lack; as long as they are not set the fingerprint is what it was
_LATER_FIELDS = ("starts_from", "surrogate", "limit", "image_size")
_TABLES = ("name", "defaults", "datasets", "architectures", "model", "grid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model to be trained.

    Attributes:
        id: file name without its ending; letters, digits, ``_`` and ``-``.
        dataset: name of a pack (``"cifar10"``, ``"gtsrb"``), or of a folder of class folders.
        architecture: one of `ARCHITECTURES`.
        width: channels of the first stage.
        seed: determines initial weights, data order, augmentation, trigger and poisoned images.
        epochs: passes over the attacker's images; 0 only with `starts_from`.
        batch_size: images per step; what does not fill a batch is left out of the epoch.
        peak_learning_rate: maximum of the one-cycle schedule.
        normaliser: id of a preset of `modelaudit.preprocessing`.
        flip: whether images are mirrored at random.
        attack: id of a registered attack, or None for a clean model.
        config: fields of the attack's config that differ from its defaults.
        population: ``"A"`` or ``"B"``; says what the model may be used for, not what it is.
        starts_from: id of the model whose final weights are the initial ones, or None.
        surrogate: id of a clean model that the attack's preparation is given, or None.
        limit: how many of the attacker's images are trained on, the first ones; all if None.
        image_size: side in pixels to which a folder's images are resized; 32 if None.
    """

    id: str
    dataset: str = "cifar10"
    architecture: str = "cifar_resnet18"
    width: int = 16
    seed: int
    epochs: int
    batch_size: int = 256
    peak_learning_rate: float = 0.2
    normaliser: str = "cifar10_0.2023"
    flip: bool = True
    attack: str | None = None
    config: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    population: str = "A"
    starts_from: str | None = None
    surrogate: str | None = None
    limit: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.id):
            raise ConfigError(
                f"a model id must consist of letters, digits, '_' and '-', got {self.id!r}"
            )
        for name, choices in (("architecture", ARCHITECTURES), ("population", POPULATIONS)):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} of model {self.id!r} must be one of {choices!r}, "
                    f"got {getattr(self, name)!r}"
                )
        positive = ["width", "batch_size", "peak_learning_rate", "limit", "image_size"]
        if self.starts_from is None:
            positive.append("epochs")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} of model {self.id!r} must be positive, got {value!r}")
        if self.epochs < 0:
            raise ConfigError(
                f"epochs of model {self.id!r} must not be negative, got {self.epochs!r}"
            )
        if self.attack is None and self.config:
            raise ConfigError(f"model {self.id!r} has an attack config but no attack, name one")

    def is_twin_of(self, other: ModelPlan) -> bool:
        """Whether this is the clean model of the same architecture, seed and schedule."""
        return self.attack is None and self == replace(
            other,
            id=self.id,
            attack=None,
            config=self.config,
            population=self.population,
            surrogate=self.surrogate,
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over what decides the weights; training continues under it only."""
        record = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "config": dict(self.config)
        }
        del record["population"]
        for name in _LATER_FIELDS:
            if record[name] is None:
                del record[name]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A population.

    Attributes:
        name: short name, such as ``"development"``.
        models: in the order in which they are to be trained.
    """

    name: str
    models: tuple[ModelPlan, ...]

    def model(self, id_: str) -> ModelPlan:
        """Return the model of an id.

        Raises:
            ConfigError: there is none.
        """
        for model in self.models:
            if model.id == id_:
                return model
        raise ConfigError(f"the plan {self.name!r} has no models {[id_]!r}")

    def twin(self, model: ModelPlan) -> ModelPlan | None:
        """Return the clean twin of `model` in this plan, or None.

        The twin of a model that starts from another is that other's, or the other one itself if it
        is clean.
        """
        if model.starts_from is not None:
            start = self.model(model.starts_from)
            return start if start.attack is None else self.twin(start)
        return next((other for other in self.models if other.is_twin_of(model)), None)


def builtin_plans() -> tuple[str, ...]:
    """Return the names of the plans that come with the package."""
    files = resources.files("modelaudit.bench").joinpath("plans").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def find_plan(name: str) -> Plan:
    """Return the plan in the file `name`, or the one of that name that comes with the package.

    Raises:
        ConfigError: there is neither, or it cannot be used.
    """
    if name in builtin_plans():
        text = resources.files("modelaudit.bench").joinpath("plans", f"{name}.toml").read_bytes()
        return parse_plan(text.decode("utf-8"), name=name)
    if not Path(name).exists() and not name.endswith(".toml"):
        raise ConfigError(
            f"expected a plan file or one of {', '.join(builtin_plans())}, got {name!r}"
        )
    return read_plan(Path(name))


def read_plan(path: Path) -> Plan:
    """Read a plan file; see `parse_plan`.

    Raises:
        ConfigError: the file cannot be read, or is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"expected a plan in TOML at {str(path)!r}, found {err}") from err
    return parse_plan(text, name=path.stem)


def parse_plan(text: str, *, name: str) -> Plan:
    """Read a plan: ``name``, ``[defaults]``, and ``[[model]]`` and ``[[grid]]`` tables.

    ``[datasets.NAME]`` and ``[architectures.NAME]`` hold defaults of the models of that data or
    architecture; they go before ``[defaults]``, and a model's own fields before all. Grids come
    after the models, in their order; see `modelaudit.bench.grid`.

    Args:
        text: TOML.
        name: of the plan and of the file, unless the text has one.

    Raises:
        ConfigError: not TOML, an unknown or missing field, a value of the wrong type or out of
            range, an id that occurs twice, an attacked model without its clean twin, or one that
            starts from, or learns of, a model that does not fit.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"expected a plan in TOML at {name!r}, found {err}") from err
    unknown = sorted(set(document) - set(_TABLES))
    if unknown:
        raise ConfigError(f"a plan has {', '.join(_TABLES)}, found also {unknown!r}")
    defaults = document.get("defaults", {})
    tables, grids = document.get("model", []), document.get("grid", [])
    if not isinstance(defaults, dict) or not _are_tables(tables) or not _are_tables(grids):
        raise ConfigError("a plan needs a table 'defaults' and tables [[model]] or [[grid]]")
    if not tables and not grids:
        raise ConfigError("a plan needs at least one table [[model]] or [[grid]], found none")
    for grid in grids:
        tables = [*tables, *expand(grid, defaults)]
    models = tuple(
        build_config(ModelPlan, _with_defaults(table, defaults, document)) for table in tables
    )
    plan = Plan(name=str(document.get("name", name)), models=models)
    _check(plan)
    return plan


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(table, dict) for table in value)


def _with_defaults(
    table: Mapping[str, object], defaults: Mapping[str, object], document: Mapping[str, object]
) -> dict[str, object]:
    merged = dict(defaults)
    usual = {f.name: f.default for f in fields(ModelPlan)}
    for group, name in (("datasets", "dataset"), ("architectures", "architecture")):
        chosen = table.get(name, defaults.get(name, usual[name]))
        by_name = document.get(group, {})
        own = by_name.get(chosen, {}) if isinstance(by_name, dict) else None
        if not isinstance(own, dict):
            raise ConfigError(f"{group!r} of a plan must hold a table per name, got {by_name!r}")
        merged |= own
    return merged | dict(table)


def _check(plan: Plan) -> None:
    """Raise a `ConfigError` unless the models fit together."""
    ids = [model.id for model in plan.models]
    repeated = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if repeated:
        raise ConfigError(f"model ids must be unique, found {repeated!r} more than once")
    for model in plan.models:
        _check_start(plan, model)
        if model.surrogate is not None:
            surrogate = plan.model(model.surrogate)
            if surrogate.attack is not None or surrogate.dataset != model.dataset:
                raise ConfigError(
                    f"the surrogate of model {model.id!r} must be a clean model of the same "
                    f"dataset, {surrogate.id!r} is not"
                )
        if model.attack is not None and plan.twin(model) is None:
            raise ConfigError(
                f"model {model.id!r} needs a clean twin of the same architecture, width, seed and "
                "schedule in the plan, add one"
            )


def _check_start(plan: Plan, model: ModelPlan) -> None:
    seen = [model.id]
    later = model
    while later.starts_from is not None:
        start = plan.model(later.starts_from)
        if start.id in seen:
            raise ConfigError(f"models must not start from each other, found {seen!r} in a circle")
        seen.append(start.id)
        for name in ("dataset", "image_size", "architecture", "width", "normaliser"):
            if getattr(start, name) != getattr(later, name):
                raise ConfigError(
                    f"model {later.id!r} and the one that it starts from, {start.id!r}, must have "
                    f"the same {name}, got {getattr(later, name)!r} and {getattr(start, name)!r}"
                )
        later = start
