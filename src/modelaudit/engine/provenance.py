"""What a repaired file says of itself: written after a repair, read before a scan.

The record is for those who want to know, not for proof: anybody can write one and anybody can
remove it. So it may keep a model from `clean`, and neither accuses nor clears one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.results import Obstacle, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.checkpoint import RepairClaim
    from modelaudit.repair_results import RepairAttempt, RepairReport

_CLAIMED = "MA-V513"
_DIGITS = 12


def record_of(
    report: RepairReport, steps: Sequence[RepairAttempt], earlier: RepairClaim | None
) -> dict[str, object]:
    """Return what the written file says of itself, with every repair of this run in order.

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
        "rescan": verdict and _rescan(verdict.verdict, verdict.reason_code),
        "earlier": None
        if earlier is None
        else {
            "method": earlier.method,
            "input_sha256": earlier.input_sha256,
            "rescan": _rescan(earlier.verdict, earlier.reason_code),
            "trained_against": list(earlier.trained_against),
        },
        "versions": dict(report.versions),
    }


def repair_notes(claim: RepairClaim | None) -> tuple[str, ...]:
    """Return what a reader should know of a file that says it was repaired."""
    if claim is None:
        return ()
    note = (
        f"{_said(claim)}. Anybody can write that: what is found here counts, unless you hold a "
        "report of that repair whose `written` has this file's SHA-256. It compares both models; "
        "statistics that a repair keeps may still hold traces of before, which mbns then finds"
    )
    if claim.trained_against:
        against = ", ".join(claim.trained_against)
        note += f". It was trained against what {against} looks for, whose silence shows little"
    return (note,)


def repair_obstacles(claim: RepairClaim | None) -> tuple[Obstacle, ...]:
    """Return why a repaired file must not be called clean: its repair could not say so either."""
    if claim is None or claim.verdict in {None, Verdict.CLEAN}:
        return ()
    return (
        Obstacle(
            reason_code=_CLAIMED,
            reason=f"{_said(claim)}: this scan, which has not seen the model before the repair, "
            "cannot clear what that one could not",
            next_step="read the repair's report, or repair the original by another method or with "
            "more clean images",
        ),
    )


def of_the_model(obstacles: Sequence[Obstacle]) -> tuple[Obstacle, ...]:
    """Return the obstacles without what a file says of itself: those of a model made from it."""
    return tuple(o for o in obstacles if o.reason_code != _CLAIMED)


def _rescan(verdict: Verdict | None, code: str) -> dict[str, object] | None:
    return None if verdict is None else {"verdict": str(verdict), "reason_code": code}


def _said(claim: RepairClaim) -> str:
    end = "and does not say how the re-scan ended"
    if claim.verdict is not None:
        end = f"with a re-scan that was {claim.verdict} ({claim.reason_code})"
    return (
        f"the file says that modelaudit repaired it by {claim.method!r}, from a file of SHA-256 "
        f"{claim.input_sha256[:_DIGITS]}..., {end}"
    )
