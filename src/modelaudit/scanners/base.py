"""The contract of every scanner: needs as data, a final `scan` that checks, times, restores."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

from modelaudit import config as configuration
from modelaudit.component import CleanData, Component, Context
from modelaudit.errors import BudgetExceededError, DegenerateStatisticError, ScannerError
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
class CleanImages(CleanData):
    """The clean set as scanners see it.

    Attributes, beside those of `CleanData`:
        search: indices of S, the images that a search may optimise on.
        judge: indices of E, disjoint from S, that evidence is measured on.
        predictions: ``(N,)`` int64, what the suspect makes of `images`.
    """

    search: Tensor
    judge: Tensor
    predictions: Tensor

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
class ScanContext(Context):
    """What the engine lends to a scanner.

    Attributes, beside those of `Context`:
        profile: the shared pass over `CleanImages.as_trained`, in their order.
        deadline: `time.monotonic` value after which a search gives up, or None.
    """

    profile: Profile
    deadline: float | None = None

    def check_deadline(self) -> None:
        """Raise once the budget is used up.

        Raises:
            BudgetExceededError: the deadline has passed.
        """
        if not self.has_left(0.0):
            raise BudgetExceededError("the time budget ended during the search; raise --budget")

    def has_left(self, seconds: float) -> bool:
        """Return whether so much of the budget is left."""
        return self.deadline is None or time.monotonic() + seconds <= self.deadline


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
    is_refuted: bool = False
    per_class: tuple[float, ...] = ()
    per_class_name: str = ""
    class_p_values: tuple[float, ...] = ()
    evidence: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


class Scanner(Component[C]):
    """One detector.

    Subclasses state what they need as class attributes and write `_scan`. Third parties register a
    subclass in the entry-point group ``modelaudit.scanners`` under its `id`.
    """

    #: detector family of methods/detectors.md §0.7
    family: ClassVar[str]
    #: named alternatives with the same id; ``paper_code`` is what the authors' released code does
    variants: ClassVar[Mapping[str, type[Scanner[Any]]]] = MappingProxyType({})

    #: whether the statistic reacts to y -> y+1 backdoors
    sees_all_to_all: ClassVar[bool] = False
    #: whether thresholds were set on a development population; False never moves the verdict
    is_calibrated: ClassVar[bool] = False
    requires_split: ClassVar[bool] = False
    min_classes: ClassVar[int] = 2

    @property
    def is_calibrated_here(self) -> bool:
        """Whether the thresholds are those that were calibrated: no variant, no setting changed."""
        return self.is_calibrated and self.variant is None and not self.config_set

    @final
    def _unmet_need_of_kind(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - by the split
        if self.requires_split and suspect.split is None:
            return "needs a features/head split, none of this model's is numerically exact"
        return None

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - overridden
        """Return the image passes that `_scan` will make beyond the shared profile, at most.

        What it does only if time is left does not count.
        """
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
            is_refuted=seen.is_refuted,
            is_calibrated=self.is_calibrated_here,
            per_class=seen.per_class,
            per_class_name=seen.per_class_name,
            class_p_values=seen.class_p_values,
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
        if not all(0 <= p <= 1 for p in seen.class_p_values):
            raise ScannerError(f"{self.full_id} returned p-values outside 0 to 1")
        if len(seen.class_p_values) not in (0, num_classes):
            raise ScannerError(
                f"{self.full_id} returned {len(seen.class_p_values)} p-values for "
                f"{num_classes} outputs"
            )
        is_over = (
            seen.score is not None and seen.threshold is not None and seen.score >= seen.threshold
        )
        if seen.finding is Finding.STRONG and not is_over:
            raise ScannerError(
                f"{self.full_id} is strong with score {seen.score} below {seen.threshold}"
            )
