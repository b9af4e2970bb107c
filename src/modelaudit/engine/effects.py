"""What a scanner's artefact does before and after a repair.

A re-scan looks for a backdoor anew, and a repair that trains re-estimates the very statistics that
some scanners read. The artefact that was found before is a more direct witness: it is tried on both
models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.functional.statistics import clopper_pearson
from modelaudit.repair_results import Effect
from modelaudit.results import Pattern
from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from modelaudit.results import Json, ScannerResult
    from modelaudit.suspect import Suspect

#: Share of the images from which an artefact still works, by its lower bound (§0.4).
WORKS_FROM = 0.5


def effects(
    results: Sequence[ScannerResult],
    before: Suspect,
    after: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 256,
) -> tuple[Effect, ...]:
    """Try every artefact of the scan before on both models.

    Args:
        results: of the scan before. Those with ``evidence["push"]`` (layer, channel, amount) have
            an artefact: the amount added to the inputs of BatchNorm channels.
        before: the suspect.
        after: the repaired model.
        images: held-out clean images.
        labels: ``(N,)`` int64.
        batch_size: images computed together.

    Returns:
        One effect per artefact, in the results' order.
    """
    found = []
    for result in results:
        push = _push(result.evidence)
        target = result.target_labels[0] if result.target_labels else None
        if not push or (target is None and result.pattern is not Pattern.ALL_TO_ALL):
            continue
        goals = _goals(result, labels, target)
        counted = goals != labels
        counted &= goals >= 0
        trials = int(counted.sum())
        if not trials:
            continue
        hits = [
            _hits(model, push, images[counted], goals[counted], batch_size=batch_size)
            for model in (before, after)
        ]
        found.append(
            Effect(
                scanner=result.id,
                artefact=f"{len(push)} channels pushed to where the backdoor had them",
                target=target,
                images=trials,
                share_before=hits[0] / trials,
                share_after=hits[1] / trials,
                interval_before=clopper_pearson(hits[0], trials),
                interval_after=clopper_pearson(hits[1], trials),
            )
        )
    return tuple(found)


def still_works(effect: Effect) -> bool:
    """Whether the artefact still leads most images to its target, beyond chance."""
    return effect.interval_after[0] > WORKS_FROM


def _push(evidence: Mapping[str, Json]) -> list[tuple[str, int, float]]:
    rows = evidence.get("push")
    if not isinstance(rows, list | tuple):
        return []
    return [(str(row[0]), int(row[1]), float(row[2])) for row in rows]  # type: ignore[index, arg-type]


def _goals(result: ScannerResult, labels: Tensor, target: int | None) -> Tensor:
    """Return where the artefact leads each image; -1 where nothing is known."""
    if target is not None:
        return torch.full_like(labels, target)
    arrows = result.evidence.get("arrows")
    if not isinstance(arrows, list | tuple):
        return torch.full_like(labels, -1)
    return torch.tensor([int(a) for a in arrows], dtype=torch.int64)[labels]  # type: ignore[arg-type]


def _hits(
    model: Suspect,
    push: Sequence[tuple[str, int, float]],
    images: Tensor,
    goals: Tensor,
    *,
    batch_size: int,
) -> int:
    channels = {site.name: site.channels for site in model.sites}
    amounts: dict[str, Tensor] = {}
    for name, index, amount in push:
        values = amounts.setdefault(name, torch.zeros(channels[name], device=model.device))
        values[index] = amount
    with (
        model.borrowed(),
        model.edited({name: SiteEdit(push=values) for name, values in amounts.items()}),
    ):
        return int((model.predict(images, batch_size=batch_size) == goals).sum())
