"""Turns scanner results into one verdict, by the rule of docs/verdict.md.

- ``backdoored``: one strong finding and another scanner family at least suspicious on the same
target, or one
  strong finding confirmed on held-out clean images with its controls.
- ``clean``: every requested scanner ran or was skipped for a declared need, one that sees
all-to-all backdoors
  ran, none is strong, at most one is suspicious.
- ``inconclusive``: everything else. ``no_power`` neither clears nor accuses; an uncalibrated
plug-in, variant or
  changed setting is shown and never moves the verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.results import (
    ExitStatus,
    FailedScan,
    Finding,
    Pattern,
    ScannerResult,
    SkippedScan,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.results import ScanOutcome

EXIT_STATUS = {
    Verdict.CLEAN: ExitStatus.CLEAN,
    Verdict.BACKDOORED: ExitStatus.BACKDOORED,
    Verdict.USAGE: ExitStatus.USAGE,
    Verdict.REFUSED: ExitStatus.REFUSED,
    Verdict.UNREADABLE: ExitStatus.UNREADABLE,
    Verdict.INCONCLUSIVE: ExitStatus.INCONCLUSIVE,
    Verdict.ERROR: ExitStatus.BUG,
    Verdict.INTERRUPTED: ExitStatus.INTERRUPTED,
}

_ACCUSING = frozenset({Finding.SUSPICIOUS, Finding.STRONG})


def agrees(first: ScannerResult, second: ScannerResult) -> bool:
    """Whether two scanners of different families accuse the same target, or both say all-to-all."""
    if first.family == second.family:
        return False
    if first.pattern is Pattern.ALL_TO_ALL and second.pattern is Pattern.ALL_TO_ALL:
        return True
    return bool(set(first.target_labels) & set(second.target_labels))


def decide(
    outcomes: Sequence[ScanOutcome],
    *,
    obstacles: Sequence[str] = (),
    obstacles_to_clean: Sequence[str] = (),
) -> VerdictRecord:
    """Return the verdict that `outcomes` allow.

    Args:
        outcomes: one per requested scanner.
        obstacles: reasons in words why nothing may be concluded from this clean set.
        obstacles_to_clean: reasons why the verdict must not be ``clean``.

    Returns:
        The verdict with the rule that applied and what to do next.
    """
    if obstacles:
        return VerdictRecord(
            verdict=Verdict.INCONCLUSIVE,
            reason_code="MA-V501",
            reason="; ".join(obstacles),
            next_step="give a clean set that meets this, then scan again",
        )
    results = [o for o in outcomes if isinstance(o, ScannerResult)]
    voting = [r for r in results if r.is_calibrated]
    strong = [r for r in voting if r.finding is Finding.STRONG]
    accusing = [r for r in voting if r.finding in _ACCUSING]
    for first in strong:
        allies = [second for second in accusing if agrees(first, second)]
        if allies:
            return _backdoored(first, [first, *allies], "MA-V101")
    for first in strong:
        if first.is_confirmed:
            return _backdoored(first, [first], "MA-V102")
    return _not_backdoored(outcomes, voting, strong, accusing, obstacles_to_clean)


def _backdoored(first: ScannerResult, witnesses: list[ScannerResult], code: str) -> VerdictRecord:
    shared: set[int] = set(first.target_labels)
    for other in witnesses[1:]:
        shared = shared & set(other.target_labels) or shared
    pattern = first.pattern
    if pattern is None:
        pattern = next((w.pattern for w in witnesses if w.pattern is not None), None)
    names = ", ".join(w.id for w in witnesses)
    reason = (
        f"{first.id} is strong and agrees with {', '.join(w.id for w in witnesses[1:])}"
        if code == "MA-V101"
        else f"{first.id} is strong and confirmed on held-out clean images with its controls"
    )
    score = (
        f" (score {first.score:.3g}, threshold {first.threshold:.3g})"
        if first.score and first.threshold
        else ""
    )
    return VerdictRecord(
        verdict=Verdict.BACKDOORED,
        reason_code=code,
        reason=reason + score,
        pattern=pattern,
        target_labels=tuple(sorted(shared)),
        next_step=f"keep the model out of the registry; evidence: {names}",
    )


def _not_backdoored(
    outcomes: Sequence[ScanOutcome],
    voting: list[ScannerResult],
    strong: list[ScannerResult],
    accusing: list[ScannerResult],
    obstacles_to_clean: Sequence[str],
) -> VerdictRecord:
    reasons: list[tuple[str, str, str]] = []
    if strong:
        names = ", ".join(r.id for r in strong)
        reasons.append(
            (
                "MA-V502",
                f"strong finding of {names} that no other family shares and that was not confirmed",
                "scan again with 500 clean images or more so that it can be confirmed or cleared",
            )
        )
    elif len(accusing) > 1:
        names = ", ".join(r.id for r in accusing)
        reasons.append(
            (
                "MA-V503",
                f"{names} are suspicious, none of them strong",
                "scan again with more clean images (500 or more)",
            )
        )
    failed = [o.id for o in outcomes if isinstance(o, FailedScan)]
    if failed:
        reasons.append(
            (
                "MA-V504",
                f"{', '.join(failed)} failed",
                "see the failure in the report; run with --debug",
            )
        )
    unran = [o.id for o in outcomes if isinstance(o, SkippedScan) and not o.is_declared_need]
    if unran:
        reasons.append(
            (
                "MA-V505",
                f"{', '.join(unran)} did not run",
                "raise --budget so that every scanner runs",
            )
        )
    if not any(r.sees_all_to_all and r.finding is not Finding.NO_POWER for r in voting):
        reasons.append(
            (
                "MA-V506",
                "no scanner that sees all-to-all backdoors could judge this model",
                "run mbns with its default settings; without BatchNorm statistics it stays open",
            )
        )
    reasons.extend(
        ("MA-V507", obstacle, "give what is missing, then scan again")
        for obstacle in obstacles_to_clean
    )
    if reasons:
        return VerdictRecord(
            verdict=Verdict.INCONCLUSIVE,
            reason_code=reasons[0][0],
            reason="; ".join(text for _, text, _ in reasons),
            next_step=reasons[0][2],
        )
    ran = ", ".join(r.id for r in voting if r.finding is not Finding.NO_POWER)
    shown = f"; {accusing[0].id} is suspicious, alone" if accusing else ""
    return VerdictRecord(
        verdict=Verdict.CLEAN,
        reason_code="MA-V001",
        reason=f"no strong finding by {ran}{shown}",
        next_step="a clean report is evidence, not proof: see docs/security-model.md",
    )
