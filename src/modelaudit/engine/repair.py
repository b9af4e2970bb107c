"""One repair, end to end: scan, try, prove, choose. Nothing here writes a file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelaudit.checkpoint.write import check_can_keep_format
from modelaudit.engine.attempt import attempt
from modelaudit.engine.budget import ROUNDING, cost_sentence, judge, refusal_sentence
from modelaudit.engine.components import build_repair, build_scanners
from modelaudit.engine.effects import is_settled
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.provenance import record_of
from modelaudit.engine.repair_images import repair_images
from modelaudit.engine.repaired import Repaired
from modelaudit.engine.scan import audit
from modelaudit.engine.versions import versions
from modelaudit.engine.witness import find_witnesses
from modelaudit.errors import ConfigError, TooFewImagesError
from modelaudit.hardware import fast_dtype
from modelaudit.repair_results import RepairAttempt, RepairOutcome, RepairReport, ScanSummary
from modelaudit.repairs.targets import accusing
from modelaudit.results import Cost, ExitStatus, Verdict
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelaudit.engine.attempt import Attempt
    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import RepairRequest
    from modelaudit.engine.witness import Witnesses
    from modelaudit.progress import Progress
    from modelaudit.repairs import Repair
    from modelaudit.results import VerdictRecord

#: ``auto`` prunes first when `mbns` finds traces in at most this share of all channels: a backdoor
#: leaves some in every layer behind it, other training data in nearly every channel.
MAX_TRACED_SHARE = 0.5
#: Part of the accuracy budget for which ``auto`` takes a clean model without trying another repair
#: (docs/adr/0030-when-auto-goes-on.md).
ENDING_SHARE = 0.5
#: What ``auto`` tries, training-free first, and without BatchNorm statistics to prune by. All of
#: these start afresh today; what does not would go on from the latest model that was pruned.
AUTO_PRUNE_FIRST = ("prune_mbns", "unlearn_triggers", "prune_recover")
AUTO_TRAIN = ("unlearn_triggers", "finetune_noise")

_MAX_KEY = 60
_NOT_SCANNED = "nothing was scanned, for the method that was named could not be tried"

EXIT_STATUS = {
    RepairOutcome.REPAIRED: ExitStatus.CLEAN,
    RepairOutcome.NOT_NEEDED: ExitStatus.CLEAN,
    RepairOutcome.PLANNED: ExitStatus.CLEAN,
    RepairOutcome.STILL_BACKDOORED: ExitStatus.BACKDOORED,
    RepairOutcome.INCONCLUSIVE: ExitStatus.INCONCLUSIVE,
    RepairOutcome.NOT_WRITTEN: ExitStatus.INCONCLUSIVE,
}


def repair(request: RepairRequest, *, progress: Progress) -> Repaired:
    """Repair one checkpoint.

    ``auto`` scans first, prunes where the findings point at few channels, tries repairs that train
    where that is not enough, and stops as soon as a re-scan is clean for half of the accuracy
    budget and no stand-in for the trigger leads more than a twentieth of the images; a named method
    is tried alone, and what it lacks is said without a scan. In a dry run stand-ins are searched
    all the same: what they still lead is all that it can say of the backdoor. Whatever is found
    here is measured on clean images: it is never said that a backdoor is gone.

    Args:
        request: what to repair and how.
        progress: where everything reports.

    Raises:
        CheckpointError: the file is refused, unreadable, or of no known architecture.
        DataError: the clean set is unusable.
        FitError: it stays open how the model is to be run.
        TooFewImagesError: too few clean images to prove anything with.
        ConfigError: an option does not fit, or the prior scan is of something else.
        RepairError: a repair broke the model.
    """
    stopwatch = Stopwatch()
    scanners = build_scanners(request.scan.scanners, request.scan.settings)
    named = None
    if request.method != "auto":
        named = build_repair(request.method, request.settings)
    opened = open_suspect(request.scan, progress=progress, stopwatch=stopwatch)
    if request.keeps_format:
        check_can_keep_format(
            request.scan.checkpoint, sha256=opened.read.sha256, key=request.scan.weights
        )
    if opened.obstacles:
        raise TooFewImagesError("; ".join(opened.obstacles))
    before = _prior(request, opened)
    images = repair_images(request, opened)
    stopwatch.lap("divide images")
    if before is None and (named is None or named.unmet_need(opened.suspect, images.data) is None):
        before = ScanSummary.of(
            audit(opened, scanners, request.scan, progress=progress, stopwatch=stopwatch)
        )
    base = RepairReport(
        outcome=RepairOutcome.NOT_WRITTEN,
        exit_status=ExitStatus.INCONCLUSIVE,
        reason_code="MA-R501",
        reason="",
        method=request.method,
        suspect=opened.suspect_record,
        clean_set=opened.clean_record,
        repair_images=len(images.data.images),
        proof_images=len(images.proof),
        before=before,
        is_before_reused=request.prior is not None,
        max_accuracy_drop=request.max_accuracy_drop,
        device=request.scan.device,
        versions=versions(),
        seed=request.scan.seed,
        notes=opened.notes if before is not None else (*opened.notes, _NOT_SCANNED),
    )
    attempts: tuple[Attempt, ...] = ()
    witnesses: Witnesses | None = None
    repairs = iter((named,)) if named is not None else _auto(request, opened, before)
    for tried in repairs:
        is_able = tried.unmet_need(opened.suspect, images.data) is None
        if witnesses is None and is_able and before is not None:
            witnesses = find_witnesses(
                opened.suspect,
                images.data,
                before.scanners,
                seed=request.scan.seed,
                dtype=fast_dtype(opened.suspect.device),
                progress=progress,
            )
            stopwatch.lap("search stand-ins")
            base = replace(base, cost=witnesses.cost, notes=(*base.notes, *witnesses.notes))
        made = attempt(
            tried,
            opened,
            images,
            request,
            before=before,
            scanners=scanners,
            progress=progress,
            stopwatch=stopwatch,
            onto=None if tried.starts_afresh else _basis(attempts),
            witnesses=witnesses,
        )
        attempts = judge((*attempts, made), max_accuracy_drop=request.max_accuracy_drop)
        if _may_end(attempts[-1], request):
            break
    return _conclude(base, attempts, request, opened, stopwatch)


def _prior(request: RepairRequest, opened: Opened) -> ScanSummary | None:
    """Return what the report says that the user gave, or None without one.

    Raises:
        ConfigError: it is of another file or of other images.
    """
    if request.prior is None:
        return None
    for what, given, found in (
        ("checkpoint", request.prior.checkpoint_sha256, opened.read.sha256),
        ("clean set", request.prior.clean_set_sha256, opened.clean_set.sha256),
    ):
        if given != found:
            raise ConfigError(
                f"--report is of another {what} (SHA-256 {given[:16]}, this one {found[:16]}); "
                "scan again or leave --report away"
            )
    if request.prior.state_dict_key != opened.read.state_dict_key:
        raise ConfigError(
            f"--report is of the weights under {_shown(request.prior.state_dict_key)}, these are "
            f"under {_shown(opened.read.state_dict_key)}; give the same --weights"
        )
    return request.prior.summary


def _shown(key: str | None) -> str:
    return (
        "the file's outermost container" if key is None else repr(escape_untrusted(key, _MAX_KEY))
    )


def _auto(
    request: RepairRequest, opened: Opened, before: ScanSummary | None
) -> Iterator[Repair[Any]]:
    """Yield what the findings call for, best first; nothing where they accuse nobody."""
    assert before is not None
    accused = accusing(before.scanners)
    if before.verdict.verdict is Verdict.CLEAN or not accused:
        return
    traced = next((r.evidence.get("traced") for r in accused if r.id == "mbns"), None)
    neurons = sum(site.channels for site in opened.suspect.sites)
    is_few = isinstance(traced, int) and traced <= MAX_TRACED_SHARE * neurons
    for id_ in AUTO_PRUNE_FIRST if is_few else AUTO_TRAIN:
        own = [setting for setting in request.settings if setting[0].split("@")[0] == id_]
        yield build_repair(id_, own)


def _basis(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return what the next repair goes on from: the latest model pruned within the budget."""
    pruned = (a for a in reversed(attempts) if a.mask is not None and a.is_within_budget)
    return next(pruned, None)


