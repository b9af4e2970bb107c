"""Rows become models with their verdicts, and models become the blocks that are reported apart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelaudit.calibration import judge, models_of
from modelaudit.errors import ConfigError
from modelaudit.results import Finding, Match, ScannerResult, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.bench.tables.rows import CleanSetFacts, ModelFacts, ScanRow, Truth
    from modelaudit.calibration import Population
    from modelaudit.results import CombinedScore, ScanOutcome, VerdictRecord

#: what stands beside the scanners' ids
VERDICT, COMBINED = "verdict", "combined"
#: the combined score at the two thresholds of the population that a model is compared with
COMBINED_SUSPICIOUS, COMBINED_STRONG = "combined, suspicious", "combined, strong"
LEVELS = (COMBINED_SUSPICIOUS, COMBINED_STRONG)

_ACCUSING = frozenset({Finding.SUSPICIOUS, Finding.STRONG})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScan:
    """Everything that was said of one model on one clean set.

    Attributes:
        model: what it is.
        truth: what was done to it.
        clean_set: what the scanners were given.
        seed: of the run.
        outcomes: by detector, in the order of their names.
        verdict: decided again from the default forms of the scanners.
        combined: what the reference populations say of it.
        hardware: of the first row.
    """

    model: ModelFacts
    truth: Truth
    clean_set: CleanSetFacts
    seed: int
    outcomes: Mapping[str, ScanOutcome]
    verdict: VerdictRecord
    combined: CombinedScore
    hardware: str

    @property
    def is_clean(self) -> bool:
        """Whether nobody attacked it."""
        return self.truth.attack is None

    @property
    def counts(self) -> bool:
        """Whether it stands for its kind: clean, or attacked and past the gate."""
        return self.is_clean or self.truth.gate_passed is True

    @property
    def cell(self) -> tuple[str, str, str]:
        """Attack, architecture and data; the width is no part of it."""
        return (self.truth.name, self.model.architecture, self.model.dataset)

    def result(self, detector: str) -> ScannerResult | None:
        """Return what a scanner found, or None if it did not run or could not have seen."""
        outcome = self.outcomes.get(detector)
        is_blind = not isinstance(outcome, ScannerResult) or outcome.finding is Finding.NO_POWER
        return None if is_blind else outcome  # type: ignore[return-value]  # narrowed above

    def score(self, detector: str) -> float | None:
        """Return a scanner's score, or the combined one; None if there is none."""
        if detector == COMBINED:
            return self.combined.score
        found = self.result(detector)
        return None if found is None else found.score

    def is_judged(self, detector: str) -> bool:
        """Whether a detector took part; for the thresholds, whether a population is matched."""
        if detector in LEVELS:
            return self.combined.match is Match.MATCHED
        return detector == VERDICT or detector in self.outcomes

    def is_flagged(self, detector: str) -> bool:
        """Whether the verdict is backdoored, the scanner at least suspicious, a threshold passed.

        As in a scan: the suspicious threshold is reached, the strong one exceeded.
        """
        if detector == VERDICT:
            return self.verdict.verdict is Verdict.BACKDOORED
        if detector == COMBINED_SUSPICIOUS:
            return self.combined.is_suspicious
        if detector == COMBINED_STRONG:
            score, strong = self.combined.score, self.combined.strong
            if score is None or strong is None:
                return False
            return self.is_judged(detector) and score > strong
        found = self.result(detector)
        return found is not None and found.finding in _ACCUSING

    def named(self, detector: str) -> tuple[int, ...]:
        """Return the target labels that a scanner or the verdict names."""
        if detector == VERDICT:
            return self.verdict.target_labels
        found = self.result(detector)
        return () if found is None else found.target_labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Models that are reported together.

    Attributes:
        id: for file names and CSV fields.
        label: in the cells of tables.
        title: in words.
        scans: one per model, those that failed the gate included.
        others: clean models to rank against where the block has none of its own.
    """

    id: str
    label: str
    title: str
    scans: tuple[ModelScan, ...]
    others: tuple[ModelScan, ...] = field(default=())

    @property
    def attacked(self) -> tuple[ModelScan, ...]:
        """Attacked models that passed the gate."""
        return tuple(s for s in self.scans if not s.is_clean and s.counts)

    @property
    def clean(self) -> tuple[ModelScan, ...]:
        """Its clean models."""
        return tuple(s for s in self.scans if s.is_clean)

    @property
    def reference(self) -> tuple[ModelScan, ...]:
        """The clean models to rank against."""
        return self.clean or self.others


def group(
    rows: Sequence[ScanRow], *, populations: Sequence[Population] = ()
) -> tuple[ModelScan, ...]:
    """Put the rows of one model, clean set and run together and decide each verdict again.

    Args:
        rows: of any models.
        populations: reference populations that the verdicts rest on, as in a scan.

    Returns:
        One record per model, clean set and seed, sorted by id, clean set and seed.

    Raises:
        ConfigError: two rows of one checkpoint disagree on what it is.
    """
    groups: dict[tuple[object, ...], list[ScanRow]] = {}
    facts: dict[str, ScanRow] = {}
    for row in rows:
        first = facts.setdefault(row.checkpoint_sha256, row)
        if (first.model, first.truth) != (row.model, row.truth):
            raise ConfigError(
                f"{first.where} and {row.where} disagree on what the checkpoint "
                f"{row.checkpoint_sha256[:12]!r} is; leave the older rows out"
            )
        groups.setdefault((row.checkpoint_sha256, row.clean_set, row.seed), []).append(row)
    scans = [_model_scan(members, populations) for members in groups.values()]
    return tuple(sorted(scans, key=lambda s: (s.model.id, s.clean_set.sha256, _set_key(s), s.seed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The scans that the tables show, and what they leave out.

    Attributes:
        scans: one per model, sorted by its id.
        repeated: further scans of these models on clean sets of that size.
        absent: ids of the models that were not scanned on one.
    """

    scans: tuple[ModelScan, ...]
    repeated: int
    absent: tuple[str, ...]


