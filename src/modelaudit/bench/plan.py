"""Training plans: which models a population consists of, as typed records read from TOML."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin, get_type_hints

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

#: A value of a TOML table that a plan uses.
Value = bool | int | float | str

ARCHITECTURES = ("cifar_resnet18", "cifar_vgg16")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model to be trained.

    Attributes:
        id: file name without its ending; letters, digits, ``_`` and ``-``.
        dataset: name of a pack (``"cifar10"``, ``"gtsrb"``), or of a folder of class folders.
        architecture: one of `ARCHITECTURES`.
        width: channels of the first stage.
        seed: determines initial weights, data order, augmentation, trigger and poisoned images.
        epochs: passes over the attacker's images.
        batch_size: images per step; what does not fill a batch is left out of the epoch.
        peak_learning_rate: maximum of the one-cycle schedule.
        normaliser: id of a preset of `modelaudit.preprocessing`.
        flip: whether images are mirrored at random.
        attack: id of a registered attack, or None for a clean model.
        config: fields of the attack's config that differ from its defaults.
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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.id):
            raise ConfigError(
                f"a model id must consist of letters, digits, '_' and '-', got {self.id!r}"
            )
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(
                f"architecture of model {self.id!r} must be one of {ARCHITECTURES!r}, "
                f"got {self.architecture!r}"
            )
        for name in ("width", "epochs", "batch_size", "peak_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} of model {self.id!r} must be positive, got {getattr(self, name)!r}"
                )
        if self.attack is None and self.config:
            raise ConfigError(f"model {self.id!r} has an attack config but no attack, name one")

    def is_twin_of(self, other: ModelPlan) -> bool:
        """Whether this is the clean model of the same architecture, seed and schedule."""
        return self.attack is None and self == replace(
            other, id=self.id, attack=None, config=self.config
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over all fields; training continues under the same plan only."""
        record = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "config": dict(self.config)
        }
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

    def twin(self, model: ModelPlan) -> ModelPlan | None:
        """Return the clean twin of `model` in this plan, or None."""
        return next((other for other in self.models if other.is_twin_of(model)), None)


def read_plan(path: Path) -> Plan:
    """Read a plan file: ``name``, a table ``[defaults]``, and one ``[[model]]`` table per model.

    Raises:
        ConfigError: not TOML, an unknown or missing field, a value of the wrong type or out of
            range, an id that occurs twice, or an attacked model without its clean twin.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as err:
        raise ConfigError(f"expected a plan in TOML at {str(path)!r}, found {err}") from err
    unknown = sorted(set(document) - {"name", "defaults", "model"})
    if unknown:
        raise ConfigError(f"a plan has name, defaults and model, found also {unknown!r}")
    defaults, tables = document.get("defaults", {}), document.get("model", [])
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not tables:
        raise ConfigError("a plan needs a table 'defaults' and at least one table [[model]]")
    models = tuple(build_config(ModelPlan, {**defaults, **table}) for table in tables)
    ids = [model.id for model in models]
    repeated = sorted({id_ for id_ in ids if ids.count(id_) > 1})
    if repeated:
        raise ConfigError(f"model ids must be unique, found {repeated!r} more than once")
    plan = Plan(name=str(document.get("name", path.stem)), models=models)
    for model in models:
        if model.attack is not None and plan.twin(model) is None:
            raise ConfigError(
                f"model {model.id!r} needs a clean twin of the same architecture, width, seed and "
                "schedule in the plan, add one"
            )
    return plan


def build_config(config_type: type[T], values: Mapping[str, object]) -> T:
    """Make a dataclass from a table, checking names and types.

    Args:
        config_type: a dataclass of plain, optional or literal types, tuples and mappings.
        values: field name to value; an int is taken for a float.

    Raises:
        ConfigError: an unknown or missing field, or a value of the wrong type.
    """
    hints = get_type_hints(config_type, localns={"Mapping": Mapping})
    names = [f.name for f in fields(config_type)]  # type: ignore[arg-type]  # by contract
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(f"{config_type.__name__} has fields {names!r}, found also {unknown!r}")
    arguments = {name: _typed(name, value, hints[name]) for name, value in values.items()}
    try:
        return config_type(**arguments)
    except TypeError as err:
        raise ConfigError(f"{config_type.__name__} cannot be made: {err}") from err


def _typed(name: str, value: object, hint: object) -> object:
    if get_origin(hint) is Mapping:
        if isinstance(value, dict):
            return MappingProxyType(value)
        raise ConfigError(f"{name} must be a table, got {value!r}")
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(value)
        raise ConfigError(f"{name} must be a list, got {value!r}")
    allowed = get_args(hint) or (hint,)
    if any(isinstance(choice, str) for choice in allowed):
        return value  # a Literal: the config's own check names the choices
    if type(value) in allowed:
        return value
    if type(value) is int and float in allowed:
        return float(value)
    raise ConfigError(f"{name} must be of type {getattr(hint, '__name__', hint)}, got {value!r}")
