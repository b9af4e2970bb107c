"""What went wrong, by name: weak attacks, missed models, false alarms, and every model in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.bench.tables.naming import naming
from modelaudit.bench.tables.population import COMBINED, VERDICT
from modelaudit.bench.tables.table import NOTHING, Table, number, percent, rate_fields, rate_text
from modelaudit.functional.rates import rate
from modelaudit.results import FailedScan, Finding, Pattern, ScannerResult, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.bench.tables.population import Block, ModelScan
    from modelaudit.bench.tables.table import Value

#: share of found models below which an attack is named
WEAK_BELOW = 0.90


def weak_attacks_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return every attack of which the verdict finds less than nine in ten, per block."""
    rows, records = [], []
    for block in blocks:
        attacks: dict[tuple[str, str], list[ModelScan]] = {}
        for scan in block.attacked:
            attacks.setdefault((scan.truth.name, scan.model.dataset), []).append(scan)
        for (attack, dataset), scans in sorted(attacks.items()):
            found = rate(sum(s.is_flagged(VERDICT) for s in scans), len(scans))
            share = found.fraction
            if share is None or share >= WEAK_BELOW:
                continue
            judged = {name: [s for s in scans if s.result(name) is not None] for name in detectors}
            alone = {
                name: (sum(s.is_flagged(name) for s in own), len(own))
                for name, own in judged.items()
            }
            rows.append(
                (
                    block.label,
                    attack,
                    dataset,
                    rate_text(found),
                    ", ".join(f"{name} {k} of {n}" for name, (k, n) in alone.items() if n),
                )
            )
            records.append(
                {
                    "block": block.id,
                    "attack": attack,
                    "dataset": dataset,
                    **rate_fields("found", found),
                    **{f"flagged_by_{name}": k for name, (k, _) in alone.items()},
                    **{f"judged_by_{name}": n for name, (_, n) in alone.items()},
                }
            )
    return Table(
        name="weak_attacks",
        title=f"Attacks of which less than {percent(WEAK_BELOW, 0)} is found",
        header=("block", "attack", "data", "found by the verdict", "flagged by each alone"),
        rows=tuple(rows),
        records=tuple(records),
        notes=("Of the models that the scanner could judge; without any it is left out.",),
    )


def misses_table(blocks: Sequence[Block], detectors: Sequence[str]) -> Table:
    """Return every model whose verdict is not right, with every scanner's score.

    Args:
        blocks: disjoint ones, or models are listed twice.
        detectors: columns.
    """
    wrong = [
        (block, scan)
        for block in blocks
        for scan in (*block.attacked, *block.clean)
        if judgement(scan) != "right"
    ]
    return Table(
        name="misses",
        title="Every verdict that is not right",
        header=("block", "model", "truth", "verdict", "", *_score_header(detectors)),
        rows=tuple(
            (
                block.label,
                scan.model.id,
                truth_text(scan),
                f"{scan.verdict.verdict} ({scan.verdict.reason_code})",
                judgement(scan),
                *_scores(scan, detectors),
            )
            for block, scan in wrong
        ),
        records=tuple({"block": block.id, **_record(scan, detectors)} for block, scan in wrong),
        notes=(
            (
                "A scanner's cell: score, finding (s suspicious, S strong, – none), label named. "
                "`no power`, `skipped` and `failed` stand in words, the reasons in the rows."
            ),
        ),
    )


def models_table(scans: Sequence[ModelScan], detectors: Sequence[str]) -> Table:
    """Return every model, those that failed the gate included, with everything that was said."""
    ordered = sorted(
        scans,
        key=lambda s: (
            s.model.population,
            s.model.dataset,
            s.model.architecture,
            s.model.width,
            not s.is_clean,
            s.truth.name,
            s.model.id,
        ),
    )
    return Table(
        name="models",
        title="Every model",
        header=(
            "population",
            "model",
            "data",
            "architecture",
            "ACC",
            "ASR",
            "gate",
            "truth",
            "verdict",
            "named",
            "",
            *_score_header(detectors),
        ),
        rows=tuple(
            (
                scan.model.population,
                scan.model.id,
                scan.model.dataset,
                f"{scan.model.architecture} w{scan.model.width}",
                percent(scan.truth.acc),
                percent(scan.truth.asr),
                {None: NOTHING, True: "passed", False: "failed"}[scan.truth.gate_passed],
                truth_text(scan),
                scan.verdict.verdict,
                named_text(scan),
                judgement(scan),
                *_scores(scan, detectors),
            )
            for scan in ordered
        ),
        records=tuple(_record(scan, detectors) for scan in ordered),
    )


