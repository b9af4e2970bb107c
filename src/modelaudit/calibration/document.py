"""Reference populations as JSON: written for people to review, read with every field checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, NoReturn

from modelaudit.calibration._fields import Fields
from modelaudit.calibration.build import full_thresholds
from modelaudit.calibration.circumstances import (
    CLASS_BUCKETS,
    IMAGE_BUCKETS,
    INPUT_BUCKETS,
    Bucket,
)
from modelaudit.calibration.population import (
    DIGITS,
    MeasuredRates,
    ModelStatistics,
    Population,
    ScannerReference,
)
from modelaudit.calibration.transforms import Transform
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelaudit.results import Json

#: First field of every file, and the version of its form.
FORMAT = "modelaudit-calibration"
VERSION = 1
#: A population of a thousand models is well below a megabyte.
MAX_BYTES = 50_000_000
#: Digits that survive in a file; a threshold may differ from its recomputed value by rounding.
_TOLERANCE = 1e-6


def dumps(populations: Sequence[Population]) -> str:
    """Return populations as indented ASCII JSON with a final newline; the same ones, same bytes."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "populations": [_record(population) for population in populations],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_populations(path: Path) -> tuple[Population, ...]:
    """Read a file of reference populations.

    Raises:
        ConfigError: the file cannot be read or is no such file, with the place and the reason.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise ConfigError(f"calibration {str(path)!r} cannot be read: {err.strerror}") from err
    return loads(data, name=str(path))


@lru_cache(maxsize=1)
def shipped_populations() -> tuple[Population, ...]:
    """Return the populations that come with this package, in the order of their files' names."""
    folder = resources.files("modelaudit.calibration") / "populations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return tuple(p for file in files for p in loads(file.read_bytes(), name=file.name))


def loads(data: bytes, *, name: str) -> tuple[Population, ...]:
    """Parse a file of reference populations.

    Args:
        data: its bytes; untrusted.
        name: how messages call it.

    Raises:
        ConfigError: anything is missing, unknown, of another type, not finite or contradictory.
    """
    where = f"calibration {name!r}"
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_BYTES:,} bytes, no population is")
    try:
        document = json.loads(
            data.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"{where} is no valid JSON: {err}") from err
    fields = Fields.of(document, where)
    if fields.text("format") != FORMAT:
        raise ConfigError(f"{where} is no file of `modelaudit calibrate`: format is not {FORMAT!r}")
    version = fields.whole("version")
    if version != VERSION:
        raise ConfigError(
            f"{where} has version {version}, this modelaudit reads version {VERSION}; "
            "build it again with `modelaudit calibrate`"
        )
    populations = tuple(_population(item) for item in fields.objects("populations"))
    fields.finish()
    ids = [population.id for population in populations]
    if not ids:
        raise ConfigError(f"{where} holds no population")
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{where} holds two populations of one id")
    return populations


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {constant}")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _record(value: object) -> Json:
    """Return a record as JSON; fields keep their names and order."""
    if dataclasses.is_dataclass(value):
        return {f.name: _record(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _record(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_record(item) for item in value]
    if isinstance(value, float):
        return round(value, DIGITS)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a population holds plain values only, got {type(value).__name__}")


def _population(fields: Fields) -> Population:
    rates = fields.optional_object("rates")
    population = Population(
        id=fields.text("id"),
        families=fields.texts("families"),
        bucket=_bucket(fields.object("bucket")),
        scanners=tuple(_scanner(item) for item in fields.objects("scanners")),
        models=tuple(_model(item) for item in fields.objects("models")),
        suspicious_level=fields.number("suspicious_level"),
        strong_level=fields.number("strong_level"),
        suspicious=fields.number("suspicious"),
        strong=fields.number("strong"),
        rates=None if rates is None else _rates(rates),
        clean_sets=fields.texts("clean_sets"),
        hardware=fields.texts("hardware"),
        versions={key: _text(fields, key, value) for key, value in fields.mapping("versions")},
        notes=fields.texts("notes"),
    )
    fields.finish()
    if not population.id or not population.families:
        raise ConfigError(f"{fields.where}: expected an id and at least one architecture family")
    stated = population.suspicious, population.strong
    for name, wanted, found in zip(
        ("suspicious", "strong"), full_thresholds(population), stated, strict=True
    ):
        if abs(wanted - found) > _TOLERANCE * max(1.0, wanted):
            raise ConfigError(
                f"{fields.where}: {name} is {found!r}, but its own models give {wanted!r}; the "
                "file was changed by hand or cut"
            )
    return population


def _bucket(fields: Fields) -> Bucket:
    bucket = Bucket(
        images=fields.whole("images"),
        input_size=fields.whole("input_size"),
        classes=fields.whole("classes"),
        has_batchnorm=fields.flag("has_batchnorm"),
        has_labels=fields.flag("has_labels"),
    )
    fields.finish()
    for name, value, allowed in (
        ("images", bucket.images, IMAGE_BUCKETS),
        ("input_size", bucket.input_size, (*INPUT_BUCKETS, 0)),
        ("classes", bucket.classes, CLASS_BUCKETS),
    ):
        if value not in allowed:
            shown = ", ".join(map(str, allowed))
            raise ConfigError(f"{fields.where}.{name}: expected one of {shown}, got {value!r}")
    return bucket


def _scanner(fields: Fields) -> ScannerReference:
    name = fields.text("transform")
    scanner = ScannerReference(
        id=fields.text("id"),
        version=fields.text("version"),
        family=fields.text("family"),
        config_sha256=fields.text("config_sha256"),
        transform=Transform(name) if name in set(Transform) else _unknown(fields, name),
    )
    fields.finish()
    return scanner


def _unknown(fields: Fields, name: str) -> NoReturn:
    raise ConfigError(
        f"{fields.where}.transform: expected one of {', '.join(Transform)}, got {name!r}"
    )


def _model(fields: Fields) -> ModelStatistics:
    model = ModelStatistics(
        id=fields.text("id"),
        architecture=fields.text("architecture"),
        dataset=fields.text("dataset"),
        classes=fields.whole("classes"),
        input_size=fields.whole("input_size"),
        images=fields.whole("images"),
        attack=fields.optional_text("attack"),
        statistics={
            key: None if value is None else fields.as_number(f"statistics.{key}", value)
            for key, value in fields.mapping("statistics")
        },
    )
    fields.finish()
    return model


def _rates(fields: Fields) -> MeasuredRates:
    rates = MeasuredRates(
        source=fields.text("source"),
        clean=fields.whole("clean"),
        false_alarms=fields.whole("false_alarms"),
        undecided=fields.whole("undecided"),
        attacked=fields.whole("attacked"),
        detected=fields.whole("detected"),
    )
    fields.finish()
    return rates


def _text(fields: Fields, key: str, value: Json) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{fields.where}.versions.{key}: expected text, got {value!r}")
    return value
