"""Builds scanners and repairs from ids and settings, and lists what is registered."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from modelaudit.config import fields, replace_from_text
from modelaudit.errors import ConfigError, PluginError
from modelaudit.registry import Registry
from modelaudit.repairs import Repair
from modelaudit.scanners.base import Scanner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.registry import Entry
    from modelaudit.results import Json


_LOG = logging.getLogger(__name__)

#: What a component has to say of itself.
_DECLARED: dict[type, tuple[str, ...]] = {
    Scanner: ("id", "version", "family", "summary", "reference", "config_type"),
    Repair: ("id", "version", "summary", "reference", "config_type"),
}
_NAMES: dict[type, str] = {
    Scanner: "modelaudit.scanners.Scanner",
    Repair: "modelaudit.repairs.Repair",
}

T = TypeVar("T", Scanner[Any], Repair[Any])


def build_scanners(
    ids: Sequence[str],
    settings: Sequence[tuple[str, str, str]],
    *,
    registry: Registry | None = None,
) -> list[Scanner[Any]]:
    """Return configured scanners.

    Args:
        ids: ids, with ``@variant`` where wanted; empty means every registered scanner's default.
        settings: (scanner id, field, text); an id without variant applies to all its variants.
        registry: the installed scanners if omitted.

    Raises:
        ConfigError: unknown id, variant, field or value; a scanner asked for twice; a setting for a
            scanner that does not run.
        PluginError: a scanner that was asked for cannot be imported or is none.
    """
    registry = registry or Registry("scanners")
    if not ids:
        classes: list[tuple[str, type[Scanner[Any]], str | None]] = [
            (entry.id, cls, None) for entry, cls in _usable(registry, Scanner)
        ]
    else:
        duplicates = sorted({i for i in ids if list(ids).count(i) > 1})
        if duplicates:
            raise ConfigError(f"scanner {duplicates[0]!r} is asked for twice; name it once")
        classes = [_resolve(full_id, registry, Scanner) for full_id in ids]
    known = {full_id for full_id, _, _ in classes} | {f.split("@")[0] for f, _, _ in classes}
    for owner, field, _ in settings:
        if owner not in known:
            raise ConfigError(
                f"--set {owner}.{field}: no scanner {owner!r} runs, these do: "
                f"{', '.join(sorted(known))}"
            )
    built = []
    for full_id, cls, variant in classes:
        raw = {f: v for owner, f, v in settings if owner in {full_id, full_id.split("@")[0]}}
        config = replace_from_text(cls.config_type(), raw, owner=full_id)
        built.append(cls(config, variant=variant, config_set=tuple(raw)))
    return built


def build_repair(
    full_id: str,
    settings: Sequence[tuple[str, str, str]],
    *,
    registry: Registry | None = None,
) -> Repair[Any]:
    """Return one configured repair.

    Args:
        full_id: id, with ``@variant`` where wanted.
        settings: (repair id, field, text); all must be of this repair.
        registry: the installed repairs if omitted.

    Raises:
        ConfigError: unknown id, variant, field or value; a setting of another repair.
        PluginError: the repair cannot be imported or is none.
    """
    _, cls, variant = _resolve(full_id, registry or Registry("repairs"), Repair)
    for owner, field, _ in settings:
        if owner not in {full_id, full_id.partition("@")[0]}:
            raise ConfigError(f"--set {owner}.{field}: the repair that runs is {full_id!r}")
    raw = {field: value for _, field, value in settings}
    config = replace_from_text(cls.config_type(), raw, owner=full_id)
    return cls(config, variant=variant, config_set=tuple(raw))


def _as_component(cls: type, entry: Entry, base: type[T]) -> type[T]:
    name, kind = f"{entry.id!r} of {entry.distribution!r}", base.__name__.lower()
    if not issubclass(cls, base):
        raise PluginError(f"{name} is no {kind}: it must subclass {_NAMES[base]}")
    missing = [attribute for attribute in _DECLARED[base] if not hasattr(cls, attribute)]
    if missing:
        raise PluginError(f"{name} is no {kind}: it must declare {', '.join(missing)}")
    if inspect.isabstract(cls):
        methods = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{name} is no {kind}: it must write {methods}")
    return cls


def _usable(registry: Registry, base: type[T]) -> list[tuple[Entry, type[T]]]:
    """Return every registered component that keeps the contract; the others are warned about."""
    found = []
    for entry, cls in registry.load_all():
        try:
            found.append((entry, _as_component(cls, entry, base)))
        except PluginError as err:
            _LOG.warning("plug-in left out: %s", err)
    return found


def _resolve(full_id: str, registry: Registry, base: type[T]) -> tuple[str, type[T], str | None]:
    id_, at, variant = full_id.partition("@")
    cls = _as_component(registry.load(id_), registry.entry(id_), base)
    if not at:
        return full_id, cls, None
    if variant not in cls.variants:
        raise ConfigError(
            f"{base.__name__.lower()} {id_!r} has no variant {variant!r}, it has "
            f"{', '.join(sorted(cls.variants)) or 'none'}"
        )
    return full_id, cls.variants[variant], variant


def list_components() -> dict[str, list[dict[str, Json]]]:
    """Return what is registered: scanners, repairs and attacks, each as records for JSON."""
    scanners: list[tuple[Entry, type]] = [*_usable(Registry("scanners"), Scanner)]
    repairs: list[tuple[Entry, type]] = [*_usable(Registry("repairs"), Repair)]
    return {
        "scanners": [_describe(entry, cls) for entry, cls in scanners],
        "repairs": [_describe(entry, cls) for entry, cls in repairs],
        "attacks": [_describe(entry, cls) for entry, cls in Registry("attacks").load_all()],
    }


def _describe(entry: Entry, cls: type) -> dict[str, Json]:
    record: dict[str, Json] = {
        "id": entry.id,
        "summary": str(getattr(cls, "summary", "")),
        "reference": str(getattr(cls, "reference", "")),
        "distribution": entry.distribution,
    }
    record["needs"] = {}
    if issubclass(cls, Scanner):
        record["family"] = cls.family
        record["sees_all_to_all"] = cls.sees_all_to_all
        record["needs"] = {
            "gradients": cls.requires_gradients,
            "batchnorm": cls.requires_batchnorm,
            "labels": cls.requires_labels,
            "split": cls.requires_split,
            "min_images": cls.min_images,
            "min_classes": cls.min_classes,
        }
    elif issubclass(cls, Repair):
        record["is_training"] = cls.is_training
        record["needs"] = {
            "gradients": cls.requires_gradients,
            "batchnorm": cls.requires_batchnorm,
            "labels": cls.requires_labels,
            "mixture": cls.requires_mixture,
            "min_images": cls.min_images,
        }
    if issubclass(cls, Scanner | Repair):
        record["version"] = cls.version
        record["variants"] = [*sorted(cls.variants)]
    config_type = getattr(cls, "config_type", None)
    if not (isinstance(config_type, type) and dataclasses.is_dataclass(config_type)):
        record["fields"] = []
        return record
    defaults = fields(config_type())
    record["fields"] = [
        {"name": f.name, "type": str(f.type), "default": defaults[f.name]}
        for f in dataclasses.fields(config_type)
    ]
    return record
