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
from typing import TYPE_CHECKING

from modelaudit import __version__
from modelaudit.report import words
from modelaudit.results import SCHEMA_VERSION

if TYPE_CHECKING:
    from modelaudit.results import Json, ScanReport

#: Keys whose values are wall times, at any depth.
_TIMES = frozenset({"seconds", "stage_seconds"})


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
        "alpha": report.alpha,
        "cost": {**_fields(report.cost), "stage_seconds": report.stage_seconds},
        "budget_seconds": report.budget_seconds,
        "device": report.device,
        "versions": report.versions,
        "seed": report.seed,
        "static": {"findings": report.static_findings},
        "load": report.load,
        "limits": report.limits,
        "notes": report.notes,
    }
    return {key: _plain(value) for key, value in document.items()}


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


def _fields(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _plain(value: object) -> Json:
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
        return {words.sentence(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {k: _plain(v) for k, v in _fields(value).items()}
    raise TypeError(f"a report holds plain values only, got {type(value).__name__}")
