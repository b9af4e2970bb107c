"""What a re-scan means for a model that was repaired.

A repair that prunes leaves the running statistics as they were, and with them the traces of the
backdoor in every channel that stays. `mbns` finds these again, and rightly so: they say how the
model was trained, not what it still does. A scanner does not learn about repairs; here, where both
scans are known, its finding after the repair is read as *traces that lead nowhere*, if all of this
holds (docs/adr/0010-re-scan-after-a-repair.md):

1. every running mean and variance is bit for bit the suspect's;
2. the same scanner accused the suspect, with at least the same score;
3. it now names no target and no all-to-all pattern, and confirms nothing;
4. its flagged channels, pushed, lead at most a tenth of the held-out images further than controls;
5. nor does anything that was found before the repair.

Whatever else the re-scan says counts as ever. What leads somewhere keeps the model from being
called clean even where no scanner accuses it any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from modelaudit import calibration
from modelaudit.engine.effects import leads_nowhere, still_works
from modelaudit.engine.scan import circumstances, populations
from modelaudit.results import Finding, Verdict, VerdictRecord
from modelaudit.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import ScanRequest
    from modelaudit.repair_results import Effect, ScanSummary
    from modelaudit.results import ScannerResult, ScanOutcome

#: Family of the scanners that read running statistics.
STATISTICS_FAMILY = "bn_statistics"

_ACCUSING = frozenset({Finding.SUSPICIOUS, Finding.STRONG})


def explained_traces(
    before: ScanSummary,
    after: ScanSummary,
    effects: Sequence[Effect],
    *,
    are_statistics_kept: bool,
) -> tuple[str, ...]:
    """Return the scanners whose finding after the repair is traces that lead nowhere.

    Args:
        before: the scan of the suspect.
        after: the scan of the repaired model.
        effects: of artefacts of both scans.
        are_statistics_kept: see `keeps_statistics`.

    Returns:
        Ids in the re-scan's order; none where a single condition is missing.
    """
    if not are_statistics_kept or not all(leads_nowhere(effect) for effect in effects):
        return ()
    earlier = {result.id: result for result in before.scanners}
    tried = {
        is_of_rescan: {e.scanner for e in effects if e.is_of_rescan is is_of_rescan}
        for is_of_rescan in (False, True)
    }
    return tuple(
        result.id
        for result in after.scanners
        if result.family == STATISTICS_FAMILY
        and result.finding in _ACCUSING
        and not (result.target_labels or result.pattern or result.is_confirmed)
        and _was_as_loud(earlier.get(result.id), result)
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
) -> VerdictRecord:
    """Return what the re-scan and the artefacts say together.

    Args:
        after: the scan of the repaired model.
        effects: of artefacts of both scans.
        explained: of `explained_traces`.
        opened: the repaired suspect with its clean set.
        request: of the scan: whose populations and level count.

    Returns:
        ``backdoored`` where an artefact still leads most images to its target; else the verdict of
        the scanners, the explained ones finding nothing; where that is clean and an artefact leads
        somewhere all the same, ``inconclusive``.
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
            reason=f"{verdict.reason}; {names} finds traces in statistics that the repair left as "
            "they were, and these lead nowhere",
        )
    if verdict.verdict is Verdict.BACKDOORED:
        return verdict
    working = [effect for effect in effects if still_works(effect)]
    if working:
        return _still_led(working, Verdict.BACKDOORED, "MA-V104")
    partial = [effect for effect in effects if not leads_nowhere(effect)]
    if partial and verdict.verdict is Verdict.CLEAN:
        return _still_led(partial, Verdict.INCONCLUSIVE, "MA-V510")
    return verdict


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


def _was_as_loud(earlier: ScannerResult | None, result: ScannerResult) -> bool:
    return (
        earlier is not None
        and earlier.finding in _ACCUSING
        and (earlier.score or 0.0) >= (result.score or 0.0)
    )


def _silenced(result: ScannerResult, explained: Sequence[str]) -> ScannerResult:
    """Return the result as one that has found nothing and is combined with nothing."""
    if result.id not in explained:
        return result
    return replace(result, finding=Finding.NONE, score=None)


def _still_led(effects: Sequence[Effect], verdict: Verdict, code: str) -> VerdictRecord:
    most = max(effects, key=lambda effect: effect.share_beyond_control)
    where = "where each class went" if most.target is None else f"to output {most.target}"
    return VerdictRecord(
        verdict=verdict,
        reason_code=code,
        reason=f"what {most.scanner} found still leads {most.share_after:.0%} of {most.images} "
        f"held-out images {where} ({most.share_before:.0%} before the repair)",
        target_labels=() if most.target is None else (most.target,),
        next_step="try another method, or more clean images",
    )
