"""Turns scanner results into one verdict, by the rule of docs/verdict.md.

- ``backdoored``: one strong finding, and another scanner family is at least suspicious of the same
  target; or the strong finding was confirmed on held-out clean images with its controls; or a
  matched reference population says that the other families' scores support it; or another family,
  asked of the label that it names and of no other, finds that one out of line.
- ``clean``: every requested scanner ran or was skipped for a declared need, one that sees
  all-to-all backdoors ran, none is strong, at most one is suspicious and that one is not confirmed,
  and a matched population does not find the combined score too high.
- ``inconclusive``: everything else. ``no_power`` neither clears nor accuses; an uncalibrated
  plug-in, variant or changed setting is shown and never moves the verdict, nor does its absence.

Where no population matches, none of this makes ``backdoored`` but confirmation
(docs/adr/0009-combined-score.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.results import (
    ExitStatus,
    FailedScan,
    Finding,
    Match,
    Pattern,
    ScannerResult,
    SkippedScan,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.results import CombinedScore, Obstacle, ScanOutcome

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
_OTHER_IMAGES = (
    "scan again with more clean images, or with 500 others, of the kind that the model was "
    "trained on"
)
#: How often other families together may by chance find a label out of line that they did not choose
#: (docs/adr/0026-a-named-label.md).
_NAMED_LEVEL = 0.05


def agrees(first: ScannerResult, second: ScannerResult) -> bool:
    """Whether two scanners of different families accuse the same target, or both say all-to-all."""
    if first.family == second.family:
        return False
    if first.pattern is Pattern.ALL_TO_ALL and second.pattern is Pattern.ALL_TO_ALL:
        return True
    return bool(set(first.target_labels) & set(second.target_labels))


def backing(first: ScannerResult, others: Sequence[ScannerResult]) -> tuple[ScannerResult, ...]:
    """Return which results of other families find the one label that `first` names out of line.

    The level is divided by the number of families that can say; two of one family count as one.
    What its own controls refute, and an all-to-all finding, names no label to ask of.
    """
    is_named = len(first.target_labels) == 1 and first.pattern is not Pattern.ALL_TO_ALL
    if not is_named or first.is_refuted:
        return ()
    (target,) = first.target_labels
    asked = [
        other
        for other in others
        if other.family != first.family
        and other.finding is not Finding.NO_POWER
        and other.class_p_values
    ]
    level = _NAMED_LEVEL / max(1, len({o.family for o in asked}))
    return tuple(o for o in asked if o.class_p_values[target] <= level)


def decide(
    outcomes: Sequence[ScanOutcome],
    *,
    obstacles: Sequence[str] = (),
    obstacles_to_clean: Sequence[Obstacle] = (),
    combined: CombinedScore | None = None,
) -> VerdictRecord:
    """Return the verdict that `outcomes` allow.

    Args:
        outcomes: one per requested scanner.
        obstacles: reasons in words why nothing may be concluded from this clean set.
        obstacles_to_clean: reasons why the verdict must not be ``clean``.
        combined: what the reference populations say. None asks for the scanners' own rule, without
            any population: agreement and p-values of a named label count, nothing is combined.

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
    agreeing = {r.id: [other for other in accusing if agrees(r, other)] for r in strong}
    is_matched = combined is None or combined.match is Match.MATCHED
    # Beside a population that does not match, what agrees must also be confirmed.
    for first in strong:
        if agreeing[first.id] and (is_matched or first.is_confirmed):
            witnesses = [first, *agreeing[first.id]]
            return _backdoored(first, witnesses, "MA-V101", strong)
    for first in strong:
        if first.is_confirmed:
            return _backdoored(first, [first], "MA-V102", strong)
    for first in strong:
        if combined is not None and first.id in combined.supported:
            return _backdoored(first, [first], "MA-V103", strong)
    backed = {r.id: backing(r, voting) for r in strong}
    for first in strong:
        if backed[first.id] and is_matched:
            return _backdoored(first, [first, *backed[first.id]], "MA-V105", strong)
    shared = [r.id for r in strong if agreeing[r.id] or backed[r.id]]
    capped = [] if is_matched else shared
    return _not_backdoored(outcomes, voting, strong, accusing, obstacles_to_clean, combined, capped)


