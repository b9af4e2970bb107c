"""Reports of repairs of every kind, and an engine that returns them."""

from __future__ import annotations

import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from modelaudit.engine.budget import check_budget
from modelaudit.engine.repaired import EncodedFile
from modelaudit.repair_results import (
    ClassRecall,
    Effect,
    Measurements,
    RepairAttempt,
    RepairOutcome,
    RepairReport,
    ScanSummary,
    WrittenFile,
)
from modelaudit.repairs import measure
from modelaudit.results import Cost, ExitStatus
from tests.helpers.reports import FakeEngine, backdoored, clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelaudit.progress import Progress

MEASURED = Measurements(
    images=200,
    accuracy_before=0.93,
    accuracy_after=0.92,
    interval_before=(0.886, 0.961),
    interval_after=(0.873, 0.953),
    agreement=0.985,
    lost=3,
    won=1,
    standard_error=0.00995,
    interval_drop=(-0.011, 0.034),
    recalls=(
        ClassRecall(label=0, images=20, before=0.95, after=0.95),
        ClassRecall(label=3, images=20, before=0.9, after=0.85),
        ClassRecall(label=5, images=20, before=0.9, after=0.55),
    ),
)
EFFECT = Effect(
    scanner="mbns",
    artefact="8 channels pushed to where the backdoor had them",
    target=3,
    images=180,
    share_before=0.98,
    share_after=0.05,
    interval_before=(0.94, 0.99),
    interval_after=(0.02, 0.09),
)
FAILED = RepairAttempt(id="prune_dde", version="1", failure="prune_dde needs a mixture")
TRIED = RepairAttempt(
    id="prune_mbns",
    version="1",
    pruned=(("layer1.0.bn1", (2, 5)), ("layer4.1.bn2", tuple(range(30)))),
    validation=MEASURED,
    proof=MEASURED,
    budget=check_budget(MEASURED, models=2, max_accuracy_drop=0.02),
    effects=(EFFECT, replace(EFFECT, target=None, control_share=0.021, is_of_rescan=True)),
    after=ScanSummary.of(clean()),
    explained=("mbns",),
    verdict=clean().verdict,
    config={"max_channels": 50},
    config_set=("max_channels",),
    seed=7,
    cost=Cost(forward=12_000, seconds=2.5),
    notes=("stopped where accuracy fell",),
    is_chosen=True,
)


def proof_of(
    *, lost: int, won: int, right: int = 150, images: int = 200, has_labels: bool = True
) -> Measurements:
    """Return what is measured where the suspect labels `right` images rightly.

    Args:
        lost: how many of these the repaired model labels wrongly.
        won: how many others it labels rightly.
        right: what the suspect labels rightly.
        images: how many there are.
        has_labels: whether the user has said which label is right.
    """
    before = torch.zeros(images, dtype=torch.int64)
    before[right:] = 1
    after = before.clone()
    after[:lost] = 2
    after[right : right + won] = 0
    return measure(before, after, torch.zeros_like(before), has_labels=has_labels)


def repaired() -> RepairReport:
    """Return the report of a repair that was written and whose re-scan is clean."""
    scan = backdoored()
    return RepairReport(
        outcome=RepairOutcome.REPAIRED,
        exit_status=0,
        reason_code="MA-R003",
        reason="prune_mbns costs 1.0 points of accuracy on 200 held-out images",
        next_step="a clean re-scan is evidence, not proof",
        method="auto",
        suspect=scan.suspect,
        clean_set=scan.clean_set,
        repair_images=300,
        proof_images=200,
        before=ScanSummary.of(scan),
        attempts=(FAILED, TRIED),
        written=WrittenFile(
            path="repaired.safetensors",
            sha256="ab" * 32,
            size=12_345,
            format="safetensors",
            dropped_keys=("scheduler",),
        ),
        cost=Cost(forward=50_000, forward_backward=9_000, seconds=40.0),
        stage_seconds={"fit": 1.5},
        versions={"torch": "2.15.0"},
        notes=("a note of the scan",),
    )


