"""Building reference populations from scanned models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.calibration.assess import thresholds
from modelaudit.calibration.combine import null_of
from modelaudit.calibration.population import (
    DIGITS,
    ENOUGH_CLEAN,
    MIN_CLEAN,
    ModelStatistics,
    Population,
    ScannerReference,
    config_sha256,
)
from modelaudit.calibration.transforms import transform_of, transformed
from modelaudit.errors import ConfigError
from modelaudit.results import Finding, ScannerResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelaudit.calibration.circumstances import Bucket
    from modelaudit.calibration.evidence import ScannedModel

#: One clean model in a hundred is kept from ``clean`` by its combined score, and one in a thousand
#: has one that could support a strong finding, which clean models hardly ever have.
SUSPICIOUS_LEVEL = 0.01
STRONG_LEVEL = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of the models.

    Attributes:
        populations: one per bucket, the one with the most clean models first.
        left_out: name and reason for each model that is in none.
    """

    populations: tuple[Population, ...]
    left_out: tuple[tuple[str, str], ...]


def build(models: Sequence[ScannedModel], *, id_: str, notes: Sequence[str] = ()) -> Built:
    """Build a population of each bucket that holds enough clean models.

    A model whose clean set allowed no verdict, whose attack failed its gate, or that was scanned by
    other versions or settings than most of its bucket is left out, with the reason. Nothing is
    drawn at random and no order matters: the same models give the same bytes.

    Args:
        models: scanned models, clean and attacked.
        id_: name of the population; with several buckets each gets its own ending.
        notes: sentences for the reader.

    Raises:
        ConfigError: no bucket holds `MIN_CLEAN` clean models with the same scanners, or one model
            appears twice in a bucket.
    """
    left_out: list[tuple[str, str]] = []
    buckets: dict[Bucket, list[ScannedModel]] = {}
    for model in sorted(models, key=lambda m: m.id):
        bucket = model.circumstances.bucket
        reason = _unfit(model)
        if bucket is None:
            reason = reason or "too few clean images or classes"
        if reason is not None or bucket is None:
            left_out.append((model.id, str(reason)))
        else:
            buckets.setdefault(bucket, []).append(model)
    found: list[tuple[Bucket, list[ScannedModel], list[ScannerReference]]] = []
    for bucket, group in buckets.items():
        references, kept = _agreeing(group, left_out)
        clean = sum(model.attack is None for model in kept)
        if clean >= MIN_CLEAN and references:
            found.append((bucket, kept, references))
        else:
            few = f"{clean} clean models of its kind, a population needs {MIN_CLEAN}"
            left_out.extend((model.id, few) for model in kept)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out[:5])
        raise ConfigError(
            f"a population needs {MIN_CLEAN} clean models of one kind, scanned alike; "
            f"got {len(models)} models, of which none can be used"
            + (f" ({reasons})" if reasons else "")
        )
    found.sort(key=lambda item: (-sum(m.attack is None for m in item[1]), _ending(item[0])))
    return Built(
        populations=tuple(
            _population(
                id_ if len(found) == 1 else f"{id_}-{_ending(bucket)}",
                bucket,
                kept,
                references,
                notes,
            )
            for bucket, kept, references in found
        ),
        left_out=tuple(sorted(left_out)),
    )


def _unfit(model: ScannedModel) -> str | None:
    if model.obstacles:
        return "; ".join(model.obstacles)
    if model.attack is not None and model.gate_passed is False:
        return "its attack failed the acceptance gate"
    return None


def _scores(model: ScannedModel) -> dict[str, ScannerResult]:
    return {
        outcome.id: outcome
        for outcome in model.outcomes
        if isinstance(outcome, ScannerResult)
        and outcome.is_calibrated
        and outcome.finding is not Finding.NO_POWER
        and outcome.score is not None
    }


def _reference(result: ScannerResult) -> ScannerReference:
    return ScannerReference(
        id=result.id,
        version=result.version,
        family=result.family,
        config_sha256=config_sha256(result.config),
        transform=transform_of(result.id),
    )