def headline(scans: Sequence[ModelScan]) -> Headline:
    """Choose one scan per model: undegraded, clean images as most models had, smallest seed.

    Rates are comparable over clean sets of one size only. It is that on which most models of the
    data were scanned, the larger of two with equally many.
    """
    plain = [s for s in scans if s.clean_set.degradation is None]
    models: dict[str, dict[int, set[str]]] = {}
    for scan in plain:
        sizes = models.setdefault(scan.model.dataset, {})
        sizes.setdefault(scan.clean_set.images, set()).add(scan.model.id)
    usual = {
        dataset: max(sizes, key=lambda images: (len(sizes[images]), images))
        for dataset, sizes in models.items()
    }
    chosen: dict[str, ModelScan] = {}
    repeated = 0
    for scan in sorted(plain, key=lambda s: (s.model.id, s.seed, s.clean_set.sha256)):
        if scan.clean_set.images != usual[scan.model.dataset]:
            continue
        if scan.model.id in chosen:
            repeated += 1
        else:
            chosen[scan.model.id] = scan
    absent = {s.model.id for s in scans} - chosen.keys()
    return Headline(scans=tuple(chosen.values()), repeated=repeated, absent=tuple(sorted(absent)))


def blocks(scans: Sequence[ModelScan]) -> tuple[Block, ...]:
    """Split models into the blocks of the report.

    B is reported in two blocks: cells (attack, architecture, data) that a counting model of A
    holds, which is the headline, and cells that A does not hold. Without any model of A there is
    one block of B.

    Returns:
        Blocks that have models, the headline first, then the rest of B, all of B, and A.
    """
    held = {s.cell for s in scans if s.model.population == "A" and s.counts}
    b = tuple(s for s in scans if s.model.population == "B")
    clean = tuple(s for s in b if s.is_clean)
    known = tuple(s for s in b if s.cell in held)
    fresh = tuple(s for s in b if s.cell not in held)
    found = [Block(id="B", label="B", title="population B", scans=b)]
    if held:
        found = [
            Block(
                id="B_held",
                label="B, cells of A",
                title="population B, cells that A holds (headline)",
                scans=known,
                others=clean,
            ),
            Block(
                id="B_new",
                label="B, other cells",
                title="population B, cells that A does not hold",
                scans=fresh,
                others=clean,
            ),
            Block(id="B", label="B, all", title="population B, all cells", scans=b),
        ]
    for name in sorted({s.model.population for s in scans} - {"B"}):
        title = f"population {name}" + (" (thresholds were chosen on it)" if name == "A" else "")
        own = tuple(s for s in scans if s.model.population == name)
        found.append(Block(id=name, label=name, title=title, scans=own))
    return tuple(block for block in found if block.scans)


def by_data(found: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks, and behind each that holds several data sets its part of each."""
    parts = []
    for block in found:
        parts.append(block)
        datasets = sorted({s.model.dataset for s in block.scans})
        if len(datasets) > 1:
            parts.extend(
                replace(
                    block,
                    id=f"{block.id}_{dataset}",
                    label=f"{block.label}, {dataset}",
                    scans=tuple(s for s in block.scans if s.model.dataset == dataset),
                    others=tuple(s for s in block.others if s.model.dataset == dataset),
                )
                for dataset in datasets
            )
    return tuple(parts)


def detectors(scans: Sequence[ModelScan]) -> tuple[str, ...]:
    """Return every scanner, variant and changed setting that could judge any model, sorted."""
    return tuple(sorted({id_ for s in scans for id_ in s.outcomes if s.result(id_) is not None}))


def _set_key(scan: ModelScan) -> tuple[str, int, str]:
    return (scan.clean_set.name, scan.clean_set.images, scan.clean_set.degradation or "")


def _model_scan(rows: Sequence[ScanRow], populations: Sequence[Population]) -> ModelScan:
    first = rows[0]
    outcomes: dict[str, ScanOutcome] = {}
    changed = {row.config_sha256 for row in rows if row.is_changed}
    voting = []
    for row in sorted(rows, key=lambda r: (r.detector, r.config_sha256)):
        name = row.detector
        if not row.is_changed and row.config_sha256 in changed:
            # What did not run does not say how it was set.
            name = f"{name} with other settings"
        elif row.variant is None and not row.is_changed:
            # The main tables and those of degraded clean sets judge alike.
            clean_set = {**row.record["clean_set"], "degradation": None}
            voting.append({**row.record, "clean_set": clean_set})
        outcomes[name] = row.outcome
    if not voting:
        raise ConfigError(
            f"{first.where} and its like hold no scanner in its default form for model "
            f"{first.model.id!r}, and without one there is no verdict; give those rows too"
        )
    (scanned,) = models_of(voting)
    judged = judge(scanned, populations)
    return ModelScan(
        model=first.model,
        truth=first.truth,
        clean_set=first.clean_set,
        seed=first.seed,
        outcomes=dict(sorted(outcomes.items())),
        verdict=judged.verdict,
        combined=judged.combined,
        hardware=first.hardware,
    )
