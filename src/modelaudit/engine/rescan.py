"""What a re-scan means for a model that was repaired.

A repair that leaves the running statistics as they were leaves the traces of the backdoor in them.
`mbns` finds these again, and rightly so: they say how the model was trained, not what it still
does; noise on neurons follows them too. A scanner does not learn about repairs; here, where both
scans are known, its finding after the repair is read as *traces that lead nowhere*
(docs/adr/0010-re-scan-after-a-repair.md, 0013-a-witness-after-repair.md), if every running mean and
variance is bit for bit the suspect's, the same scanner accused the suspect, and

- stand-ins for the trigger, which lead most of the suspect's images to where this finding pointed,
  lead at most a tenth of the repaired model's there beyond what goes there anyway, and it points
  nowhere else now, unless by channels without a trace in the suspect, which lead there in it too,
  while those with one do not (docs/adr/0025-traces-of-the-repair.md), or weights that were trained
  have drifted off the statistics and its own controls disprove it; or,
- where no stand-in leads the suspect's images: the score is no larger than the suspect's, the
  finding names no target and no all-to-all pattern, and confirms nothing; its flagged channels,
  pushed, lead at most a tenth of the held-out images further than controls, nor does anything else
  that either scan has found.

A repair that trains moves statistics toward those of clean images, and what is left of the traces
stays where it was. Where stand-ins lead nowhere any more, a finding of statistics that points to
nothing but what they were searched for, and is less loud than it was, is read in the same way
(docs/adr/0023-faded-traces.md). Noise on neurons is not: it is judged by statistics of its own.

Whatever else the re-scan says counts as ever. What leads somewhere keeps the model from being
called clean even where no scanner accuses it any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from modelaudit import calibration
from modelaudit.engine.effects import (
    NOISE_FAMILY,
    STATISTICS_FAMILY,
    deciding,
    is_disproved,
    is_powerful,
    leads_nowhere,
    still_works,
)
from modelaudit.engine.scan import circumstances, populations
from modelaudit.functional.shares import NO_ARROW
from modelaudit.results import Finding, Pattern, Verdict, VerdictRecord
from modelaudit.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import ScanRequest
    from modelaudit.repair_results import Effect, ScanSummary
    from modelaudit.results import ScannerResult, ScanOutcome

#: Goes up with what a re-scan means, for the rows of `bench repair`; those before there was a
#: number are of ADR 0023 and earlier.
RESCAN_VERSION = "3"

_ACCUSING = frozenset({Finding.SUSPICIOUS, Finding.STRONG})


def explained_traces(
    before: ScanSummary,
    after: ScanSummary,
    effects: Sequence[Effect],
    *,
    are_statistics_kept: bool,
    are_weights_trained: bool = False,
    unwitnessed: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the scanners whose finding after the repair is traces that lead nowhere.

    Args:
        before: the scan of the suspect.
        after: the scan of the repaired model.
        effects: of artefacts of both scans.
        are_statistics_kept: see `keeps_statistics`.
        are_weights_trained: whether the repair has trained, not only pruned, and on clean images
            alone.
        unwitnessed: see `unwitnessed_pushes`: that theirs lead nowhere explains nothing.

    Returns:
        Ids in the re-scan's order; none where a single condition is missing.
    """
    have_drifted = are_statistics_kept and are_weights_trained
    bearing = deciding(effects, have_weights_drifted=have_drifted)
    witnesses = tuple(effect for effect in effects if is_powerful(effect))
    if not all(leads_nowhere(effect) for effect in bearing):
        return ()

    def is_explained(result: ScannerResult, earlier: ScannerResult) -> bool:
        made = {place for scanner, place in _by_repair(effects) if scanner == result.id}
        if not are_statistics_kept:
            return are_weights_trained and _is_faded(result, earlier, witnesses, made=made)
        if witnesses:
            return _is_answered(
                result, earlier, witnesses, made=made, have_weights_drifted=have_drifted
            )
        return result.id not in unwitnessed and _is_idle(result, earlier, effects)

    accused = {result.id: result for result in before.scanners if result.finding in _ACCUSING}
    return tuple(
        result.id
        for result in after.scanners
        if result.id in accused and is_explained(result, accused[result.id])
    )


def unwitnessed_pushes(
    trained_against: Sequence[str], before: ScanSummary, effects: Sequence[Effect]
) -> tuple[str, ...]:
    """Return whose pushes were trained against while no stand-in bears witness at their place.

    Args:
        trained_against: scanners whose pushes the repaired model has learned to withstand.
        before: the scan of the suspect, which says where they lead.
        effects: of artefacts of both scans.

    Returns:
        Ids in their order, of scanners that had accused. Pushes are not searched anew in the
        repaired model, so that it shows nothing if these lead nowhere
        (docs/adr/0028-unlearning-pushes.md).
    """
    witnessed = {effect.target for effect in effects if is_powerful(effect)}
    led = {r.id: _places(r) for r in before.scanners if r.finding in _ACCUSING}
    return tuple(
        id_ for id_ in trained_against if id_ in led and not (led[id_] and led[id_] <= witnessed)
    )


