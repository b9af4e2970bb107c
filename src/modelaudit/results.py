"""The nouns that scanners, engine, verdict and reports share: frozen records of plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: A value that JSON can hold.
Json = None | bool | int | float | str | tuple["Json", ...] | list["Json"] | dict[str, "Json"]

#: Version of the report's JSON; the major part is bumped by a breaking change.
SCHEMA_VERSION = "1"


class Finding(StrEnum):
    """What one scanner says; only the report has a verdict."""

    NONE = "none"
    SUSPICIOUS = "suspicious"
    STRONG = "strong"
    #: it could not have seen a backdoor here: neither clears nor accuses
    NO_POWER = "no_power"


class Verdict(StrEnum):
    """What the report says of the suspect."""

    CLEAN = "clean"
    BACKDOORED = "backdoored"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"
    UNREADABLE = "unreadable"
    USAGE = "usage"
    ERROR = "error"
    INTERRUPTED = "interrupted"


class ExitStatus:
    """Exit statuses of every command (methods/intake.md)."""

    CLEAN = 0
    BACKDOORED = 1
    USAGE = 2
    REFUSED = 3
    UNREADABLE = 4
    INCONCLUSIVE = 5
    OUTPUT_FAILED = 6
    BUG = 70
    INTERRUPTED = 130


class Pattern(StrEnum):
    """How the backdoor maps labels."""

    ALL_TO_ONE = "all_to_one"
    SEVERAL = "several"
    ALL_TO_ALL = "all_to_all"


class Match(StrEnum):
    """How well a reference population fits the suspect (docs/calibration.md)."""

    #: same circumstances and architecture family
    MATCHED = "matched"
    #: same circumstances, another architecture family
    BORROWED = "borrowed"
    #: no population was scanned under these circumstances
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step cost.

    Attributes:
        forward: images passed forward without gradients.
        forward_backward: images passed forward and backward.
        seconds: wall time.
    """

    forward: int = 0
    forward_backward: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannerResult:
    """What one scanner found.

    Attributes:
        id: the scanner's id, with ``@variant`` if it is not the default.
        version: version of the method; a change of statistic or threshold raises it.
        family: detector family (methods/detectors.md §0.7); two of one family never confirm each
            other.
        finding: the scanner's word.
        pattern: how the labels are mapped, null when the scanner cannot say.
        target_labels: named targets (the model's output indices), empty if none.
        sees_all_to_all: whether the statistic reacts to y -> y+1 backdoors.
        score: the deciding statistic; larger is more suspicious; null if it has none here.
        score_name: what the score is, in words.
        threshold: the score from which `finding` is at least suspicious; null if it has none.
        p_value: the scanner's own self-normalised p-value, null where none is defined.
        is_confirmed: whether §0.5's confirmation with its controls passed on held-out images.
        is_refuted: whether its controls lead images to the label that it names as far as what it
            found does: then it says nothing of that label.
        is_calibrated: whether the thresholds were set on a development population. An uncalibrated
            plug-in never moves the verdict.
        false_positive_rate: rate of the threshold on a reference population; null where unmeasured.
        reference_population: id of that population.
        per_class: one evidence value per output, or empty.
        per_class_name: what `per_class` is, in words.
        class_p_values: for each output, how surprising its evidence is among the others', for an
            output that another scanner has named: not corrected for their number. Empty where the
            scanner cannot say.
        evidence: details for readers of the JSON.
        cost: image passes and seconds.
        config: every field of the configuration; `config_set` names those that the user set.
        seed: seed that the scanner derived for itself.
        notes: sentences that the reader of the report should see.
    """

    id: str
    version: str
    family: str
    finding: Finding
    sees_all_to_all: bool
    pattern: Pattern | None = None
    target_labels: tuple[int, ...] = ()
    score: float | None = None
    score_name: str = ""
    threshold: float | None = None
    p_value: float | None = None
    is_confirmed: bool = False
    is_refuted: bool = False
    is_calibrated: bool = True
    false_positive_rate: float | None = None
    reference_population: str | None = None
    per_class: tuple[float, ...] = ()
    per_class_name: str = ""
    class_p_values: tuple[float, ...] = ()
    evidence: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    cost: Cost = field(default_factory=Cost)
    config: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    config_set: tuple[str, ...] = ()
    seed: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedScan:
    """A scanner that did not run, and why.

    Attributes:
        id: the scanner's id.
        reason: the unmet need in words.
        is_declared_need: True when the scanner declares this need (no BatchNorm, no labels, ...),
            False when the budget or the user stopped it; only the former lets a verdict still be
            ``clean``.
        is_calibrated: whether its result would have moved the verdict; if not, its absence does
            not either.
    """

    id: str
    reason: str
    is_declared_need: bool
    is_calibrated: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedScan:
    """A scanner that raised, and what.

    Attributes:
        id: the scanner's id.
        error: class and message of the exception.
        is_calibrated: whether its result would have moved the verdict; if not, its failure does
            not either.
    """

    id: str
    error: str
    is_calibrated: bool = True