def _agreeing(
    group: Iterable[ScannedModel], left_out: list[tuple[str, str]]
) -> tuple[list[ScannerReference], list[ScannedModel]]:
    """Return the scanners that most clean models were scanned with, and the models that agree."""
    group = list(group)
    clean = [model for model in group if model.attack is None]
    references = []
    for id_ in sorted({id_ for model in clean for id_ in _scores(model)}):
        forms = [_reference(_scores(model)[id_]) for model in clean if id_ in _scores(model)]
        counted = {form: forms.count(form) for form in forms}
        form, most = max(counted.items(), key=lambda item: (item[1], item[0].config_sha256))
        # a scanner that is mostly silent on clean models has no clean distribution
        if most >= MIN_CLEAN and 2 * most >= len(clean):
            references.append(form)
    kept = []
    by_id = {reference.id: reference for reference in references}
    for model in group:
        odd = [
            id_
            for id_, result in _scores(model).items()
            if id_ in by_id and _reference(result) != by_id[id_]
        ]
        if odd:
            left_out.append((model.id, f"another version or settings of {', '.join(odd)}"))
        elif references and not set(_scores(model)) & set(by_id):
            left_out.append((model.id, "no scanner gave a score"))
        else:
            kept.append(model)
    names = [model.id for model in kept]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"model {twice[0]!r} was scanned twice under the same circumstances; give the rows of "
            "one scan of each model"
        )
    return references, kept


def _population(
    id_: str,
    bucket: Bucket,
    models: Sequence[ScannedModel],
    references: Sequence[ScannerReference],
    notes: Sequence[str],
) -> Population:
    records = tuple(
        ModelStatistics(
            id=model.id,
            architecture=model.circumstances.architecture.partition(" ")[0],
            dataset=model.dataset,
            classes=model.circumstances.classes,
            input_size=model.circumstances.input_size,
            images=model.circumstances.images,
            attack=model.attack,
            statistics={r.id: _statistic(model, r) for r in references},
        )
        for model in models
    )
    clean = [model for model in models if model.attack is None]
    said = list(notes)
    if len(clean) < ENOUGH_CLEAN:
        said.append(
            f"only {len(clean)} clean models: empirical p-values below 1/{len(clean) + 1} do not "
            "exist, and the combined score supports no accusation"
        )
    draft = Population(
        id=id_,
        families=tuple(sorted({model.circumstances.family for model in clean})),
        bucket=bucket,
        scanners=tuple(references),
        models=records,
        suspicious_level=SUSPICIOUS_LEVEL,
        strong_level=STRONG_LEVEL,
        suspicious=0.0,
        strong=0.0,
    )
    suspicious, strong = full_thresholds(draft)
    return Population(
        id=draft.id,
        families=draft.families,
        bucket=draft.bucket,
        scanners=draft.scanners,
        models=draft.models,
        suspicious_level=SUSPICIOUS_LEVEL,
        strong_level=STRONG_LEVEL,
        suspicious=suspicious,
        strong=strong,
        clean_sets=tuple(sorted({m.clean_set for m in models if m.clean_set})),
        hardware=tuple(sorted({m.hardware for m in models if m.hardware})),
        versions=_versions(models),
        notes=tuple(said),
    )


def full_thresholds(population: Population) -> tuple[float, float]:
    """Return the suspicious and strong combined scores with every scanner of the population.

    Raises:
        ConfigError: too few clean models have every statistic.
    """
    null = null_of(population.clean, tuple(scanner.id for scanner in population.scanners))
    if null is None:
        raise ConfigError(
            f"population {population.id!r}: expected at least {MIN_CLEAN} clean models with every "
            "statistic; leave out the scanner that is missing most often"
        )
    return thresholds(population, null)


def _statistic(model: ScannedModel, reference: ScannerReference) -> float | None:
    result = _scores(model).get(reference.id)
    value = None if result is None else transformed(result, reference.transform)
    # as many digits as the file keeps, so that a population decides alike before and after
    return None if value is None else round(value, DIGITS)


def _versions(models: Sequence[ScannedModel]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for model in models:
        for name, version in model.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(found[name])) for name in sorted(found)}


def _ending(bucket: Bucket) -> str:
    """Return what tells one bucket's population from another's, as part of its id."""
    side = {0: "large"}.get(bucket.input_size, f"i{bucket.input_size}")
    norm = "" if bucket.has_batchnorm else "-nobn"
    labels = "" if bucket.has_labels else "-unlabelled"
    return f"k{bucket.classes}-{side}-n{bucket.images}{norm}{labels}"