def _by_repair(effects: Sequence[Effect]) -> set[tuple[str, int | None]]:
    """Return the scanners and places that only channels without an earlier trace lead to."""
    return {(effect.scanner, effect.target) for effect in effects if effect.is_by_repair}


def _is_faded(
    result: ScannerResult,
    earlier: ScannerResult,
    witnesses: Sequence[Effect],
    *,
    made: set[int | None],
) -> bool:
    """Whether a finding is what is left of traces whose stand-ins lead nowhere any more.

    Statistics that have moved are no longer the suspect's: a scanner without power has none, and
    what points elsewhere, or is as loud as before, is not what is left of what was there.
    """
    return (
        result.family == STATISTICS_FAMILY
        and result.finding in _ACCUSING
        and (earlier.score or 0.0) > (result.score or 0.0)
        and _follows_arrows_of(result, earlier)
        and _is_answered(result, earlier, witnesses, made=made, have_weights_drifted=False)
    )


def _follows_arrows_of(result: ScannerResult, earlier: ScannerResult) -> bool:
    """Whether a shift of classes, if it is one, sends each class where it went, or nowhere."""
    if result.pattern is not Pattern.ALL_TO_ALL:
        return True
    now, then = result.evidence.get("arrows"), earlier.evidence.get("arrows")
    if not (isinstance(now, list | tuple) and isinstance(then, list | tuple)):
        return False
    return all(one in (other, NO_ARROW) for one, other in zip(now, then, strict=True))


def _is_answered(
    result: ScannerResult,
    earlier: ScannerResult,
    witnesses: Sequence[Effect],
    *,
    made: set[int | None],
    have_weights_drifted: bool,
) -> bool:
    """Whether stand-ins were tried for all that a scanner of statistics or noise pointed at.

    In both scans, and in that of the suspect at something: a place that another scanner named says
    nothing of traces that pointed nowhere.

    Weights that have been trained are off statistics that were kept: the score is larger for it,
    and what the scanner then pushes can lead to any class, which counts unless its own controls
    disprove it. One without power lacks nothing: the statistics are the suspect's, where it had
    power.
    """
    if result.family == NOISE_FAMILY:
        is_read = result.finding in _ACCUSING
    else:
        is_read = result.family == STATISTICS_FAMILY and result.finding is not Finding.NONE
    tried = {witness.target for witness in witnesses}
    was_at, is_at = _places(earlier), _places(result)
    if have_weights_drifted and is_disproved(result):
        is_at = set()
    is_at -= made
    return is_read and bool(was_at) and was_at | is_at <= tried


def _places(result: ScannerResult) -> set[int | None]:
    """Return the targets that a result names, None for a shift of classes."""
    if result.pattern is Pattern.ALL_TO_ALL:
        return {None}
    return set(result.target_labels)


def _is_idle(result: ScannerResult, earlier: ScannerResult, effects: Sequence[Effect]) -> bool:
    """Whether a finding of statistics points nowhere, its own pushes of both scans included."""
    tried = {
        is_of_rescan: {
            e.scanner for e in effects if e.kind == "push" and e.is_of_rescan is is_of_rescan
        }
        for is_of_rescan in (False, True)
    }
    return (
        result.family == STATISTICS_FAMILY
        and result.finding in _ACCUSING
        and (earlier.score or 0.0) >= (result.score or 0.0)
        and not (result.target_labels or result.pattern or result.is_confirmed)
        # What was not tried is not known to lead nowhere.
        and result.id in tried[False]
        and result.id in tried[True]
    )


