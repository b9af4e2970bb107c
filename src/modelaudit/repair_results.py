"""The nouns of a repair: what was tried, what it changed on clean images, what was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from modelaudit.results import Cost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.results import (
        CleanSetRecord,
        FailedScan,
        Json,
        ScannerResult,
        ScanReport,
        SkippedScan,
        SuspectRecord,
        VerdictRecord,
    )

#: What an artefact is: channels pushed, noise on neurons, or a stand-in put on images.
EffectKind = Literal["push", "noise", "stand_in"]

#: Version of the repair report's JSON; the major part is bumped by a breaking change.
REPAIR_SCHEMA_VERSION = "1"


class RepairOutcome(StrEnum):
    """How a repair ended. Nothing is ever called free of a backdoor."""

    #: written, and the re-scan is clean
    REPAIRED = "repaired"
    #: the scan was clean: there was nothing to repair
    NOT_NEEDED = "not_needed"
    #: a dry run: nothing was written
    PLANNED = "planned"
    #: written, and the re-scan still says backdoored
    STILL_BACKDOORED = "still_backdoored"
    #: written, and the re-scan reaches no verdict
    INCONCLUSIVE = "inconclusive"
    #: no repair was good enough to be written
    NOT_WRITTEN = "not_written"
    USAGE = "usage"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    ERROR = "error"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRecall:
    """What two models make of the clean images of one class.

    Attributes:
        label: the class.
        images: how many images have that label; without labels, how many the suspect gives it.
        before: share of them that the suspect gives this label; 1 without labels.
        after: share that the repaired model gives it.
    """

    label: int
    images: int
    before: float
    after: float

    @property
    def loss(self) -> float:
        """What the class has lost; negative where it has gained."""
        return self.before - self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Two models over the same clean images.

    Attributes:
        images: how many images.
        accuracy_before: share that the suspect labels correctly; null without labels.
        accuracy_after: share that the repaired model labels correctly; null without labels.
        interval_before: two-sided 95 % Clopper-Pearson interval of `accuracy_before`.
        interval_after: that of `accuracy_after`.
        agreement: share that both predict alike.
        lost: images that only the suspect labels correctly; without labels, those that the two
            label differently.
        won: images that only the repaired model labels correctly; without labels none.
        standard_error: of `accuracy_drop`, a fraction; the two models see the same images.
        interval_drop: two-sided 95 % interval of `accuracy_drop`: Newcombe's for paired shares;
            without labels that of Clopper and Pearson.
        recalls: of every class that has images, ascending.
    """

    images: int
    accuracy_before: float | None
    accuracy_after: float | None
    interval_before: tuple[float, float] | None
    interval_after: tuple[float, float] | None
    agreement: float
    lost: int
    won: int
    standard_error: float
    interval_drop: tuple[float, float]
    recalls: tuple[ClassRecall, ...] = ()

    @property
    def accuracy_drop(self) -> float:
        """What was lost: of the accuracy, or of the agreement where nothing is labelled."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return 1.0 - self.agreement
        return self.accuracy_before - self.accuracy_after

    @property
    def worst(self) -> ClassRecall | None:
        """The class that lost most, the first of equals; None where nothing was counted."""
        return max(self.recalls, key=lambda recall: recall.loss, default=None)


class BudgetState(StrEnum):
    """What the 95 % interval of a loss says of the accuracy budget, whatever the estimate says."""

    #: it ends within the budget
    WITHIN = "within"
    #: it begins over the budget
    OVER = "over"
    #: the budget lies inside it
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCheck:
    """A repaired model beside the accuracy budget; losses are fractions of the held-out images.

    Attributes:
        models: from how many models measured on the same held-out images the loss chooses, this one
            included: those that leave as much of the backdoor, unless the re-scan is clean; of
            clean ones the first within the budget is taken.
        luck: by how many standard errors the luckiest of so many looks better than it is, on
            average; 0 for one.
        judged_drop: the loss plus `luck` standard errors, which is compared with the budget.
        is_within: whether that is within the budget; decides what is written.
        interval: what the interval of the loss says, of this model by itself; decides nothing.
        images_to_settle: about how many held-out images would move an open interval off the budget;
            null where it is not open, or where the loss is too close to the budget for a number.
    """

    models: int
    luck: float
    judged_drop: float
    is_within: bool
    interval: BudgetState
    images_to_settle: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What an artefact that a scanner found does to the model before and after the repair.

    Attributes:
        scanner: id of the scanner that found it.
        artefact: what it is, in words.
        target: the output that it leads to; null for one that leads each class somewhere else.
        images: clean images of other classes that it was tried on.
        share_before: share of them that goes to the target, or to the class that the artefact maps
            their own to.
        share_after: the same on the repaired model.
        interval_before: two-sided 95 % Clopper-Pearson interval of `share_before`.
        interval_after: that of `share_after`.
        control_share: share of the same images that the repaired model sends there all the same:
            when other channels are pushed as far, or under no stand-in; null where none was
            needed, since `share_after` is small by itself.
        is_of_rescan: whether the re-scan found the artefact, not the scan before.
        kind: ``"push"`` of channels, ``"noise"`` on neurons, or ``"stand_in"`` for the trigger, the
            only one of these that is put on the images themselves.
        is_disproved: of a push of the re-scan, whether the scanner's own controls speak against a
            trigger there: they lead there as well, or the network needs these channels.
        is_by_repair: of a push of the re-scan, whether channels without a trace in the suspect lead
            there alone and those with one hardly lead any image, in both models.
        is_deciding: whether the verdict may rest on it; what is not is shown for the reader alone.
    """

    scanner: str
    artefact: str
    target: int | None
    images: int
    share_before: float
    share_after: float
    interval_before: tuple[float, float]
    interval_after: tuple[float, float]
    control_share: float | None = None
    is_of_rescan: bool = False
    kind: EffectKind = "push"
    is_disproved: bool = False
    is_by_repair: bool = False
    is_deciding: bool = True

    @property
    def share_beyond_control(self) -> float:
        """What the artefact leads beyond what any such push does."""
        return self.share_after - (self.control_share or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    """What one scan says, without the facts that a repair's report carries anyway."""

    verdict: VerdictRecord
    scanners: tuple[ScannerResult, ...] = ()
    skipped: tuple[SkippedScan, ...] = ()
    failed: tuple[FailedScan, ...] = ()
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(cls, report: ScanReport) -> ScanSummary:
        """Return the summary of a report."""
        return cls(
            verdict=report.verdict,
            scanners=report.scanners,
            skipped=report.skipped,
            failed=report.failed,
            cost=report.cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorScan:
    """A scan that was done before and need not be done again.

    Attributes:
        checkpoint_sha256: digest of the file that was scanned.
        clean_set_sha256: digest of the clean set that it was scanned with.
        state_dict_key: key of the file under which the weights were; None for the whole file.
        summary: what it said.
    """

    checkpoint_sha256: str
    clean_set_sha256: str
    state_dict_key: str | None
    summary: ScanSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairAttempt:
    """One repair that was tried.

    Attributes:
        id: the repair's id, with ``@variant`` if it is not the default.
        version: version of the method.
        failure: why it did nothing; the fields below are empty then.
        goes_on_from: ids of the repairs, in order, that had been done to the model already; none if
            it was given the suspect. Costs, accuracies and effects are against the suspect all the
            same.
        pruned: (layer name, channel indices) of every layer with pruned channels.
        trained_against: scanners whose pushes the model has learned to withstand, in this repair or
            one that it goes on from: that these lead nowhere is no evidence.
        validation: on the images that the repair chose its amount on; it is biased by that choice.
        proof: on held-out clean images that the repair never saw.
        budget: `proof` beside the accuracy budget, judged when all attempts had been measured; null
            without a proof.
        effects: artefacts of both scans, tried on both models.
        after: the re-scan; null in a dry run.
        explained: scanners whose finding in the re-scan is traces that lead nowhere.
        verdict: what the re-scan, the explained findings and the artefacts say together; null in a
            dry run.
        history: loss per epoch.
        details: what else the method reports; ``prune_mode`` says what was set to zero, where
            anything was pruned (docs/repairs/).
        config: every field of the configuration; `config_set` names those that the user set.
        seed: seed that the repair derived for itself.
        cost: image passes and seconds of the repair alone.
        notes: sentences that the reader of the report should see.
        is_chosen: whether this is the model that was written, or would have been.
    """

    id: str
    version: str = ""
    failure: str = ""
    goes_on_from: tuple[str, ...] = ()
    pruned: tuple[tuple[str, tuple[int, ...]], ...] = ()
    trained_against: tuple[str, ...] = ()
    validation: Measurements | None = None
    proof: Measurements | None = None
    budget: BudgetCheck | None = None
    effects: tuple[Effect, ...] = ()
    after: ScanSummary | None = None
    explained: tuple[str, ...] = ()
    verdict: VerdictRecord | None = None
    history: tuple[float, ...] = ()
    details: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    config: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    config_set: tuple[str, ...] = ()
    seed: int = 0
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()
    is_chosen: bool = False

    @property
    def pruned_neurons(self) -> int:
        """How many neurons were pruned."""
        return sum(len(indices) for _, indices in self.pruned)

    @property
    def chain(self) -> str:
        """Ids of all repairs in this model, in order, in words."""
        return ", then ".join((*self.goes_on_from, self.id))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """The file that a repair wrote.

    Attributes:
        path: as the user gave it.
        sha256: of its bytes.
        size: in bytes.
        format: ``"safetensors"``, ``"torch-zip"`` or ``"torch-legacy"``.
        dropped_keys: dotted keys of the input that are no plain data and are not in the file.
    """

    path: str
    sha256: str
    size: int
    format: str
    dropped_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """Everything that one `repair` says. Every format is made from this alone.

    Attributes:
        outcome: how it ended.
        exit_status: of the command.
        reason_code: stable machine-readable name of what applied.
        reason: the outcome in words.
        next_step: what to do now.
        method: what was asked for, ``"auto"`` or a repair's id.
        suspect: the file under repair.
        clean_set: the images of the scans.
        repair_images: images that repairs worked with and chose amounts on.
        proof_images: held-out images that no repair saw.
        before: the scan before; null where none was needed or reached.
        is_before_reused: whether it comes from a report that the user gave.
        attempts: what was tried, in order.
        written: the file; null if none was written.
        max_accuracy_drop: what a repair may cost on the held-out images.
        cost: of everything together.
        stage_seconds: wall seconds per stage.
        device: where it was computed.
        versions: of Python and of the packages that numbers depend on.
        seed: the run's seed.
        notes: sentences that the reader should see.
    """

    outcome: RepairOutcome
    exit_status: int
    reason_code: str
    reason: str
    method: str
    suspect: SuspectRecord
    clean_set: CleanSetRecord
    next_step: str = ""
    repair_images: int = 0
    proof_images: int = 0
    before: ScanSummary | None = None
    is_before_reused: bool = False
    attempts: tuple[RepairAttempt, ...] = ()
    written: WrittenFile | None = None
    max_accuracy_drop: float = 0.02
    cost: Cost = field(default_factory=Cost)
    stage_seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> RepairAttempt | None:
        """The attempt that was written or would have been."""
        return next((a for a in self.attempts if a.is_chosen), None)
