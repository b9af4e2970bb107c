"""Choosing the reference population for one scan, and what it says of the suspect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.calibration.circumstances import differences
from modelaudit.calibration.combine import null_of
from modelaudit.calibration.population import ENOUGH_CLEAN, config_sha256
from modelaudit.calibration.transforms import transformed
from modelaudit.functional.rates import rate
from modelaudit.results import CombinedScore, Finding, Match, ScannerResult, SkippedScan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.calibration.circumstances import Circumstances
    from modelaudit.calibration.combine import Null
    from modelaudit.calibration.population import Population
    from modelaudit.results import ScanOutcome


def assess(
    outcomes: Sequence[ScanOutcome],
    circumstances: Circumstances,
    populations: Sequence[Population],
    *,
    alpha: float = 0.05,
) -> CombinedScore:
    """Compare one scan with the first population that matches, else the first to borrow.

    Args:
        outcomes: one per requested scanner.
        circumstances: of the scan.
        populations: in order of preference: the user's before those that are shipped.
        alpha: level that an empirical p-value must be able to reach to be shown.

    Returns:
        The combined score with its thresholds and p-values; `Match.NONE` with the reason where no
        population fits.
    """
    voting = _voting(outcomes)
    borrowed: Population | None = None
    nearest: tuple[int, str] | None = None
    for population in populations:
        misfits = _misfits(population, circumstances, voting)
        if misfits:
            text = f"the nearest, {population.id}, holds {'; '.join(misfits)}"
            if nearest is None or len(misfits) < nearest[0]:
                nearest = len(misfits), text
        elif circumstances.family in population.families:
            return _compared(population, outcomes, Match.MATCHED, "", alpha)
        elif borrowed is None:
            borrowed = population
    if borrowed is not None:
        families = ", ".join(borrowed.families)
        reason = f"{borrowed.id} holds {families}, no {circumstances.family}"
        return _compared(borrowed, outcomes, Match.BORROWED, reason, alpha)
    if nearest is None:
        return CombinedScore(match=Match.NONE, reason="there is no reference population at all")
    return CombinedScore(
        match=Match.NONE,
        reason=f"no reference population was scanned under these circumstances: {nearest[1]}",
    )


def combined_score(results: Sequence[ScanOutcome], population: Population) -> float | None:
    """Return the combined score of one model's results, whatever its circumstances.

    Results that cannot vote (plug-ins, variants, changed settings), that the population does not
    hold in this very form, that have no score or no power are left out on both sides.

    Args:
        results: outcomes of one model; skipped and failed ones are ignored.
        population: the reference.

    Returns:
        A number from 0 upwards; None where no scanner is left to combine.
    """
    usable = {
        scanner: result
        for scanner, result in _voting(results).items()
        if not _contradictions(population, {scanner: result})
    }
    statistics = _statistics(population, usable)
    null = null_of(population.clean, tuple(statistics))
    return None if null is None else null.score(statistics)


def _voting(outcomes: Sequence[ScanOutcome]) -> dict[str, ScannerResult]:
    return {
        outcome.id: outcome
        for outcome in outcomes
        if isinstance(outcome, ScannerResult)
        and outcome.is_calibrated
        and outcome.finding is not Finding.NO_POWER
        and outcome.score is not None
    }


def _statistics(population: Population, voting: dict[str, ScannerResult]) -> dict[str, float]:
    found = {}
    for scanner in population.scanners:
        if scanner.id in voting:
            value = transformed(voting[scanner.id], scanner.transform)
            if value is not None:
                found[scanner.id] = value
    return found


def _contradictions(population: Population, voting: dict[str, ScannerResult]) -> list[str]:
    """Return which scanners the population holds in another form, in words."""
    said = []
    for scanner in population.scanners:
        result = voting.get(scanner.id)
        if result is None:
            continue
        if result.version != scanner.version:
            said.append(f"version {scanner.version} of {scanner.id} instead of {result.version}")
        elif config_sha256(result.config) != scanner.config_sha256:
            said.append(f"other settings of {scanner.id}")
    return said


def _misfits(
    population: Population, circumstances: Circumstances, voting: dict[str, ScannerResult]
) -> list[str]:
    bucket = circumstances.bucket
    if bucket is None:
        return [
            f"no scans of {circumstances.classes} classes with {circumstances.images} clean images"
        ]
    said = [*differences(population.bucket, bucket), *_contradictions(population, voting)]
    if not said and null_of(population.clean, tuple(_statistics(population, voting))) is None:
        said.append("too few clean models with the scores that were found here")
    return said


def _compared(
    population: Population,
    outcomes: Sequence[ScanOutcome],
    match: Match,
    reason: str,
    alpha: float,
) -> CombinedScore:
    voting = _voting(outcomes)
    statistics = _statistics(population, voting)
    null = null_of(population.clean, tuple(statistics))
    assert null is not None
    score = null.score(statistics)
    count = len(null.scores)
    suspicious, strong = thresholds(population, null)
    is_matched = match is Match.MATCHED
    rates = population.rates
    is_measured = is_matched and rates is not None and rates.clean > 0
    measured = None
    if is_measured and _is_the_measured_rule(population, outcomes):
        assert rates is not None
        measured = rate(rates.false_alarms, rates.clean)
    return CombinedScore(
        match=match,
        reason=reason,
        population=population.id,
        clean_models=count,
        scanners=tuple(statistics),
        missing=tuple(s.id for s in population.scanners if s.id not in statistics),
        score=score,
        suspicious=suspicious,
        strong=strong,
        p_value=null.empirical(score) if count * alpha >= 1 else None,
        predictive_p_value=null.predictive(score),
        supported=_supported(population, voting, statistics, null) if is_matched else (),
        false_positive_rate=None if measured is None else measured.fraction,
        false_positive_interval=None if measured is None else (measured.low, measured.high),
        false_positive_models=0 if measured is None else measured.trials,
    )


def thresholds(population: Population, null: Null) -> tuple[float, float]:
    """Return the suspicious and the strong combined score over the scanners of `null`.

    They are the scores at the population's two levels; the strong one also lies above every clean
    model of the population.
    """
    suspicious = null.threshold(population.suspicious_level)
    return suspicious, max(null.threshold(population.strong_level), suspicious, *null.scores)


def _supported(
    population: Population,
    voting: dict[str, ScannerResult],
    statistics: dict[str, float],
    null: Null,
) -> tuple[str, ...]:
    """Return whose strong finding counts as supported (docs/adr/0009-combined-score.md).

    The combined score of all scanners must exceed the strong threshold, and that of the *other*
    families alone their suspicious one: a strong finding does not support itself.
    """
    _, strong = thresholds(population, null)
    if len(null.scores) < ENOUGH_CLEAN or null.score(statistics) <= strong:
        return ()
    families = {scanner.id: scanner.family for scanner in population.scanners}
    found = []
    for id_ in statistics:
        if voting[id_].finding is not Finding.STRONG:
            continue
        others = [other for other in statistics if families[other] != families[id_]]
        rest = null_of(population.clean, others)
        if rest is None or len(rest.scores) < ENOUGH_CLEAN:
            continue
        if rest.score(statistics) >= thresholds(population, rest)[0]:
            found.append(id_)
    return tuple(found)


def _is_the_measured_rule(population: Population, outcomes: Sequence[ScanOutcome]) -> bool:
    """Whether the population's rates are those of the rule that these outcomes go through.

    Each scanner of the population was asked for and ran, or was skipped for a need that it
    declares; and no further scanner with a vote took part.
    """
    known = {scanner.id for scanner in population.scanners}
    present = {
        outcome.id
        for outcome in outcomes
        if (isinstance(outcome, ScannerResult) and outcome.is_calibrated)
        or (isinstance(outcome, SkippedScan) and outcome.is_declared_need)
    }
    return known <= present and set(_voting(outcomes)) <= known
