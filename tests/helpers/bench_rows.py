"""Rows of `bench scan` and `bench repair` as a test needs them, built from a few words."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from modelaudit.report.json import outcome_record
from modelaudit.results import Cost, Finding, Pattern, ScannerResult, SkippedScan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: family and sight of the scanners that the rows speak of
_SCANNERS = {
    "ban": ("parameter_noise", False),
    "mbns": ("bn_statistics", True),
    "mm_bd": ("margin", False),
}


def result(
    id_: str,
    score: float | None,
    finding: str = "none",
    *,
    named: Sequence[int] = (),
    pattern: str | None = None,
    is_confirmed: bool = False,
    cost: tuple[int, int, float] = (10, 20, 2.0),
    version: str = "1",
    config_set: Sequence[str] = (),
) -> ScannerResult:
    """Return a scanner's result."""
    family, sees = _SCANNERS[id_.partition("@")[0]]
    return ScannerResult(
        id=id_,
        version=version,
        family=family,
        finding=Finding(finding),
        sees_all_to_all=sees,
        score=score,
        threshold=1.0,
        target_labels=tuple(named),
        pattern=None if pattern is None else Pattern(pattern),
        is_confirmed=is_confirmed,
        is_calibrated="@" not in id_,
        cost=Cost(forward=cost[0], forward_backward=cost[1], seconds=cost[2]),
        config_set=tuple(config_set),
    )


def skipped(id_: str) -> SkippedScan:
    """Return a scanner that had nothing to look at."""
    return SkippedScan(id=id_, reason="needs BatchNorm", is_declared_need=True)


def facts(
    id_: str,
    *,
    attack: str | None = None,
    label_map: str = "one",
    target: int | None = None,
    population: str = "B",
    dataset: str = "cifar10",
    architecture: str = "cifar_resnet18",
    gate: bool | None = True,
    acc: float = 0.80,
    asr: float = 0.99,
) -> dict[str, Any]:
    """Return the parts ``model`` and ``truth`` of a row."""
    is_attacked = attack is not None
    return {
        "model": {
            "id": id_,
            "plan": "test",
            "population": population,
            "dataset": dataset,
            "architecture": architecture,
            "width": 16,
            "classes": 10,
            "input_size": 32,
        },
        "truth": {
            "attack": attack,
            "label_map": label_map if is_attacked else None,
            "target": target,
            "victim": None,
            "acc": acc,
            "twin_acc": 0.81 if is_attacked else None,
            "asr": asr if is_attacked else None,
            "benign_asr": 0.02 if is_attacked else None,
            "gate_passed": gate if is_attacked else None,
        },
    }


def scan_rows(
    about: Mapping[str, Any],
    outcomes: Sequence[ScannerResult | SkippedScan],
    *,
    images: int = 500,
    degradation: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return one row per outcome."""
    digest = hashlib.sha256(about["model"]["id"].encode()).hexdigest()
    rows = []
    for outcome in outcomes:
        scanner, _, variant = outcome.id.partition("@")
        changed = outcome.config_set if isinstance(outcome, ScannerResult) else ()
        rows.append(
            {
                "key": {
                    "checkpoint_sha256": digest,
                    "scanner": scanner,
                    "variant": variant or None,
                    "config_sha256": f"config of {scanner} {variant} {changed}",
                    "seed": seed,
                    "clean_set_sha256": f"{about['model']['dataset']} {images} {degradation}",
                },
                **about,
                "clean_set": {"name": "held_out", "images": images, "degradation": degradation},
                "obstacles": [],
                "obstacles_to_clean": [],
                **outcome_record(outcome),
                "hardware": {"cpu": "some processor", "threads": 1, "device": "cpu"},
                "versions": {},
            }
        )
    return rows


def repair_row(
    about: Mapping[str, Any],
    method: str,
    *,
    acc: tuple[float, float],
    asr: tuple[float | None, float | None] = (None, None),
    variant: str | None = None,
    images: int = 500,
    **ended: object,
) -> dict[str, Any]:
    """Return one row of a repair that was done, unless `ended` says otherwise."""
    return {
        "kind": "repair",
        **about,
        "method": method,
        "variant": variant,
        "acc_before": acc[0],
        "acc_after": acc[1],
        "asr_before": asr[0],
        "asr_after": asr[1],
        "images": images,
        "seconds": 3.0,
        "passes": {"forward": 100, "forward_backward": 50},
        "pruned": 7,
        "outcome": "done",
        "reason": "",
        "failure": None,
        "is_within_budget": True,
        **ended,
    }


def stand_in(after: float, *, before: float = 0.9, kind: str = "stand_in") -> dict[str, Any]:
    """Return an effect whose lower bound in the suspect is a tenth below its share there."""
    return {
        "kind": kind,
        "share_before": before,
        "interval_before": [before - 0.1, 1.0],
        "share_after": after,
    }


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines and return the path."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def found(target: int, *, ban: float = 5.0, mbns: float = 50.0) -> list[ScannerResult]:
    """Return the outcomes of a model whose backdoor two scanners see."""
    return [
        result("ban", ban, "strong", named=[target], is_confirmed=True),
        result("mbns", mbns, "strong", named=[target]),
    ]


def nothing(*, ban: float = 0.1, mbns: float = 2.0) -> list[ScannerResult]:
    """Return the outcomes of a model on which nothing is found."""
    return [result("ban", ban), result("mbns", mbns)]
