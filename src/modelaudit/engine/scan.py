"""One scan, end to end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelaudit import calibration
from modelaudit.engine.components import build_scanners
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.run import run_scanners
from modelaudit.engine.versions import versions
from modelaudit.functional.p_values import holm
from modelaudit.hardware import fast_dtype
from modelaudit.results import Cost, FailedScan, ScannerResult, ScanReport, SkippedScan
from modelaudit.suspect import profile
from modelaudit.verdict import EXIT_STATUS, decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import ScanRequest
    from modelaudit.progress import Progress
    from modelaudit.results import ScanOutcome
    from modelaudit.scanners.base import CleanImages, Scanner


def confident(clean: CleanImages, logits: Tensor) -> CleanImages:
    """Return the clean images without the unlabelled ones that the suspect is unsure about, in S.

    Self-labels stand in for labels up to the model's own errors, so that S keeps what has a largest
    softmax of at least one half (methods/detectors.md §0.6).

    Args:
        clean: the clean images; labelled ones are returned as they are.
        logits: ``(N, K)`` of all of them.
    """
    if clean.has_labels:
        return clean
    sure = logits.softmax(1).amax(1)[clean.search] >= 0.5
    # A search needs images: a model that is unsure about everything is searched on everything.
    return replace(clean, search=clean.search[sure]) if bool(sure.any()) else clean


def scan(request: ScanRequest, *, progress: Progress) -> ScanReport:
    """Audit one checkpoint.

    Args:
        request: what to scan and how.
        progress: where scanners report.

    Returns:
        The report, its verdict clean, backdoored or inconclusive.

    Raises:
        CheckpointError: the file is refused, unreadable, or of no known architecture.
        DataError: the clean set is unusable.
        FitError: it stays open how the model is to be run.
        ConfigError: an option does not fit.
    """
    stopwatch = Stopwatch()
    scanners = build_scanners(request.scanners, request.settings)
    # a calibration file that cannot be read is said before any work
    populations(request)
    opened = open_suspect(request, progress=progress, stopwatch=stopwatch)
    return audit(opened, scanners, request, progress=progress, stopwatch=stopwatch)


def populations(request: ScanRequest) -> tuple[calibration.Population, ...]:
    """Return the reference populations of a scan in order of preference, the user's first.

    Raises:
        ConfigError: a file of the user's is no calibration.
    """
    given = [p for path in request.calibrations for p in calibration.read_populations(path)]
    return (*given, *calibration.shipped_populations())


def circumstances(opened: Opened) -> calibration.Circumstances:
    """Return what a reference population has to agree with."""
    return calibration.Circumstances(
        architecture=opened.suspect_record.architecture,
        images=opened.clean_record.images,
        input_size=opened.suspect.input_size,
        classes=opened.suspect.num_classes,
        has_batchnorm=opened.suspect.has_batchnorm_statistics,
        has_labels=opened.clean.has_labels,
    )


def audit(
    opened: Opened,
    scanners: Sequence[Scanner[Any]],
    request: ScanRequest,
    *,
    progress: Progress,
    stopwatch: Stopwatch,
) -> ScanReport:
    """Run scanners on an opened suspect and judge what they say.

    Args:
        opened: the suspect, its clean set, and what is known of both.
        scanners: configured scanners.
        request: budget, seed, significance level.
        progress: where scanners report.
        stopwatch: where the stages are booked.

    Returns:
        As `scan`.
    """
    suspect = opened.suspect
    before = suspect.passes.forward
    outcomes: tuple[ScanOutcome, ...]
    if opened.is_fit:
        with suspect.borrowed(), progress.task("profile", len(opened.clean.images)) as task:
            shared = profile(suspect, opened.clean.as_trained)
            task.advance(len(opened.clean.images))
        profiled = suspect.passes.forward - before
        stopwatch.lap("profile")
        outcomes = run_scanners(
            scanners,
            suspect,
            confident(opened.clean, shared.logits),
            profile=shared,
            seed=request.seed,
            progress=progress,
            budget_seconds=request.budget_seconds,
            search_dtype=fast_dtype(suspect.device),
        )
        stopwatch.lap("scanners")
    else:
        profiled = 0
        outcomes = tuple(
            SkippedScan(
                id=scanner.full_id,
                reason="clean accuracy is too low for any detector's output to mean anything",
                is_declared_need=False,
                is_calibrated=scanner.is_calibrated_here,
            )
            for scanner in scanners
        )
    return _report(request, opened, outcomes, stopwatch, profiled)


def _report(
    request: ScanRequest,
    opened: Opened,
    outcomes: tuple[ScanOutcome, ...],
    stopwatch: Stopwatch,
    profiled: int,
) -> ScanReport:
    combined = calibration.assess(
        outcomes, circumstances(opened), populations(request), alpha=request.alpha
    )
    verdict = decide(
        outcomes,
        obstacles=opened.obstacles,
        obstacles_to_clean=opened.obstacles_to_clean,
        combined=combined,
    )
    results = tuple(o for o in outcomes if isinstance(o, ScannerResult))
    return ScanReport(
        verdict=verdict,
        exit_status=EXIT_STATUS[verdict.verdict],
        suspect=opened.suspect_record,
        clean_set=opened.clean_record,
        scanners=results,
        skipped=tuple(o for o in outcomes if isinstance(o, SkippedScan)),
        failed=tuple(o for o in outcomes if isinstance(o, FailedScan)),
        static_findings=opened.static_findings,
        load=opened.load_record,
        calibration=combined.population,
        false_positive_rate=combined.false_positive_rate,
        combined=combined,
        adjusted_p_values=adjusted_p_values(results),
        cost=Cost(
            forward=profiled + sum(r.cost.forward for r in results),
            forward_backward=sum(r.cost.forward_backward for r in results),
            seconds=sum(stopwatch.seconds.values()),
        ),
        stage_seconds=stopwatch.seconds,
        alpha=request.alpha,
        budget_seconds=request.budget_seconds,
        device=request.device,
        versions=versions(),
        seed=request.seed,
        notes=opened.notes,
    )


def adjusted_p_values(results: Sequence[ScannerResult]) -> dict[str, float]:
    """Return the scanners' own p-values after Holm's correction for their number."""
    own = {r.id: r.p_value for r in results if r.p_value is not None}
    return dict(zip(own, holm(tuple(own.values())), strict=True))