def ended(outcome: RepairOutcome, status: int) -> RepairReport:
    """Return a report that ended otherwise; nothing was written unless the outcome says so."""
    is_written = outcome in (RepairOutcome.STILL_BACKDOORED, RepairOutcome.INCONCLUSIVE)
    return replace(
        repaired(),
        outcome=outcome,
        exit_status=status,
        written=repaired().written if is_written else None,
        attempts=repaired().attempts if is_written else (replace(TRIED, is_chosen=False), FAILED),
    )


def failed(outcome: RepairOutcome, status: int, reason: str) -> RepairReport:
    """Return the report of a repair that raised."""
    report = repaired()
    return RepairReport(
        outcome=outcome,
        exit_status=status,
        reason_code="MA-X000",
        reason=reason,
        method="auto",
        suspect=report.suspect,
        clean_set=report.clean_set,
    )


def all_repair_reports() -> dict[str, RepairReport]:
    """Return a report for every outcome."""
    return {
        "repaired": repaired(),
        "not_needed": replace(ended(RepairOutcome.NOT_NEEDED, 0), attempts=()),
        "planned": ended(RepairOutcome.PLANNED, 0),
        "still_backdoored": ended(RepairOutcome.STILL_BACKDOORED, 1),
        "inconclusive": ended(RepairOutcome.INCONCLUSIVE, 5),
        "not_written": ended(RepairOutcome.NOT_WRITTEN, 5),
        "usage": failed(RepairOutcome.USAGE, 2, "an option"),
        "refused": failed(RepairOutcome.REFUSED, 3, "REFUSED: it calls os.system"),
        "unreadable": failed(RepairOutcome.UNREADABLE, 4, "model.pt: no such file"),
        "error": failed(RepairOutcome.ERROR, 70, "RuntimeError: oops"),
        "interrupted": failed(RepairOutcome.INTERRUPTED, 130, "interrupted"),
    }


class FakeRequest(types.SimpleNamespace):
    """Takes whatever the command line asks."""


class FakeRepaired:
    """What the fake engine's repair ends with."""

    def __init__(self, report: RepairReport, data: bytes) -> None:
        self.report = report
        self.tensors = {} if report.written is not None else None
        self.check_with: Callable[[Path], None] = lambda _: None
        self._data = data

    def encoded(self) -> EncodedFile:
        """Return the bytes."""
        return EncodedFile(data=self._data, format="safetensors")

    def check(self, path: Path) -> None:
        """Do what the test says."""
        self.check_with(path)

    def written(self, file: EncodedFile, path: Path) -> FakeRepaired:
        """Say where the bytes went."""
        assert self.report.written is not None
        record = replace(self.report.written, path=str(path), size=len(file.data))
        self.report = replace(self.report, written=record)
        return self


class FakeRepairEngine(FakeEngine):
    """An engine whose repair does what the test says and which remembers what it was asked."""

    RepairRequest = FakeRequest

    def __init__(self, report: RepairReport) -> None:
        super().__init__(clean())
        self.repair_outcome: RepairReport | BaseException = report
        self.data = b"weights"
        self.check: Callable[[Path], None] = lambda _: None

    def repair(self, request: Any, *, progress: Progress) -> FakeRepaired:
        """Return or raise the outcome."""
        self.requests.append(request)
        if isinstance(self.repair_outcome, BaseException):
            raise self.repair_outcome
        done = FakeRepaired(self.repair_outcome, self.data)
        done.check_with = self.check
        return done

    def repair_failure_report(self, request: Any, error: BaseException) -> RepairReport:
        """Map the exception as the engine does."""
        report = self.failure_report(request, error)
        outcome = RepairOutcome(report.verdict.verdict.value)
        status = report.exit_status
        if type(error).__name__ == "OutputError":
            outcome, status = RepairOutcome.ERROR, ExitStatus.OUTPUT_FAILED
        return failed(outcome, status, str(error) or report.verdict.reason)