def _backdoored(
    first: ScannerResult,
    witnesses: list[ScannerResult],
    code: str,
    strong: list[ScannerResult],
) -> VerdictRecord:
    shared: set[int] = set(first.target_labels)
    for other in witnesses[1:]:
        shared = shared & set(other.target_labels) or shared
    pattern = first.pattern
    if pattern is None and code == "MA-V105":
        # Whoever is asked of one label says nothing of how many there are.
        pattern = Pattern.ALL_TO_ONE
    if pattern is None:
        pattern = next((w.pattern for w in witnesses if w.pattern is not None), None)
    names = ", ".join(w.id for w in witnesses)
    others = ", ".join(w.id for w in witnesses[1:])
    reason = {
        "MA-V101": f"{first.id} is strong and agrees with {others}",
        "MA-V102": f"{first.id} is strong and confirmed on held-out clean images with its controls",
        "MA-V103": f"{first.id} is strong and the combined score of the other families is higher "
        "than that of clean models",
        "MA-V105": f"{first.id} is strong and names {_outputs(first.target_labels)}, which is out "
        f"of line for {_p_values(first, witnesses[1:])} too, asked of it alone",
    }[code]
    score = (
        f" (score {first.score:.3g}, threshold {first.threshold:.3g})"
        if first.score and first.threshold
        else ""
    )
    return VerdictRecord(
        verdict=Verdict.BACKDOORED,
        reason_code=code,
        reason=reason + score + _named_otherwise(shared, strong),
        pattern=pattern,
        target_labels=tuple(sorted(shared)),
        next_step=f"keep the model out of the registry; evidence: {names}",
    )


def _p_values(first: ScannerResult, witnesses: Sequence[ScannerResult]) -> str:
    target = next(iter(first.target_labels), 0)
    return " and ".join(
        f"{w.id} (p = {w.class_p_values[target]:.2g})" for w in witnesses if w.class_p_values
    )


def _named_otherwise(targets: set[int], strong: list[ScannerResult]) -> str:
    """Return what is said of strong findings that accuse as well, and of other labels."""
    said = [
        f"{other.id} is strong too and names {_outputs(other.target_labels)} instead: one of "
        "these labels is wrong, or there are two backdoors"
        for other in sorted(strong, key=lambda result: result.id)
        if targets and other.target_labels
        if not targets & set(other.target_labels)
    ]
    return "".join(f"; {sentence}" for sentence in said)


def _outputs(labels: Sequence[int]) -> str:
    numbers = ", ".join(map(str, labels))
    return f"output {numbers}" if len(labels) == 1 else f"outputs {numbers}"


def _not_backdoored(
    outcomes: Sequence[ScanOutcome],
    voting: list[ScannerResult],
    strong: list[ScannerResult],
    accusing: list[ScannerResult],
    obstacles_to_clean: Sequence[Obstacle],
    combined: CombinedScore | None,
    capped: Sequence[str],
) -> VerdictRecord:
    reasons: list[tuple[str, str, str]] = []
    if capped:
        reasons.append(
            (
                "MA-V508",
                (
                    f"{', '.join(capped)}: strong and shared by another family, but not confirmed, "
                    f"and no reference population matches: {combined.reason if combined else ''}"
                ),
                (
                    f"{_OTHER_IMAGES}, so that it can be confirmed, or build a population of "
                    "known-clean models with `modelaudit calibrate`"
                ),
            )
        )
    elif strong:
        names = ", ".join(r.id for r in strong)
        reasons.append(
            (
                "MA-V502",
                f"strong finding of {names} that no other family shares and that was not confirmed",
                f"{_OTHER_IMAGES}, so that it can be confirmed or cleared",
            )
        )
    elif len(accusing) > 1:
        names = ", ".join(r.id for r in accusing)
        reasons.append(
            (
                "MA-V503",
                f"{names} are suspicious, none of them strong",
                _OTHER_IMAGES,
            )
        )
    elif accusing and accusing[0].is_confirmed:
        reasons.append(
            (
                "MA-V511",
                (
                    f"{accusing[0].id} is suspicious, alone, but what it found was confirmed on "
                    "held-out clean images with its controls"
                ),
                _OTHER_IMAGES,
            )
        )
    if combined is not None and combined.is_suspicious and not strong:
        reasons.append(
            (
                "MA-V509",
                (
                    f"the combined score {combined.score:.3g} is higher than clean models of "
                    f"{combined.population} have ({combined.suspicious:.3g})"
                ),
                _OTHER_IMAGES,
            )
        )
    # What has no vote does not take one away either by failing.
    failed = [o.id for o in outcomes if isinstance(o, FailedScan) and o.is_calibrated]
    if failed:
        reasons.append(
            (
                "MA-V504",
                f"{', '.join(failed)} failed",
                "see the failure in the report; run with --debug",
            )
        )
    unran = [
        o.id
        for o in outcomes
        if isinstance(o, SkippedScan) and not o.is_declared_need and o.is_calibrated
    ]
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
                (
                    "run mbns with its default settings, or without BatchNorm statistics dde with "
                    "a --mixture"
                ),
            )
        )
    reasons.extend((o.reason_code, o.reason, o.next_step) for o in obstacles_to_clean)
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