def read_rescan(
    after: ScanSummary,
    effects: Sequence[Effect],
    explained: Sequence[str],
    opened: Opened,
    request: ScanRequest,
    *,
    have_weights_drifted: bool = False,
    unwitnessed: Sequence[str] = (),
) -> VerdictRecord:
    """Return what the re-scan and the artefacts say together.

    Args:
        after: the scan of the repaired model.
        effects: of artefacts of both scans.
        explained: of `explained_traces`.
        opened: the repaired suspect with its clean set.
        request: of the scan: whose populations and level count.
        have_weights_drifted: see `deciding`.
        unwitnessed: see `unwitnessed_pushes`.

    Returns:
        ``backdoored`` where an artefact still leads most images to its target; else the verdict of
        the scanners, the explained ones finding nothing; where that is clean and an artefact leads
        somewhere all the same, or nothing bears witness but what was trained against,
        ``inconclusive``. One that is inconclusive anyway keeps its code and says of these too.
    """
    verdict = after.verdict
    if explained:
        silenced = tuple(_silenced(result, explained) for result in after.scanners)
        outcomes: tuple[ScanOutcome, ...] = (*silenced, *after.skipped, *after.failed)
        verdict = decide(
            outcomes,
            obstacles=opened.obstacles,
            obstacles_to_clean=opened.obstacles_to_clean,
            combined=calibration.assess(
                outcomes, circumstances(opened), populations(request), alpha=request.alpha
            ),
        )
    if verdict.verdict is Verdict.CLEAN and explained:
        names = ", ".join(explained)
        verdict = replace(
            verdict,
            reason_code="MA-V002",
            reason=f"{verdict.reason}; what {names} finds are traces of before in running "
            f"statistics, and these lead nowhere{_tried_by(effects)}"
            f"{_disproved_by(after, effects, explained)}",
        )
    if verdict.verdict is Verdict.BACKDOORED:
        return verdict
    bearing = deciding(effects, have_weights_drifted=have_weights_drifted)
    working = [effect for effect in bearing if still_works(effect)]
    if working:
        return _still_led(working, Verdict.BACKDOORED, "MA-V104")
    open_: list[VerdictRecord] = []
    partial = [effect for effect in bearing if not leads_nowhere(effect)]
    if partial:
        open_.append(_still_led(partial, Verdict.INCONCLUSIVE, "MA-V510"))
    if unwitnessed:
        open_.append(_unwitnessed(unwitnessed))
    if verdict.verdict is Verdict.CLEAN and open_:
        verdict = open_.pop(0)
    return replace(verdict, reason="; ".join((verdict.reason, *(o.reason for o in open_))))


def keeps_statistics(old: nn.Module, new: nn.Module) -> bool:
    """Return whether every running mean and variance is bit for bit the same.

    Args:
        old: the suspect's network.
        new: the repaired one, of the same architecture, on any device.
    """
    ours = {n: m for n, m in old.named_modules() if isinstance(m, _BatchNorm)}
    theirs = {n: m for n, m in new.named_modules() if isinstance(m, _BatchNorm)}
    if set(ours) != set(theirs):
        return False
    for name, layer in ours.items():
        other = theirs[name]
        for kind in ("running_mean", "running_var"):
            one, two = getattr(layer, kind), getattr(other, kind)
            if (one is None) is not (two is None):
                return False
            if one is not None and not torch.equal(one.cpu(), two.cpu()):
                return False
    return True


def _tried_by(effects: Sequence[Effect]) -> str:
    witnesses = [effect for effect in effects if is_powerful(effect)]
    if not witnesses:
        return ""
    most = max(witnesses, key=lambda effect: effect.share_after)
    return (
        f": a stand-in for the trigger leads {most.share_after:.0%} of {most.images} held-out "
        f"images there ({most.share_before:.0%} before the repair)"
    )


def _disproved_by(after: ScanSummary, effects: Sequence[Effect], explained: Sequence[str]) -> str:
    """Return what is said of places that an answered scanner names without a stand-in there."""
    tried = {effect.target for effect in effects if is_powerful(effect)}
    made = _by_repair(effects)

    def why(place: tuple[str, int]) -> str:
        if place in made:
            return "by channels that carried no trace before the repair"
        return "which its own controls disprove"

    said = [
        f"{result.id} points to output {target} now, {why((result.id, target))}"
        for result in after.scanners
        if tried and result.id in explained
        for target in result.target_labels
        if target not in tried
    ]
    return "".join(f"; {sentence}" for sentence in said)


def _silenced(result: ScannerResult, explained: Sequence[str]) -> ScannerResult:
    """Return the result as one that has found nothing, is combined with nothing, backs nothing."""
    if result.id not in explained:
        return result
    return replace(result, finding=Finding.NONE, score=None, class_p_values=())


def _unwitnessed(scanners: Sequence[str]) -> VerdictRecord:
    return VerdictRecord(
        verdict=Verdict.INCONCLUSIVE,
        reason_code="MA-V512",
        reason=f"the repair has trained against the pushes of {', '.join(scanners)}: "
        "that they lead nowhere shows nothing, and no stand-in for the trigger bears witness",
        next_step="try the model on triggered images if there are any; keep both out of the "
        "registry until then",
    )


def _still_led(effects: Sequence[Effect], verdict: Verdict, code: str) -> VerdictRecord:
    most = max(effects, key=lambda effect: effect.share_beyond_control)
    where = "where each class went" if most.target is None else f"to output {most.target}"
    what = f"what {most.scanner} found"
    if most.kind == "stand_in":
        what = "a stand-in for the trigger"
    return VerdictRecord(
        verdict=verdict,
        reason_code=code,
        reason=f"{what} still leads {most.share_after:.0%} of {most.images} held-out images "
        f"{where} ({most.share_before:.0%} before the repair)",
        target_labels=() if most.target is None else (most.target,),
        next_step="try another method, or more clean images",
    )
