"""Reads the JSON Lines that `bench scan` and `bench repair` write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from modelaudit.bench.plan import POPULATIONS
from modelaudit.bench.tables.rows import CleanSetFacts, ModelFacts, RepairRow, ScanRow, Truth
from modelaudit.engine.effects import WORKS_FROM
from modelaudit.errors import ConfigError
from modelaudit.report.json import obstacles_from_record, outcome_from_record
from modelaudit.results import ScannerResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

T = TypeVar("T")


def read_rows(paths: Iterable[Path]) -> tuple[tuple[ScanRow, ...], tuple[RepairRow, ...]]:
    """Read JSON Lines files; a row that occurs twice counts once, with the shorter time.

    Returns:
        Scans and repairs, sorted, so that the order of files and lines is no matter.

    Raises:
        ConfigError: a file cannot be read, a line is no row, two rows of one key disagree, or two
            versions of a scanner are mixed.
    """
    scans: dict[tuple[str, ...], tuple[ScanRow, object]] = {}
    repairs: dict[tuple[str, ...], RepairRow] = {}
    for path in paths:
        for where, record in _records(path):
            if record.get("kind") == "repair":
                repair = _repair(record, where)
                key = (repair.model.id, repair.name, str(repair.images))
                if key in repairs and _facts(repairs[key]) != _facts(repair):
                    raise ConfigError(
                        f"{repairs[key].where} and {where} repair {repair.model.id!r} by "
                        f"{repair.name!r} with different results; give one of them"
                    )
                if key not in repairs or repair.seconds < repairs[key].seconds:
                    repairs[key] = repair
                continue
            row = _scan(record, where)
            measured = _without_times(record.get("result"))
            if row.key in scans and scans[row.key][1] != measured:
                raise ConfigError(
                    f"{scans[row.key][0].where} and {where} have one key and different results; "
                    "give one of them"
                )
            if row.key not in scans or _seconds(row) < _seconds(scans[row.key][0]):
                scans[row.key] = (row, measured)
    rows = tuple(scans[key][0] for key in sorted(scans))
    _check_versions(rows)
    return rows, tuple(repairs[key] for key in sorted(repairs))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's place and object; a last line that is still being written is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as err:
        raise ConfigError(f"expected JSON Lines in {str(path)!r}, found {err}") from err
    for number, line in enumerate(lines, start=1):
        where = f"line {number} of {str(path)!r}"
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as err:
            if not line.endswith("\n"):
                return
            raise ConfigError(f"expected a JSON object in {where}, found {err}") from err
        if record is None:
            continue
        if not isinstance(record, dict):
            raise ConfigError(f"expected a JSON object in {where}, found {type(record).__name__}")
        yield where, record


def _scan(record: Mapping[str, Any], where: str) -> ScanRow:
    key = _get(record, "key", dict, where)
    images = _get(record, "clean_set", dict, where)
    hardware = record.get("hardware") or {}
    try:
        outcome = outcome_from_record(record)
        obstacles = obstacles_from_record(record.get("obstacles_to_clean"))
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err
    return ScanRow(
        checkpoint_sha256=_get(key, "checkpoint_sha256", str, where),
        scanner=_get(key, "scanner", str, where),
        variant=key.get("variant"),
        config_sha256=_get(key, "config_sha256", str, where),
        seed=_get(key, "seed", int, where),
        model=_model(record, where),
        truth=_truth(record, where),
        clean_set=CleanSetFacts(
            sha256=_get(key, "clean_set_sha256", str, where),
            name=_get(images, "name", str, where),
            images=_get(images, "images", int, where),
            degradation=images.get("degradation"),
        ),
        obstacles=tuple(record.get("obstacles") or ()),
        obstacles_to_clean=obstacles,
        outcome=outcome,
        hardware=(
            f"{hardware.get('cpu', 'unknown processor')}, device {hardware.get('device', 'cpu')}, "
            f"threads {hardware.get('threads', 'unknown')}"
        ),
        record=record,
        where=where,
    )


def _repair(record: Mapping[str, Any], where: str) -> RepairRow:
    passes, pruned = record.get("passes") or 0, record.get("pruned") or 0
    if isinstance(passes, dict):
        passes = sum(passes.get(name, 0) for name in ("forward", "forward_backward"))
    return RepairRow(
        model=_model(record, where),
        truth=_truth(record, where),
        method=_get(record, "method", str, where),
        variant=record.get("variant"),
        acc_before=_get(record, "acc_before", float, where),
        acc_after=_get(record, "acc_after", float, where),
        asr_before=record.get("asr_before"),
        asr_after=record.get("asr_after"),
        ra_before=record.get("ra_before"),
        ra_after=record.get("ra_after"),
        images=_get(record, "images", int, where),
        seconds=_get(record, "seconds", float, where),
        passes=int(passes),
        pruned=len(pruned) if isinstance(pruned, list) else int(pruned),
        outcome=_get(record, "outcome", str, where),
        reason=str(record.get("failure") or record.get("reason") or ""),
        is_within_budget=record.get("is_within_budget"),
        shown=_shown(record, where),
        where=where,
    )


def _shown(record: Mapping[str, Any], where: str) -> float | None:
    """Return what stand-ins lead after a repair; of `auto`, after the attempt that was written.

    Those count that led most of the suspect's images, as `modelaudit.engine.effects.is_powerful`
    has it.
    """
    effects = record.get("effects") or ()
    try:
        for attempt in record.get("attempts") or ():
            if attempt.get("id") == record.get("chosen"):
                effects = attempt.get("effects") or ()
        shares = [
            float(effect["share_after"])
            for effect in effects
            if effect.get("kind") == "stand_in" and effect["interval_before"][0] > WORKS_FROM
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as err:
        raise ConfigError(
            f"expected effects of a repair in {where}, found others: {err!r}"
        ) from err
    return max(shares, default=None)


def _model(record: Mapping[str, Any], where: str) -> ModelFacts:
    model = _get(record, "model", dict, where)
    population = _get(model, "population", str, where)
    if population not in POPULATIONS:
        raise ConfigError(
            f"expected 'population' to be one of {POPULATIONS!r} in {where}, found {population!r}"
        )
    return ModelFacts(
        id=_get(model, "id", str, where),
        population=population,
        dataset=_get(model, "dataset", str, where),
        architecture=_get(model, "architecture", str, where),
        width=_get(model, "width", int, where),
        classes=_get(model, "classes", int, where),
    )


def _truth(record: Mapping[str, Any], where: str) -> Truth:
    truth = _get(record, "truth", dict, where)
    return Truth(
        attack=truth.get("attack"),
        label_map=truth.get("label_map"),
        target=truth.get("target"),
        acc=_get(truth, "acc", float, where),
        twin_acc=truth.get("twin_acc"),
        asr=truth.get("asr"),
        benign_asr=truth.get("benign_asr"),
        gate_passed=truth.get("gate_passed"),
    )


def _get(record: Mapping[str, Any], name: str, kind: type[T], where: str) -> T:
    value = record.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"expected {name!r} of type {kind.__name__} in {where}, found {value!r}")
    return value


def _seconds(row: ScanRow) -> float:
    return row.outcome.cost.seconds if isinstance(row.outcome, ScannerResult) else 0.0


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k != "seconds"}
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return value


def _facts(row: RepairRow) -> tuple[object, ...]:
    rates = (row.acc_before, row.acc_after, row.asr_before, row.asr_after)
    return (
        *rates,
        row.ra_before,
        row.ra_after,
        row.pruned,
        row.outcome,
        row.is_within_budget,
        row.shown,
    )


def _check_versions(rows: tuple[ScanRow, ...]) -> None:
    """Refuse to average two versions of a method.

    Raises:
        ConfigError: results of two versions of one scanner.
    """
    seen: dict[str, ScanRow] = {}
    for row in rows:
        if not isinstance(row.outcome, ScannerResult):
            continue
        other = seen.setdefault(row.detector, row)
        assert isinstance(other.outcome, ScannerResult)
        if other.outcome.version != row.outcome.version:
            raise ConfigError(
                f"{other.where} is of {row.detector} version {other.outcome.version}, {row.where} "
                f"of version {row.outcome.version}; scan again or leave the older rows out"
            )
