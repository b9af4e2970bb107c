"""One scanned model as calibration sees it, also read from rows of ``modelaudit bench scan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.calibration.circumstances import Circumstances
from modelaudit.errors import ConfigError
from modelaudit.report.json import (
    obstacles_from_record,
    outcome_from_record,
    outcome_record,
    plain,
)
from modelaudit.results import SkippedScan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelaudit.results import Json, Obstacle, ScanOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedModel:
    """A model of which the truth is known, and what the scanners said.

    Attributes:
        id: the model's name.
        circumstances: of the scan.
        outcomes: one per scanner, in their default form.
        dataset: what it was trained on; empty where unknown.
        attack: the attack's id; None for a clean model.
        label_map: how the attack maps labels, such as ``"one"`` or ``"all"``.
        target: the attack's target label, if it has a single one.
        gate_passed: whether the attack works as it should; None for clean models.
        obstacles: why no verdict may rest on this clean set.
        obstacles_to_clean: why the verdict must not be ``clean``.
        clean_set: name of the clean set.
        checkpoint_sha256: digest of the file.
        clean_set_sha256: digest of the clean set.
        seed: of the scan.
        hardware: what the scan ran on.
        versions: of Python and packages.
    """

    id: str
    circumstances: Circumstances
    outcomes: tuple[ScanOutcome, ...]
    dataset: str = ""
    attack: str | None = None
    label_map: str | None = None
    target: int | None = None
    gate_passed: bool | None = None
    obstacles: tuple[str, ...] = ()
    obstacles_to_clean: tuple[Obstacle, ...] = ()
    clean_set: str = ""
    checkpoint_sha256: str = ""
    clean_set_sha256: str = ""
    seed: int = 0
    hardware: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def models_of(
    rows: Iterable[Mapping[str, Json]], *, population: str | None = None
) -> tuple[ScannedModel, ...]:
    """Return one model per (checkpoint, clean set, seed) of the rows of ``bench scan``.

    Whether there is BatchNorm is told by ``model.has_batchnorm`` where a row has it, else by
    scanners that were skipped for lack of it; images are labelled unless
    ``clean_set.has_labels`` is false.

    Rows of variants and of degraded clean sets are passed over: a population is made of scans as a
    user runs them.

    Args:
        rows: parsed lines of the JSON Lines file.
        population: only models of this population of the plan, such as ``"A"``; None for all.

    Returns:
        The models in the order of their first rows.

    Raises:
        ConfigError: a row lacks what is needed, with the number of the row.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Json]]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            key = _part(row, "key")
            if key["variant"] is not None or _part(row, "clean_set")["degradation"] is not None:
                continue
            if population is not None and _part(row, "model")["population"] != population:
                continue
            outcome_from_record(row)
            _strings(row.get("obstacles"))
            obstacles_from_record(row.get("obstacles_to_clean"))
            name = (key["checkpoint_sha256"], key["clean_set_sha256"], key["seed"])
            groups.setdefault((str(name[0]), str(name[1]), str(name[2])), []).append(row)
        except ConfigError as err:
            raise ConfigError(f"{_place(number)}: {err}") from err
        except (KeyError, TypeError, ValueError) as err:
            raise ConfigError(f"{_place(number)}: {type(err).__name__}: {err}") from err
    return tuple(_model(group) for group in groups.values())


def rows_of(model: ScannedModel) -> list[dict[str, Json]]:
    """Return a model as rows that `models_of` reads back, one per outcome."""
    seen = model.circumstances
    common: dict[str, Json] = {
        "model": {
            "id": model.id,
            "population": None,
            "dataset": model.dataset,
            "architecture": seen.architecture,
            "classes": seen.classes,
            "input_size": seen.input_size,
            "has_batchnorm": seen.has_batchnorm,
        },
        "truth": {
            "attack": model.attack,
            "label_map": model.label_map,
            "target": model.target,
            "gate_passed": model.gate_passed,
        },
        "clean_set": {
            "name": model.clean_set,
            "images": seen.images,
            "degradation": None,
            "has_labels": seen.has_labels,
        },
        "obstacles": list(model.obstacles),
        "obstacles_to_clean": [plain(o) for o in model.obstacles_to_clean],
        "hardware": {"cpu": model.hardware},
        "versions": dict(model.versions),
    }
    rows = []
    for outcome in model.outcomes:
        key: dict[str, Json] = {
            "checkpoint_sha256": model.checkpoint_sha256,
            "scanner": outcome.id,
            "variant": None,
            "seed": model.seed,
            "clean_set_sha256": model.clean_set_sha256,
        }
        rows.append({"key": key, **common, **outcome_record(outcome)})
    return rows


def _place(number: int) -> str:
    return f"row {number} is no row of `modelaudit bench scan`"


def _part(row: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    value = row[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name!r} is no object")
    return value


def _model(rows: list[Mapping[str, Json]]) -> ScannedModel:
    first = rows[0]
    model, truth, clean_set = (_part(first, name) for name in ("model", "truth", "clean_set"))
    outcomes = {outcome.id: outcome for outcome in map(outcome_from_record, rows)}
    hardware, versions = first.get("hardware"), first.get("versions")
    return ScannedModel(
        id=str(model["id"]),
        circumstances=Circumstances(
            architecture=str(model["architecture"]),
            images=_whole(clean_set["images"]),
            input_size=_whole(model["input_size"]),
            classes=_whole(model["classes"]),
            has_batchnorm=bool(model.get("has_batchnorm", _has_batchnorm(outcomes.values()))),
            has_labels=bool(clean_set.get("has_labels", True)),
        ),
        outcomes=tuple(outcomes.values()),
        dataset=str(model["dataset"]),
        attack=None if truth["attack"] is None else str(truth["attack"]),
        label_map=None if truth.get("label_map") is None else str(truth["label_map"]),
        target=None if truth.get("target") is None else _whole(truth["target"]),
        gate_passed=None if truth.get("gate_passed") is None else bool(truth["gate_passed"]),
        obstacles=_strings(first.get("obstacles")),
        obstacles_to_clean=obstacles_from_record(first.get("obstacles_to_clean")),
        clean_set=str(clean_set["name"]),
        checkpoint_sha256=str(_part(first, "key")["checkpoint_sha256"]),
        clean_set_sha256=str(_part(first, "key")["clean_set_sha256"]),
        seed=_whole(_part(first, "key")["seed"]),
        hardware=_hardware(hardware) if isinstance(hardware, dict) else "",
        versions={str(k): str(v) for k, v in versions.items()}
        if isinstance(versions, dict)
        else {},
    )


def _has_batchnorm(outcomes: Iterable[ScanOutcome]) -> bool:
    """Tell from what the scanners said: those that need BatchNorm say so when it is missing."""
    return not any(
        isinstance(outcome, SkippedScan)
        and outcome.is_declared_need
        and outcome.reason.startswith("needs BatchNorm")
        for outcome in outcomes
    )


def _strings(value: Json) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {value!r}")
    return tuple(map(str, value))


def _whole(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _hardware(record: Mapping[str, Json]) -> str:
    return ", ".join(str(record[key]) for key in ("cpu", "device") if record.get(key))