def truth_text(scan: ModelScan) -> str:
    """Return what the model is, in words."""
    truth = scan.truth
    if truth.attack is None:
        return "clean"
    return truth.name if truth.target is None else f"{truth.name} → {truth.target}"


def named_text(scan: ModelScan) -> str:
    """Return what the verdict names: labels, or the pattern."""
    labels = ", ".join(map(str, scan.verdict.target_labels))
    return labels or scan.verdict.pattern or NOTHING


def judgement(scan: ModelScan) -> str:
    """Say how the verdict stands to the truth."""
    verdict = scan.verdict.verdict
    if verdict not in {Verdict.CLEAN, Verdict.BACKDOORED}:
        return "undecided"
    if scan.is_clean:
        return "FALSE ALARM" if verdict is Verdict.BACKDOORED else "right"
    if verdict is Verdict.CLEAN:
        return "MISSED"
    if scan.truth.label_map == "all":
        is_named = scan.verdict.pattern is Pattern.ALL_TO_ALL
        return "right" if is_named else "found, pattern not"
    return "right" if naming(scan, VERDICT) == "right" else "found, target not"


def _score_header(detectors: Sequence[str]) -> tuple[str, ...]:
    return (COMBINED, *detectors)


def _scores(scan: ModelScan, detectors: Sequence[str]) -> tuple[str, ...]:
    combined = scan.combined
    match = "" if combined.score is None else f" ({combined.match})"
    return (f"{number(combined.score)}{match}", *(_score_text(scan, name) for name in detectors))


def _score_text(scan: ModelScan, name: str) -> str:
    outcome = scan.outcomes.get(name)
    if outcome is None:
        return NOTHING
    if isinstance(outcome, FailedScan):
        return "failed"
    if not isinstance(outcome, ScannerResult):
        return "skipped"
    if outcome.finding is Finding.NO_POWER:
        return "no power"
    mark = {Finding.NONE: NOTHING, Finding.SUSPICIOUS: "s", Finding.STRONG: "S"}[outcome.finding]
    named = f" → {', '.join(map(str, outcome.target_labels))}" if outcome.target_labels else ""
    return f"{number(outcome.score)} {mark}{named}"


def _record(scan: ModelScan, detectors: Sequence[str]) -> dict[str, Value]:
    record: dict[str, Value] = {
        "population": scan.model.population,
        "model": scan.model.id,
        "dataset": scan.model.dataset,
        "architecture": scan.model.architecture,
        "width": scan.model.width,
        "attack": scan.truth.attack,
        "label_map": scan.truth.label_map,
        "target": scan.truth.target,
        "acc": scan.truth.acc,
        "asr": scan.truth.asr,
        "gate_passed": scan.truth.gate_passed,
        "clean_images": scan.clean_set.images,
        "verdict": scan.verdict.verdict.value,
        "reason_code": scan.verdict.reason_code,
        "reason": scan.verdict.reason,
        "named": " ".join(map(str, scan.verdict.target_labels)),
        "pattern": scan.verdict.pattern.value if scan.verdict.pattern else None,
        "judgement": judgement(scan),
        "combined_score": scan.combined.score,
        "combined_match": scan.combined.match.value,
        "combined_p_value": scan.combined.p_value,
    }
    for name in detectors:
        outcome = scan.outcomes.get(name)
        found = outcome if isinstance(outcome, ScannerResult) else None
        record |= {
            f"{name} score": None if found is None else found.score,
            f"{name} finding": None if found is None else found.finding.value,
            f"{name} named": None if found is None else " ".join(map(str, found.target_labels)),
        }
    return record
