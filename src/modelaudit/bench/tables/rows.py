"""What one line of `bench scan` or `bench repair` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelaudit.results import ScannerResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.results import Obstacle, ScanOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a row says of its model.

    Attributes:
        id: in its plan.
        population: ``"A"`` or ``"B"``.
        dataset: id of the data.
        architecture: name as in the plan.
        width: channels of the first stage.
        classes: number of classes K.
    """

    id: str
    population: str
    dataset: str
    architecture: str
    width: int
    classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the model is, which no scanner was told.

    Attributes:
        attack: id, or None for a clean model.
        label_map: id of the label map, or None.
        target: target label of a single-target attack, or None.
        acc: clean accuracy, a fraction.
        twin_acc: that of the clean twin, or None.
        asr: attack success rate, or None.
        benign_asr: the twin's, or None.
        gate_passed: whether it may bear the name of its attack; None for clean models.
    """

    attack: str | None
    label_map: str | None
    target: int | None
    acc: float
    twin_acc: float | None
    asr: float | None
    benign_asr: float | None
    gate_passed: bool | None

    @property
    def name(self) -> str:
        """The attack in words; the label map is named unless it is the ordinary one."""
        if self.attack is None:
            return "clean"
        suffix = {"one": "", "all": "-all", "source": " (source)", "clean_label": " (clean label)"}
        return self.attack + suffix.get(self.label_map or "one", f" ({self.label_map})")

    @property
    def key(self) -> tuple[str, str]:
        """Attack and "all" or "one", as the papers' figures are found."""
        return (self.attack or "clean", "all" if self.label_map == "all" else "one")


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSetFacts:
    """What a row says of the clean images that the scan was given.

    Attributes:
        sha256: digest of the images.
        name: as given to `bench scan`.
        images: how many.
        degradation: name of what was done to them, or None.
    """

    sha256: str
    name: str
    images: int
    degradation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRow:
    """One scanner on one model.

    Attributes:
        checkpoint_sha256: of the weights.
        scanner: id.
        variant: of the scanner, or None for its default form.
        config_sha256: of its resolved settings.
        seed: of the run.
        model: what it is.
        truth: what was done to it.
        clean_set: what the scanner was given.
        obstacles: reasons why nothing may be concluded.
        obstacles_to_clean: reasons why the verdict must not be clean.
        outcome: what came of it.
        hardware: processor, threads and device in words.
        record: the row as it was read.
        where: file and line, for messages.
    """

    checkpoint_sha256: str
    scanner: str
    variant: str | None
    config_sha256: str
    seed: int
    model: ModelFacts
    truth: Truth
    clean_set: CleanSetFacts
    obstacles: tuple[str, ...]
    obstacles_to_clean: tuple[Obstacle, ...]
    outcome: ScanOutcome
    hardware: str
    record: Mapping[str, Any]
    where: str

    @property
    def is_changed(self) -> bool:
        """Whether it ran with other settings than its own."""
        return isinstance(self.outcome, ScannerResult) and bool(self.outcome.config_set)

    @property
    def detector(self) -> str:
        """Id with ``@variant``; settings that were changed are named behind it."""
        name = self.scanner if self.variant is None else f"{self.scanner}@{self.variant}"
        if isinstance(self.outcome, ScannerResult) and self.is_changed:
            return f"{name} with other {', '.join(self.outcome.config_set)}"
        return name

    @property
    def key(self) -> tuple[str, ...]:
        """What two rows of one measurement share."""
        return (
            self.checkpoint_sha256,
            self.scanner,
            self.variant or "",
            self.config_sha256,
            str(self.seed),
            self.clean_set.sha256,
            self.clean_set.degradation or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRow:
    """One repair of one model; rates are fractions of test images.

    Attributes:
        model: what it is.
        truth: what was done to it.
        method: id of the repair.
        variant: of it, or None.
        acc_before: clean accuracy before.
        acc_after: and after.
        asr_before: attack success rate before; None for a clean model.
        asr_after: and after.
        ra_before: share of triggered images that get their own label before; None where the row
            does not say.
        ra_after: and after.
        images: clean images that the repair was given.
        seconds: wall time.
        passes: images passed forward, or forward and backward.
        pruned: how many channels were pruned.
        outcome: how it ended: ``"done"``, ``"unmet_need"`` or ``"failed"``; of `auto` as in
            `RepairOutcome`.
        reason: the need that is not met, or the error, or else what was said of the outcome.
        is_within_budget: whether the defender's held-out images lose no more than they may; None
            where nothing was repaired, and for `auto`, whose outcome says so.
        shown: share of the defender's held-out images that stand-ins for the trigger still lead to
            the target, the largest of all places; None where none led most of the suspect's, where
            nothing was changed, and in rows of `auto` that are older than this.
        where: file and line, for messages.
    """

    model: ModelFacts
    truth: Truth
    method: str
    variant: str | None
    acc_before: float
    acc_after: float
    asr_before: float | None
    asr_after: float | None
    ra_before: float | None
    ra_after: float | None
    images: int
    seconds: float
    passes: int
    pruned: int
    outcome: str
    reason: str
    is_within_budget: bool | None
    shown: float | None
    where: str

    @property
    def name(self) -> str:
        """Id with ``@variant``."""
        return self.method if self.variant is None else f"{self.method}@{self.variant}"