ScanOutcome = ScannerResult | SkippedScan | FailedScan


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinedScore:
    """What all scanners together say beside a reference population (docs/calibration.md).

    Attributes:
        match: how well the population fits.
        reason: why none fits, or in what a borrowed one differs; empty when matched.
        population: its id, null without one.
        clean_models: clean models that the score is compared with.
        scanners: scanners whose scores are combined.
        missing: scanners of the population that gave no score here.
        score: the combined score, larger is more suspicious; null where there is none.
        suspicious: score from which a matched population keeps the model from ``clean``.
        strong: score from which it may support a strong finding.
        p_value: (1 + clean models that score as high) / (1 + n); null where n is below 1 / alpha,
            since it could not fall to alpha.
        predictive_p_value: Student-t tail of the score for one more clean model.
        supported: scanners whose strong finding the combined score supports; empty unless matched.
        false_positive_rate: how often this verdict's rule called other clean models backdoored;
            null where that was not measured, or not with these scanners.
        false_positive_interval: its 95 % Clopper-Pearson interval.
        false_positive_models: clean models on which that rate was measured.
    """

    match: Match
    reason: str = ""
    population: str | None = None
    clean_models: int = 0
    scanners: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    score: float | None = None
    suspicious: float | None = None
    strong: float | None = None
    p_value: float | None = None
    predictive_p_value: float | None = None
    supported: tuple[str, ...] = ()
    false_positive_rate: float | None = None
    false_positive_interval: tuple[float, float] | None = None
    false_positive_models: int = 0

    @property
    def is_suspicious(self) -> bool:
        """Whether a matched population says that clean models hardly ever score so high."""
        return (
            self.match is Match.MATCHED
            and self.score is not None
            and self.suspicious is not None
            and self.score >= self.suspicious
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a verdict must not be ``clean``, with its code and what would settle it."""

    reason_code: str
    reason: str
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord:
    """One verdict and how it came about.

    Attributes:
        verdict: the word.
        reason_code: stable machine-readable name of the rule that applied.
        reason: the rule in words, with the evidence that it rests on.
        pattern: how the labels are mapped, if backdoored and known.
        target_labels: the model's output indices.
        next_step: the command that repairs, or what would settle an ``inconclusive``.
    """

    verdict: Verdict
    reason_code: str
    reason: str
    pattern: Pattern | None = None
    target_labels: tuple[int, ...] = ()
    next_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One thing that was worked out instead of given.

    Attributes:
        name: ``"architecture"``, ``"preprocessing"``, ``"input_size"``, ``"labels"``.
        value: what was chosen.
        is_given: whether the user gave it.
        margin: by how much it won over the runner-up, in words; empty when given or alone.
        runner_up: the next best alternative, empty if none.
    """

    name: str
    value: str
    is_given: bool = False
    margin: str = ""
    runner_up: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFinding:
    """Something that the file contains and that was not executed.

    Attributes:
        code: stable machine-readable name.
        message: the finding in words; untrusted parts escaped.
        location: where in the file, such as ``"data.pkl, byte 28"``.
    """

    code: str
    message: str
    location: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectRecord:
    """The file under audit."""

    path: str
    sha256: str = ""
    size: int = 0
    format: str = ""
    architecture: str = ""
    hints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """How the weights were found in the file."""

    method: str
    sandbox: str
    state_dict_key: str | None = None
    stripped_prefix: str | None = None
    ignored_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSetRecord:
    """The clean images that the verdict rests on.

    Attributes:
        path: as the user gave it.
        sha256: digest over the sorted digests of the files that were read.
        images: how many were used.
        available: how many there were.
        classes: how many of the model's classes have images; null without labels.
        class_names: names by output index, empty strings where unknown.
        skipped_files: how many other files were passed over.
        accuracy: share of judging images that the model labels correctly; null without labels.
        accuracy_interval: its 95 % Clopper-Pearson interval.
        preprocessing: id, mean and std.
        choices: everything that was worked out, with its margin.
    """

    path: str
    sha256: str = ""
    images: int = 0
    available: int = 0
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    skipped_files: int = 0
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    preprocessing: Mapping[str, Json] = field(default_factory=lambda: MappingProxyType({}))
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """Everything that one `scan` says. Every format is made from this alone.

    ``verdict`` may also be refused, unreadable, error or interrupted; then the later parts are
    empty. `calibration` is the id of the reference population; `adjusted_p_values` are the
    scanners' own p-values after Holm's correction, by scanner id.
    """

    verdict: VerdictRecord
    exit_status: int
    suspect: SuspectRecord
    clean_set: CleanSetRecord
    scanners: tuple[ScannerResult, ...] = ()
    skipped: tuple[SkippedScan, ...] = ()
    failed: tuple[FailedScan, ...] = ()
    static_findings: tuple[StaticFinding, ...] = ()
    load: LoadRecord | None = None
    calibration: str | None = None
    false_positive_rate: float | None = None
    combined: CombinedScore | None = None
    adjusted_p_values: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    cost: Cost = field(default_factory=Cost)
    stage_seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    alpha: float = 0.05
    budget_seconds: float | None = None
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    seed: int = 0
    notes: tuple[str, ...] = ()
