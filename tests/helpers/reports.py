"""Reports of every kind, and an engine that returns them."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelaudit.results import (
    Choice,
    CleanSetRecord,
    Cost,
    ExitStatus,
    FailedScan,
    Finding,
    LoadRecord,
    Pattern,
    ScannerResult,
    ScanReport,
    SkippedScan,
    StaticFinding,
    SuspectRecord,
    Verdict,
    VerdictRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelaudit.preprocessing import Preprocessing
    from modelaudit.progress import Progress
    from modelaudit.results import Json

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def scanner_result(
    name: str = "ban",
    *,
    finding: Finding = Finding.NONE,
    targets: Sequence[int] = (),
    per_class: Sequence[float] = (),
) -> ScannerResult:
    """Return a result with every field filled in."""
    return ScannerResult(
        id=name,
        version="1",
        family={"ban": "parameter_noise", "mm_bd": "margin"}.get(name, "bn_statistics"),
        finding=finding,
        sees_all_to_all=name != "mm_bd",
        pattern=Pattern.ALL_TO_ONE if targets else None,
        target_labels=tuple(targets),
        score=0.93 if targets else 0.11,
        score_name="share of images that noise sends to one label",
        threshold=0.4,
        p_value=0.0021 if targets else 0.61,
        is_confirmed=bool(targets),
        per_class=tuple(per_class),
        per_class_name="share of off-class predictions" if per_class else "",
        class_p_values=tuple(0.01 if t in targets else 0.6 for t in range(len(per_class))),
        evidence={"restarts": 8, "agreement": (0.9, 1.0), "details": {"epsilon": 0.3}},
        cost=Cost(forward=4000, forward_backward=30_720, seconds=9.8),
        config={"epsilon": 0.3, "steps": 30},
        config_set=("epsilon",),
        seed=17,
        notes=("restarts agree on one label",) if targets else (),
    )


def report(verdict: VerdictRecord, exit_status: int, **changes: object) -> ScanReport:
    """Return a full report with this verdict."""
    full = ScanReport(
        verdict=verdict,
        exit_status=exit_status,
        suspect=SuspectRecord(
            path="models/suspect.pt",
            sha256="0123456789abcdef" * 4,
            size=2_803_112,
            format="torch-zip",
            architecture="cifar_resnet18 (width 16)",
            hints=("ResNet",),
        ),
        clean_set=CleanSetRecord(
            path="clean",
            sha256="fedcba9876543210" * 4,
            images=500,
            available=620,
            classes=10,
            class_names=CLASS_NAMES,
            skipped_files=2,
            accuracy=0.915,
            accuracy_interval=(0.87, 0.95),
            preprocessing={"id": "cifar10_0.2023", "mean": (0.49, 0.48, 0.45), "std": (0.2,) * 3},
            choices=(
                Choice(
                    name="preprocessing",
                    value="cifar10_0.2023",
                    margin="+2.1 points of accuracy",
                    runner_up="imagenet",
                ),
                Choice(name="architecture", value="cifar_resnet18", is_given=True),
            ),
        ),
        skipped=(SkippedScan(id="dde", reason="needs --mixture", is_declared_need=True),),
        failed=(FailedScan(id="third_party", error="RuntimeError: no such layer"),),
        static_findings=(
            StaticFinding(
                code="MA-S201",
                message="needs class net.ResNet, which was not imported",
                location="data.pkl, byte 28",
            ),
        ),
        load=LoadRecord(
            method="symbolic", sandbox="none", state_dict_key="net", ignored_keys=("epoch",)
        ),
        cost=Cost(forward=12_345, forward_backward=56_789, seconds=14.2),
        stage_seconds={"load": 0.1, "fit": 1.5, "ban": 9.8},
        budget_seconds=120.0,
        versions={"modelaudit": "0.1.0", "torch": "2.10.0"},
        limits={"file_bytes": 4 << 30},
        seed=3,
        notes=("bfloat16 weights were widened to float32",),
    )
    return dataclasses.replace(full, **changes)  # type: ignore[arg-type] # the caller names fields


def backdoored(**changes: object) -> ScanReport:
    """Return a report of an all-to-one backdoor to class 3."""
    shares = (0.01, 0.0, 0.02, 0.93, 0.01, 0.01, 0.0, 0.02, 0.0, 0.0)
    scanners = (
        scanner_result("ban", finding=Finding.STRONG, targets=(3,), per_class=shares),
        scanner_result("mbns", finding=Finding.SUSPICIOUS, targets=(3,)),
        scanner_result("mm_bd", finding=Finding.NONE, per_class=tuple(-1.0 + s for s in shares)),
    )
    record = VerdictRecord(
        verdict=Verdict.BACKDOORED,
        reason_code="MA-V001",
        reason="ban is strong and mbns, of another family, is suspicious of the same label",
        pattern=Pattern.ALL_TO_ONE,
        target_labels=(3,),
        next_step="modelaudit repair models/suspect.pt --data clean",
    )
    return report(record, ExitStatus.BACKDOORED, **{"scanners": scanners, **changes})


def clean(**changes: object) -> ScanReport:
    """Return a report without findings; one scanner had no power."""
    scanners = (
        scanner_result("ban", per_class=(0.1,) * 10),
        scanner_result("dde", finding=Finding.NO_POWER),
    )
    record = VerdictRecord(
        verdict=Verdict.CLEAN, reason_code="MA-V002", reason="no scanner objects"
    )
    return report(record, ExitStatus.CLEAN, **{"scanners": scanners, **changes})


def inconclusive(**changes: object) -> ScanReport:
    """Return a report whose accuracy gate failed."""
    record = VerdictRecord(
        verdict=Verdict.INCONCLUSIVE,
        reason_code="MA-V003",
        reason="accuracy 0.31 on the clean set is too low for a verdict",
        next_step="pass --preprocess or --classes",
    )
    return report(record, ExitStatus.INCONCLUSIVE, **changes)


def failure(
    verdict: Verdict, exit_status: int, reason: str = "model.pt: no such file"
) -> ScanReport:
    """Return the bare report of a scan that raised."""
    record = VerdictRecord(verdict=verdict, reason_code="MA-K104", reason=reason)
    return ScanReport(
        verdict=record,
        exit_status=exit_status,
        suspect=SuspectRecord(path="model.pt"),
        clean_set=CleanSetRecord(path="clean"),
    )


def all_reports() -> dict[str, ScanReport]:
    """Return one report per verdict that may be printed as JSON, and per status of it."""
    return {
        "backdoored": backdoored(),
        "clean": clean(),
        "inconclusive": inconclusive(),
        "refused": failure(Verdict.REFUSED, ExitStatus.REFUSED),
        "unreadable": failure(Verdict.UNREADABLE, ExitStatus.UNREADABLE),
        "output_failed": failure(Verdict.ERROR, ExitStatus.OUTPUT_FAILED),
        "bug": failure(Verdict.ERROR, ExitStatus.BUG),
        "interrupted": failure(Verdict.INTERRUPTED, ExitStatus.INTERRUPTED),
        "terminated": failure(Verdict.INTERRUPTED, 143),
    }


@dataclass(frozen=True, kw_only=True)
class FakeRequest:
    """The engine's request, as the command line fills it in."""

    checkpoint: Path
    data: Path
    scanners: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    weights: str | None = None
    arch: str | None = None
    preprocessing: Preprocessing | None = None
    input_size: int | None = None
    classes: Path | None = None
    max_images: int = 500
    mixture: Path | None = None
    calibrations: tuple[Path, ...] = ()
    budget_seconds: float | None = 120
    device: str = "cpu"
    seed: int = 0
    alpha: float = 0.05


