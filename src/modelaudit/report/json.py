"""The report as JSON; its schema is ``docs/schema/report-1.json``.

Every path of the command line that prints JSON prints this document, failures included, so that a
pipeline reads one shape. There are no timestamps and no NaN: same seed, same document once
`without_seconds` has removed the times.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit import __version__
from modelaudit.errors import ConfigError
from modelaudit.report import words
from modelaudit.results import (
    SCHEMA_VERSION,
    Cost,
    FailedScan,
    Finding,
    Obstacle,
    Pattern,
    ScannerResult,
    SkippedScan,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.results import Json, ScanOutcome, ScanReport

#: Keys whose values are wall times, at any depth.
_TIMES = frozenset({"seconds", "stage_seconds"})

_OUTCOMES: dict[str, type[ScanOutcome]] = {
    "result": ScannerResult,
    "skipped": SkippedScan,
    "failed": FailedScan,
}


def to_document(report: ScanReport) -> dict[str, Json]:
    """Return the report as plain JSON values, in the published order of keys.

    Args:
        report: any report, also one of a scan that failed.

    Returns:
        Keys as in ``docs/schema/report-1.json``. Numbers that are not finite become null; strings
        carry no control characters and no bidirectional marks.
    """
    record = report.verdict
    names: list[Json] = [words.class_name(report, label) for label in record.target_labels]
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "modelaudit", "version": __version__},
        "verdict": record.verdict,
        "exit_code": report.exit_status,
        "reason": {"code": record.reason_code, "message": record.reason},
        "pattern": record.pattern,
        "target_labels": record.target_labels,
        "target_names": names,
        "next_step": record.next_step,
        "suspect": report.suspect,
        "clean_set": report.clean_set,
        "scanners": report.scanners,
        "skipped": report.skipped,
        "failed": report.failed,
        "calibration": report.calibration,
        "false_positive_rate": report.false_positive_rate,
        "combined": report.combined,
        "adjusted_p_values": report.adjusted_p_values,
        "alpha": report.alpha,
        "cost": {**fields_of(report.cost), "stage_seconds": report.stage_seconds},
        "budget_seconds": report.budget_seconds,
        "device": report.device,
        "versions": report.versions,
        "seed": report.seed,
        "static": {"findings": report.static_findings},
        "load": report.load,
        "limits": report.limits,
        "notes": report.notes,
    }
    return {key: plain(value) for key, value in document.items()}


def dumps(report: ScanReport) -> str:
    """Return the document as indented ASCII text with a final newline."""
    return json.dumps(to_document(report), indent=2, allow_nan=False) + "\n"


def without_seconds(document: Json) -> Json:
    """Return the document without wall times: two runs of one seed agree in what is left.

    Args:
        document: what `to_document` returned, or a part of it.

    Returns:
        A copy without any key called ``seconds`` or ``stage_seconds``.
    """
    if isinstance(document, dict):
        return {k: without_seconds(v) for k, v in document.items() if k not in _TIMES}
    if isinstance(document, list):
        return [without_seconds(value) for value in document]
    return document


def outcome_record(outcome: ScanOutcome) -> dict[str, Json]:
    """Return one scanner's outcome as plain JSON values.

    Args:
        outcome: a result, a skip or a failure.

    Returns:
        ``outcome`` (``"result"``, ``"skipped"`` or ``"failed"``) and ``result``, the record as it
        stands in the report.
    """
    kind = next(name for name, cls in _OUTCOMES.items() if isinstance(outcome, cls))
    return {"outcome": kind, "result": plain(outcome)}


def outcome_from_record(row: Mapping[str, Json]) -> ScanOutcome:
    """Return the outcome of which `outcome_record` made a record; the inverse of it.

    Args:
        row: ``outcome`` and ``result``; other keys, also those of the record that this version does
            not know, are passed over.

    Returns:
        A result, a skip or a failure. Escapes in strings stay; a null among the numbers per class
        was not finite and becomes NaN.

    Raises:
        ConfigError: this is no such record.
    """
    cls = _OUTCOMES.get(str(row.get("outcome")))
    record = row.get("result")
    if cls is None or not isinstance(record, dict):
        raise ConfigError(
            f"expected an outcome ({', '.join(_OUTCOMES)}) with its record, "
            f"got {row.get('outcome')!r} with {type(record).__name__}"
        )
    known = {f.name for f in dataclasses.fields(cls)}
    try:
        values = {k: _READERS.get(k, _frozen)(v) for k, v in record.items() if k in known}
        return cls(**values)  # type: ignore[arg-type]  # raises where a field is missing
    except (TypeError, ValueError) as err:
        raise ConfigError(f"expected the record of a scanner, found {err!r}") from err


def obstacles_from_record(value: Json) -> tuple[Obstacle, ...]:
    """Return the obstacles to ``clean`` of which `plain` made records; none of null.

    Raises:
        ConfigError: these are no such records.
    """
    if not isinstance(value, list | tuple | None):
        raise ConfigError(f"expected a list of obstacles, got {value!r}")
    return tuple(map(_obstacle, value or ()))


def _obstacle(value: Json) -> Obstacle:
    names = [f.name for f in dataclasses.fields(Obstacle)]
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in names):
        raise ConfigError(f"expected an obstacle with {', '.join(names)}, got {value!r}")
    return Obstacle(**{name: str(value[name]) for name in names})


def _number(value: Json) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _share(value: Json) -> float:
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"expected a number from 0 to 1, got {value!r}")
    return number


def _whole(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _items(value: Json) -> list[Json]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {value!r}")
    return list(value)


def _cost(value: Json) -> Cost:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r}")
    return Cost(**value)  # type: ignore[arg-type]  # raises where a field is not known


#: How the fields of a result are read that do not stand in JSON as they stand in the record.
_READERS: dict[str, Callable[[Json], object]] = {
    "finding": lambda value: Finding(str(value)),
    "pattern": lambda value: None if value is None else Pattern(str(value)),
    "target_labels": lambda value: tuple(map(_whole, _items(value))),
    "score": _number,
    "threshold": _number,
    "p_value": _number,
    "false_positive_rate": _number,
    "per_class": lambda value: tuple(
        math.nan if (number := _number(item)) is None else number for item in _items(value)
    ),
    "class_p_values": lambda value: tuple(map(_share, _items(value))),
    "cost": _cost,
}


def _frozen(value: Json) -> object:
    """Return lists as tuples and objects as read-only mappings, as records hold them."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return MappingProxyType({k: _frozen(v) for k, v in value.items()})
    return value


def fields_of(value: object) -> dict[str, object]:
    """Return the fields of a record by name, their values as they are."""
    assert dataclasses.is_dataclass(value)
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def plain(value: object) -> Json:
    """Turn one value of a report into JSON's types."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return words.sentence(str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {words.sentence(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {k: plain(v) for k, v in fields_of(value).items()}
    raise TypeError(f"a report holds plain values only, got {type(value).__name__}")