def _conclude(
    base: RepairReport,
    attempts: Sequence[Attempt],
    request: RepairRequest,
    opened: Opened,
    stopwatch: Stopwatch,
) -> Repaired:
    chosen = _choose(attempts, request)
    outcome, code, reason, step = _words(base, attempts, chosen, request)
    records = [replace(a.record, is_chosen=a is chosen) for a in attempts]
    report = replace(
        base,
        outcome=outcome,
        exit_status=EXIT_STATUS[outcome],
        reason_code=code,
        reason=reason,
        next_step=step,
        attempts=tuple(records),
        cost=_total(base, records, stopwatch),
        stage_seconds=stopwatch.seconds,
    )
    is_written = chosen is not None and not request.is_dry_run
    return Repaired(
        report=report,
        tensors=chosen.tensors if is_written and chosen is not None else None,
        record={} if chosen is None else record_of(report, chosen.steps, opened.read.repair),
        opened=opened,
        request=request,
    )


def _may_end(attempt: Attempt, request: RepairRequest) -> bool:
    """Whether no further repair is tried.

    What is clean may still leave a tenth of the attacks, and what is within the budget by its own
    estimate is over it as often as not where it just passes.
    """
    proof = attempt.record.proof
    return (
        proof is not None
        and attempt.is_clean
        and attempt.is_within_budget
        and is_settled(attempt.record.effects)
        and proof.accuracy_drop <= ENDING_SHARE * request.max_accuracy_drop + ROUNDING
    )