class FakeEngine(types.ModuleType):
    """An engine whose scan does what the test says and which remembers what it was asked.

    `outcome` is the report to return, an exception to raise, or a function of the progress.
    """

    ScanRequest = FakeRequest

    def __init__(
        self, outcome: ScanReport | BaseException | Callable[[Progress], ScanReport]
    ) -> None:
        super().__init__("modelaudit.engine")
        self.outcome = outcome
        self.requests: list[FakeRequest] = []

    def scan(self, request: FakeRequest, *, progress: Progress) -> ScanReport:
        """Return or raise the outcome."""
        self.requests.append(request)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome if isinstance(self.outcome, ScanReport) else self.outcome(progress)

    def failure_report(self, request: FakeRequest, error: BaseException) -> ScanReport:
        """Map the exception as the engine does."""
        name = type(error).__name__
        verdict, status = {
            "UnsafeCheckpointError": (Verdict.REFUSED, ExitStatus.REFUSED),
            "CorruptCheckpointError": (Verdict.UNREADABLE, ExitStatus.UNREADABLE),
            "ConfigError": (Verdict.USAGE, ExitStatus.USAGE),
            "KeyboardInterrupt": (Verdict.INTERRUPTED, ExitStatus.INTERRUPTED),
            "Terminated": (Verdict.INTERRUPTED, ExitStatus.INTERRUPTED),
        }.get(name, (Verdict.ERROR, ExitStatus.BUG))
        reason = "interrupted" if verdict is Verdict.INTERRUPTED else str(error)
        if status == ExitStatus.BUG:
            reason = f"{name}: {error}"
        return failure(verdict, status, reason)

    def list_components(self) -> dict[str, list[dict[str, Json]]]:
        """Return one scanner."""
        scanner: dict[str, Json] = {
            "id": "ban",
            "summary": "adversarial neuron noise\x1b[2J",
            "needs": {"gradients": True, "labels": False, "min_images": 100},
            "reference": "",
            "sees_all_to_all": True,
            "fields": [
                {"name": "epsilon", "type": "float", "default": 0.3},
                {"name": "layer", "type": "str | None", "default": None},
            ],
            "variants": ["paper_code"],
            "distribution": "modelaudit",
        }
        return {"scanners": [scanner], "repairs": [], "attacks": []}
