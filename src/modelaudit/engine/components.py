"""Builds scanners from ids and settings, and lists what is registered."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any

from modelaudit.config import fields, replace_from_text
from modelaudit.errors import ConfigError, PluginError
from modelaudit.registry import Registry
from modelaudit.scanners.base import Scanner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.registry import Entry
    from modelaudit.results import Json


_LOG = logging.getLogger(__name__)

#: What a scanner has to say of itself.
_DECLARED = ("id", "version", "family", "summary", "reference", "config_type")


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
            (entry.id, cls, None) for entry, cls in _usable(registry)
        ]
    else:
        duplicates = sorted({i for i in ids if list(ids).count(i) > 1})
        if duplicates:
            raise ConfigError(f"scanner {duplicates[0]!r} is asked for twice; name it once")
        classes = [_resolve(full_id, registry) for full_id in ids]
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


def _as_scanner(cls: type, entry: Entry) -> type[Scanner[Any]]:
    name = f"{entry.id!r} of {entry.distribution!r}"
    if not issubclass(cls, Scanner):
        raise PluginError(f"{name} is no scanner: it must subclass modelaudit.scanners.Scanner")
    missing = [attribute for attribute in _DECLARED if not hasattr(cls, attribute)]
    if missing:
        raise PluginError(f"{name} is no scanner: it must declare {', '.join(missing)}")
    if inspect.isabstract(cls):
        methods = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{name} is no scanner: it must write {methods}")
    return cls


def _usable(registry: Registry) -> list[tuple[Entry, type[Scanner[Any]]]]:
    """Return every registered scanner that keeps the contract; the others are warned about."""
    found = []
    for entry, cls in registry.load_all():
        try:
            found.append((entry, _as_scanner(cls, entry)))
        except PluginError as err:
            _LOG.warning("plug-in left out: %s", err)
    return found


def _resolve(full_id: str, registry: Registry) -> tuple[str, type[Scanner[Any]], str | None]:
    id_, at, variant = full_id.partition("@")
    cls = _as_scanner(registry.load(id_), registry.entry(id_))
    if not at:
        return full_id, cls, None
    if variant not in cls.variants:
        raise ConfigError(
            f"scanner {id_!r} has no variant {variant!r}, it has "
            f"{', '.join(sorted(cls.variants)) or 'none'}"
        )
    return full_id, cls.variants[variant], variant


def list_components() -> dict[str, list[dict[str, Json]]]:
    """Return what is registered: scanners, repairs and attacks, each as records for JSON."""
    usable: list[tuple[Entry, type]] = [*_usable(Registry("scanners"))]
    listing = {"scanners": [_describe(entry, cls) for entry, cls in usable]}
    for group in ("repairs", "attacks"):
        listing[group] = [_describe(entry, cls) for entry, cls in Registry(group).load_all()]
    return listing


def _describe(entry: Entry, cls: type) -> dict[str, Json]:
    record: dict[str, Json] = {
        "id": entry.id,
        "summary": str(getattr(cls, "summary", "")),
        "reference": str(getattr(cls, "reference", "")),
        "distribution": entry.distribution,
    }
    if issubclass(cls, Scanner):
        record["family"] = cls.family
        record["version"] = cls.version
        record["sees_all_to_all"] = cls.sees_all_to_all
        record["needs"] = {
            "gradients": cls.requires_gradients,
            "batchnorm": cls.requires_batchnorm,
            "labels": cls.requires_labels,
            "split": cls.requires_split,
            "min_images": cls.min_images,
            "min_classes": cls.min_classes,
        }
        record["variants"] = [*sorted(cls.variants)]
    else:
        record["needs"] = {}
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