def _choose(attempts: Sequence[Attempt], request: RepairRequest) -> Attempt | None:
    """Return the best attempt that may be written.

    Order: within budget, re-scan clean, not backdoored, no artefact that leads anywhere, least that
    one leads, least accuracy lost. What is within the budget is not made cheaper at the price of
    the backdoor; over it (``--force``) the share is not asked, for a wreck follows no artefact.
    Of clean ones within it the one is taken with which `auto` may end, else the first of which no
    stand-in leads more than a twentieth, else the first.
    """
    allowed = [
        a for a in attempts if a.tensors is not None and (a.is_within_budget or request.is_forced)
    ]

    def rank(a: Attempt) -> tuple[bool, tuple[bool, ...], float, float]:
        assert a.record.proof is not None
        *words, share = a.standing
        lost = a.record.proof.accuracy_drop
        if not a.is_within_budget:
            share = 0.0
        elif a.is_clean:
            share = 2.0 - is_settled(a.record.effects) - _may_end(a, request)
            lost = 0.0
        return (not a.is_within_budget, tuple(words), share, lost)

    return min(allowed, key=rank, default=None)


def _words(
    base: RepairReport,
    attempts: Sequence[Attempt],
    chosen: Attempt | None,
    request: RepairRequest,
) -> tuple[RepairOutcome, str, str, str]:
    """Return outcome, reason code, reason and next step."""
    if not attempts:
        assert base.before is not None
        return _untried(base.before.verdict)
    if chosen is None:
        return _refusal(attempts, request)
    lost = cost_sentence(chosen.record, max_accuracy_drop=request.max_accuracy_drop)
    if request.is_dry_run:
        return RepairOutcome.PLANNED, "MA-R002", f"dry run: {lost}; nothing was written", ""
    over = "" if chosen.is_within_budget else "; written all the same (--force)"
    if chosen.is_clean:
        return (
            RepairOutcome.REPAIRED,
            "MA-R003",
            f"{lost}{over}; the re-scan is clean and what was found before leads nowhere",
            "a clean re-scan is evidence, not proof: see docs/security-model.md",
        )
    if chosen.is_backdoored:
        return (
            RepairOutcome.STILL_BACKDOORED,
            "MA-R101",
            f"{lost}{over}; the repaired model still shows a backdoor{_of(chosen)}",
            "try another method, or more clean images; keep both models out of the registry",
        )
    judged = chosen.record.verdict
    assert judged is not None
    return (
        RepairOutcome.INCONCLUSIVE,
        "MA-R503",
        f"{lost}{over}; the re-scan reaches no verdict: {judged.reason}",
        "settle the re-scan before you use the model",
    )


def _untried(verdict: VerdictRecord) -> tuple[RepairOutcome, str, str, str]:
    """Return what is said where `auto` has found nothing to try."""
    if verdict.verdict is Verdict.CLEAN:
        return (
            RepairOutcome.NOT_NEEDED,
            "MA-R001",
            f"the scan is clean ({verdict.reason}): nothing was repaired and nothing written",
            "name a method if you want it repaired all the same",
        )
    how = f" ({verdict.next_step})" if verdict.next_step else ""
    return (
        RepairOutcome.NOT_WRITTEN,
        "MA-R502",
        f"the scan accuses nothing to choose a repair by, and is not clean: {verdict.reason}",
        f"settle the scan first{how}, or name a method",
    )


def _of(chosen: Attempt) -> str:
    verdict = chosen.record.verdict
    return "" if verdict is None or not verdict.reason else f": {verdict.reason}"


def _refusal(
    attempts: Sequence[Attempt], request: RepairRequest
) -> tuple[RepairOutcome, str, str, str]:
    failures = [a.record.failure for a in attempts if a.record.failure]
    measured = [a.record for a in attempts if a.record.proof is not None]
    idle = [a.record for a in attempts if a.record.proof is None and not a.record.failure]
    if idle and not measured:
        did = [f"{record.chain} changed nothing{_noted(record)}" for record in idle]
        return (
            RepairOutcome.NOT_WRITTEN,
            "MA-R506",
            "; ".join((*failures, *did)),
            "try another method",
        )
    if not measured:
        return (
            RepairOutcome.NOT_WRITTEN,
            "MA-R504",
            f"no repair could be made: {'; '.join(failures)}",
            "give what is missing, or name another method",
        )
    return (
        RepairOutcome.NOT_WRITTEN,
        "MA-R505",
        refusal_sentence(measured, max_accuracy_drop=request.max_accuracy_drop),
        "raise --max-accuracy-drop, use --force, or try another method or more clean images",
    )


def _noted(record: RepairAttempt) -> str:
    return f" ({'; '.join(record.notes)})" if record.notes else ""


def _total(base: RepairReport, records: Sequence[Any], stopwatch: Stopwatch) -> Cost:
    # what the base has cost so far is the search of witnesses
    costs = [base.cost, *(record.cost for record in records)]
    costs += [record.after.cost for record in records if record.after is not None]
    if base.before is not None and not base.is_before_reused:
        costs.append(base.before.cost)
    return Cost(
        forward=sum(cost.forward for cost in costs),
        forward_backward=sum(cost.forward_backward for cost in costs),
        seconds=sum(stopwatch.seconds.values()),
    )
