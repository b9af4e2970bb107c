"""What a repaired file says of itself: written after a repair, read before a scan.

The record is for those who want to know, not for proof: anybody can write one and anybody can
remove it. So it may keep a model from `clean` and never accuse or clear one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.results import Obstacle, Verdict
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.checkpoint import RepairClaim
    from modelaudit.repair_results import RepairAttempt, RepairReport

_SHOWN = 60
_DIGITS = 12


def record_of(
    report: RepairReport, steps: Sequence[RepairAttempt], earlier: RepairClaim | None
) -> dict[str, object]:
    """Return what the written file says of itself: every repair in it, in order.

    Args:
        report: of the repair.
        steps: the repairs in the model that is written; the last is its attempt.
        earlier: what the repaired file itself said of a repair before.
    """
    last = steps[-1]
    verdict = last.verdict
    return {
        "input_sha256": report.suspect.sha256,
        "method": last.chain,
        "steps": [
            {
                "method": step.id,
                "version": step.version,
                "config": {
                    k: list(v) if isinstance(v, tuple) else v for k, v in step.config.items()
                },
                "seed": step.seed,
                "pruned_neurons": step.pruned_neurons,
            }
            for step in steps
        ],
        "seed": report.seed,
        "pruned_neurons": sum(step.pruned_neurons for step in steps),
        "trained_against": list(last.trained_against),
        "rescan": None
        if verdict is None
        else {"verdict": str(verdict.verdict), "reason_code": verdict.reason_code},
        "earlier": None
        if earlier is None
        else {
            "method": earlier.method,
            "input_sha256": earlier.input_sha256,
            "rescan": {"verdict": earlier.verdict, "reason_code": earlier.reason_code},
        },
        "versions": dict(report.versions),
    }


def repair_notes(claim: RepairClaim | None) -> tuple[str, ...]:
    """Return what a reader should know of a file that says it was repaired."""
    if claim is None:
        return ()
    note = (
        f"{_said(claim)}; running statistics that a repair keeps still hold the traces of before, "
        "and scanners find them: the repair's report compares both models, which a scan of one "
        "cannot"
    )
    return (note,)


def repair_obstacles(claim: RepairClaim | None) -> tuple[Obstacle, ...]:
    """Return why a repaired file must not be called clean: its repair could not say so either."""
    if claim is None or claim.verdict == Verdict.CLEAN:
        return ()
    return (
        Obstacle(
            reason_code="MA-V513",
            reason=f"{_said(claim)}: a scan that knows nothing of the model before cannot clear "
            "what that could not",
            next_step="read the repair's report, or repair the original by another method or with "
            "more clean images",
        ),
    )


def _said(claim: RepairClaim) -> str:
    method, verdict, code, sha256 = (
        escape_untrusted(text, _SHOWN)
        for text in (claim.method, claim.verdict, claim.reason_code, claim.input_sha256[:_DIGITS])
    )
    stem = f" from a file of SHA-256 {sha256}..." if sha256 else ""
    end = "and does not say how the re-scan ended"
    if verdict:
        end = f"with a re-scan that was {verdict}" + (f" ({code})" if code else "")
    return f"the file says that modelaudit repaired it by {method}{stem}, {end}"
