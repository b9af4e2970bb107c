"""The report of a repair as JSON; its schema is ``docs/schema/repair-1.json``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from modelaudit import __version__
from modelaudit.errors import ConfigError
from modelaudit.repair_results import REPAIR_SCHEMA_VERSION, PriorScan, ScanSummary
from modelaudit.report.json import fields_of, outcome_from_record, plain
from modelaudit.results import (
    FailedScan,
    Pattern,
    ScannerResult,
    SkippedScan,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from modelaudit.repair_results import RepairAttempt, RepairReport
    from modelaudit.results import Json


def to_repair_document(report: RepairReport) -> dict[str, Json]:
    """Return the report as plain JSON values, in the published order of keys.

    Args:
        report: any report, also one of a repair that failed.

    Returns:
        Keys as in ``docs/schema/repair-1.json``; values cleaned as in a scan's report.
    """
    document = {
        "schema_version": REPAIR_SCHEMA_VERSION,
        "tool": {"name": "modelaudit", "version": __version__},
        "outcome": report.outcome,
        "exit_code": report.exit_status,
        "reason": {"code": report.reason_code, "message": report.reason},
        "next_step": report.next_step,
        "method": report.method,
        "suspect": report.suspect,
        "clean_set": report.clean_set,
        "repair_images": report.repair_images,
        "proof_images": report.proof_images,
        "before": _summary(report.before),
        "is_before_reused": report.is_before_reused,
        "attempts": [_attempt(attempt) for attempt in report.attempts],
        "written": report.written,
        "max_accuracy_drop": report.max_accuracy_drop,
        "cost": {**fields_of(report.cost), "stage_seconds": report.stage_seconds},
        "device": report.device,
        "versions": report.versions,
        "seed": report.seed,
        "notes": report.notes,
    }
    return {key: plain(value) for key, value in document.items()}


def dump_repair(report: RepairReport) -> str:
    """Return the document as indented ASCII text with a final newline."""
    return json.dumps(to_repair_document(report), indent=2, allow_nan=False) + "\n"


def prior_scan(document: Json) -> PriorScan:
    """Return what a repair needs of a scan's JSON report.

    Args:
        document: parsed JSON of ``modelaudit scan --format json``.

    Raises:
        ConfigError: it is no report of a scan that came to a verdict.
    """
    expected = "a report of modelaudit scan --format json that came to a verdict"
    if not isinstance(document, dict):
        raise ConfigError(f"expected {expected}, found {type(document).__name__}")
    try:
        verdict = Verdict(str(document["verdict"]))
        reason = document["reason"]
        suspect, clean_set = document["suspect"], document["clean_set"]
        key = document["load"]["state_dict_key"]  # type: ignore[index, call-overload]
        pattern = document["pattern"]
        outcomes = [
            outcome_from_record({"outcome": kind, "result": record})
            for group, kind in (
                ("scanners", "result"),
                ("skipped", "skipped"),
                ("failed", "failed"),
            )
            for record in document[group]  # type: ignore[union-attr]  # KeyError or TypeError below
        ]
        summary = ScanSummary(
            verdict=VerdictRecord(
                verdict=verdict,
                reason_code=str(reason["code"]),  # type: ignore[index, call-overload]
                reason=str(reason["message"]),  # type: ignore[index, call-overload]
                pattern=None if pattern is None else Pattern(str(pattern)),
                target_labels=tuple(int(t) for t in document["target_labels"]),  # type: ignore[union-attr, arg-type]
                next_step=str(document["next_step"]),
            ),
            scanners=tuple(o for o in outcomes if isinstance(o, ScannerResult)),
            skipped=tuple(o for o in outcomes if isinstance(o, SkippedScan)),
            failed=tuple(o for o in outcomes if isinstance(o, FailedScan)),
        )
        hashes = str(suspect["sha256"]), str(clean_set["sha256"])  # type: ignore[index, call-overload]
    except (KeyError, TypeError, ValueError) as err:
        raise ConfigError(f"expected {expected}, found one with {err!r} missing or wrong") from err
    if verdict not in (Verdict.CLEAN, Verdict.BACKDOORED, Verdict.INCONCLUSIVE):
        raise ConfigError(f"expected {expected}, found the verdict {verdict.value!r}; scan again")
    return PriorScan(
        checkpoint_sha256=hashes[0],
        clean_set_sha256=hashes[1],
        state_dict_key=None if key is None else str(key),
        summary=summary,
    )


def _attempt(attempt: RepairAttempt) -> dict[str, object]:
    return {
        **fields_of(attempt),
        "pruned": [{"layer": name, "channels": channels} for name, channels in attempt.pruned],
        "pruned_neurons": attempt.pruned_neurons,
        "after": _summary(attempt.after),
        "verdict": None if attempt.verdict is None else _judged(attempt.verdict),
    }


def _summary(summary: ScanSummary | None) -> dict[str, object] | None:
    if summary is None:
        return None
    return {
        **_judged(summary.verdict),
        "scanners": summary.scanners,
        "skipped": summary.skipped,
        "failed": summary.failed,
        "cost": summary.cost,
    }


def _judged(record: VerdictRecord) -> dict[str, object]:
    return {
        "verdict": record.verdict,
        "reason": {"code": record.reason_code, "message": record.reason},
        "pattern": record.pattern,
        "target_labels": record.target_labels,
    }
