"""What a file has beside the weights that are scanned: a record of a repair, other weights.

The record is written after a repair and read before a scan. It is for those who want to know, not
for proof: anybody can write one and anybody can remove it. So it may keep a model from `clean`, and
neither accuses nor clears one. Other weights of the network were not scanned, and may be what is
loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit import __version__
from modelaudit.results import Obstacle, Verdict
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.checkpoint import Checkpoint, RepairClaim
    from modelaudit.repair_results import RepairAttempt, RepairReport

_CLAIMED = "MA-V513"
_OTHER_WEIGHTS = "MA-V514"
_DIGITS = 12
_MAX_KEY = 60
_MAX_KEYS = 4


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
        "versions": {"modelaudit": __version__, **report.versions},
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
    """Return the obstacles without those of a file: of a model that was made from it."""
    return tuple(o for o in obstacles if o.reason_code not in {_CLAIMED, _OTHER_WEIGHTS})


def other_weights_notes(read: Checkpoint, *, is_chosen: bool) -> tuple[str, ...]:
    """Return what a reader should know who has said which weights of a file count."""
    if not is_chosen or not read.other_weights:
        return ()
    return (f"{_beside(read)}; scan these too if anything loads them",)


def other_weights_obstacles(read: Checkpoint, *, is_chosen: bool) -> tuple[Obstacle, ...]:
    """Return why a file with other weights must not be called clean.

    Args:
        read: the file.
        is_chosen: whether the user has said which of them count.
    """
    if is_chosen or not read.other_weights:
        return ()
    return (
        Obstacle(
            reason_code=_OTHER_WEIGHTS,
            reason=f"{_beside(read)}, and what loads the file may take these",
            next_step="say with --weights which of them you load",
        ),
    )


def _beside(read: Checkpoint) -> str:
    shown = ", ".join(escape_untrusted(key, _MAX_KEY) for key in read.other_weights[:_MAX_KEYS])
    more = len(read.other_weights) - _MAX_KEYS
    own = escape_untrusted(read.state_dict_key or "its outermost container", _MAX_KEY)
    return (
        f"beside the weights that were scanned ({own}) the file holds others "
        f"({shown}{f' and {more} more' if more > 0 else ''})"
    )


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
