"""The contract of every scanner: needs as data, a final `scan` that checks, times, restores."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, final

import torch

from modelaudit import config as configuration
from modelaudit.errors import (
    BudgetExceededError,
    DegenerateStatisticError,
    DtypeError,
    ScannerError,
    ShapeError,
)
from modelaudit.progress import NoProgress, Progress
from modelaudit.results import Cost, Finding, Pattern, ScannerResult, SkippedScan
from modelaudit.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelaudit.results import Json
    from modelaudit.suspect import Profile, Suspect

C = TypeVar("C")

ACCUSING = frozenset({Finding.SUSPICIOUS, Finding.STRONG})


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanImages:
    """The clean set as scanners see it.

    Attributes:
        images: ``(N, C, S, S)`` float32 in [0, 1], at the suspect's input size.
        labels: ``(N,)`` int64 output indices: the user's, or the suspect's own predictions.
        has_labels: whether `labels` are the user's.
        search: indices of S, the images that a search may optimise on.
        judge: indices of E, disjoint from S, that evidence is measured on.
        predictions: ``(N,)`` int64, what the suspect makes of `images`.
        as_trained: ``(N, C, S, S)``: `images` under the augmentation that the suspect's BatchNorm
            statistics were collected with, as far as the fit can tell; the shared profile is taken
            over these.
        mixture: ``(M, C, S, S)`` images of a suspect training set, if the user gave one; nobody
            says which of them are poisoned.
    """

    images: Tensor
    labels: Tensor
    has_labels: bool
    search: Tensor
    judge: Tensor
    predictions: Tensor
    as_trained: Tensor
    mixture: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("images", "as_trained", "mixture"):
            batch = getattr(self, name)
            if batch is None:
                continue
            if batch.dim() != 4:
                raise ShapeError(f"expected {name} (N, C, H, W), got {tuple(batch.shape)}")
            if not batch.is_floating_point():
                raise DtypeError(f"expected floating {name}, got {batch.dtype}")
            if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):
                raise ShapeError(f"expected {name} in [0, 1], got values outside")

    def judged(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels of E that the suspect labels correctly (§0.5).

        Raises:
            DegenerateStatisticError: there is none.
        """
        kept = self.judge[self.predictions[self.judge] == self.labels[self.judge]]
        if not len(kept):
            raise DegenerateStatisticError(
                f"expected the model to be right about some of {len(self.judge)} held-out clean "
                "images, it is about none; check labels and preprocessing"
            )
        return self.images[kept], self.labels[kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanContext:
    """What the engine lends to a scanner.

    Attributes:
        profile: the shared pass over `CleanImages.as_trained`, in their order.
        seed: the run's seed; scanners derive their own.
        progress: where to report steps.
        batch_size: bounds the images computed together; changes no result.
        search_dtype: dtype of convolutions inside searches (bfloat16 where the hardware has it);
            None is float32. Evidence is always measured in float32.
        deadline: `time.monotonic` value after which a search gives up, or None.
    """

    profile: Profile
    seed: int = 0
    progress: Progress = field(default_factory=NoProgress)
    batch_size: int = 256
    search_dtype: torch.dtype | None = None
    deadline: float | None = None

    def check_deadline(self) -> None:
        """Raise once the budget is used up.

        Raises:
            BudgetExceededError: the deadline has passed.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise BudgetExceededError("the time budget ended during the search; raise --budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a scanner's `_scan` returns; the fields are those of `ScannerResult`."""

    finding: Finding
    pattern: Pattern | None = None
    target_labels: tuple[int, ...] = ()
    score: float | None = None
    score_name: str = ""
    threshold: float | None = None
    p_value: float | None = None
    is_confirmed: bool = False
    per_class: tuple[float, ...] = ()
    per_class_name: str = ""
    evidence: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


class Scanner(ABC, Generic[C]):
    """One detector.

    Subclasses state what they need as class attributes and write `_scan`. Third parties register a
    subclass in the entry-point group ``modelaudit.scanners`` under its `id`.

    Args:
        config: hyper-parameters; the defaults of `config_type` if omitted.
        variant: name of the preset that `config` came from, for the report.
        config_set: fields that the user set.
    """

    #: stable id, equal to the entry point's name
    id: ClassVar[str]
    #: raised by every change of statistic or threshold
    version: ClassVar[str]
    #: detector family of methods/detectors.md §0.7
    family: ClassVar[str]
    #: one line for ``modelaudit list``
    summary: ClassVar[str]
    #: key of docs/references.md, with section or equation
    reference: ClassVar[str]
    #: frozen dataclass of hyper-parameters, constructible without arguments
    config_type: ClassVar[type]
    #: named alternatives with the same id; ``paper_code`` is what the authors' released code does
    variants: ClassVar[Mapping[str, type[Scanner[Any]]]] = MappingProxyType({})

    #: whether the statistic reacts to y -> y+1 backdoors
    sees_all_to_all: ClassVar[bool] = False
    #: whether thresholds were set on a development population; False never moves the verdict
    is_calibrated: ClassVar[bool] = False
    requires_gradients: ClassVar[bool] = False
    requires_batchnorm: ClassVar[bool] = False
    requires_labels: ClassVar[bool] = False
    requires_split: ClassVar[bool] = False
    min_images: ClassVar[int] = 1
    min_classes: ClassVar[int] = 2

    def __init__(
        self,
        config: C | None = None,
        *,
        variant: str | None = None,
        config_set: tuple[str, ...] = (),
    ) -> None:
        self.config: C = self.config_type() if config is None else config
        self.variant = variant
        self.config_set = config_set

    @property
    def full_id(self) -> str:
        """The id with ``@variant`` if it is not the default."""
        return f"{self.id}@{self.variant}" if self.variant else self.id

    @property
    def is_calibrated_here(self) -> bool:
        """Whether the thresholds are those that were calibrated: no variant, no setting changed."""
        return self.is_calibrated and self.variant is None and not self.config_set

    @final
    def unmet_need(self, suspect: Suspect, clean: CleanImages) -> str | None:
        """Return the first declared need that is not met, in words, or None."""
        if self.requires_batchnorm and not suspect.has_batchnorm_statistics:
            return "needs BatchNorm with running statistics, the model has none"
        if self.requires_split and suspect.split is None:
            return "needs a features/head split, none of this model's is numerically exact"
        if self.requires_labels and not clean.has_labels:
            return "needs labelled clean images, the clean set has no labels"
        if len(clean.images) < self.min_images:
            return f"needs {self.min_images} clean images, got {len(clean.images)}"
        if suspect.num_classes < self.min_classes:
            return f"needs {self.min_classes} classes, the model has {suspect.num_classes}"
        return None

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - overridden
        """Return the image passes that `_scan` will make beyond the shared profile, at most."""
        return Cost()

    @final
    def scan(
        self, suspect: Suspect, clean: CleanImages, *, context: ScanContext
    ) -> ScannerResult | SkippedScan:
        """Run the detector and give the suspect back bit for bit.

        Args:
            suspect: the model under audit.
            clean: the clean images; no trigger, no poisoned image, no true target is ever given.
            context: shared profile, seed, progress, limits.

        Returns:
            The result, or a skip when a declared need is not met.

        Raises:
            ScannerError: the subclass claims what it did not measure.
            BudgetExceededError: the deadline passed.
        """
        need = self.unmet_need(suspect, clean)
        if need is not None:
            return SkippedScan(id=self.full_id, reason=need, is_declared_need=True)
        start = time.perf_counter()
        before = suspect.passes.forward, suspect.passes.forward_backward
        with suspect.borrowed():
            seen = self._scan(suspect, clean, context)
        cost = Cost(
            forward=suspect.passes.forward - before[0],
            forward_backward=suspect.passes.forward_backward - before[1],
            seconds=time.perf_counter() - start,
        )
        self._check(seen, suspect.num_classes)
        return ScannerResult(
            id=self.full_id,
            version=self.version,
            family=self.family,
            finding=seen.finding,
            sees_all_to_all=self.sees_all_to_all,
            pattern=seen.pattern,
            target_labels=seen.target_labels,
            score=seen.score,
            score_name=seen.score_name,
            threshold=seen.threshold,
            p_value=seen.p_value,
            is_confirmed=seen.is_confirmed,
            is_calibrated=self.is_calibrated_here,
            per_class=seen.per_class,
            per_class_name=seen.per_class_name,
            evidence=seen.evidence,
            cost=cost,
            config=configuration.fields(self.config),
            config_set=self.config_set,
            seed=derive_seed(context.seed, self.id),
            notes=seen.notes,
        )

    @abstractmethod
    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        """Run the detector inside a borrow."""

    def _check(self, seen: Observation, num_classes: int) -> None:
        """Re-measure what the subclass claims."""
        if any(not 0 <= t < num_classes for t in seen.target_labels):
            raise ScannerError(
                f"{self.full_id} named targets {seen.target_labels}, the model has "
                f"{num_classes} outputs"
            )
        numbers = [x for x in (seen.score, seen.p_value, *seen.per_class) if x is not None]
        if not all(math.isfinite(x) for x in numbers):
            raise ScannerError(f"{self.full_id} returned a number that is not finite")
        if seen.per_class and len(seen.per_class) != num_classes:
            raise ScannerError(
                f"{self.full_id} returned {len(seen.per_class)} class scores for "
                f"{num_classes} outputs"
            )
        is_over = (
            seen.score is not None and seen.threshold is not None and seen.score >= seen.threshold
        )
        if seen.finding is Finding.STRONG and not is_over:
            raise ScannerError(
                f"{self.full_id} is strong with score {seen.score} below {seen.threshold}"
            )
