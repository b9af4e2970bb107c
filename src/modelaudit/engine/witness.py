"""Stand-ins for the trigger, searched in the suspect and tried on the repaired model ([O]).

What scanners find in a repaired model says how it was trained: statistics stay, or are collected
anew, whatever the weights have learned. What an attacker will do is put something on an image. So
the suspect, where the backdoor is whole, is asked for what leads clean images to the target and
moves the channels as the traces in its statistics say that the trigger did; and that is put on
images for the repaired model. What follows the traces is hit hardest by a repair that prunes along
them, so each patch is also searched on for a few steps in the repaired model: what is left of the
backdoor shows there, and what still leads the suspect's images is no new shortcut. What takes more
pixels than a trigger's patch does is not heard: that can lead to classes that nobody has poisoned.
On models whose trigger is known the share that the worst of them leads to the target is seldom far
below the share of real attacks that succeed, and often above it
(docs/adr/0013-a-witness-after-repair.md, 0015-a-witness-goes-on.md,
0016-large-patches-bear-no-witness.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modelaudit.engine.effects import WORKS_FROM
from modelaudit.functional.statistics import clopper_pearson
from modelaudit.repair_results import Effect
from modelaudit.repairs.place_search import (
    PlaceSearch,
    SearchSettings,
    Traces,
    is_large_patch,
    searches,
)
from modelaudit.repairs.stand_ins import Patch
from modelaudit.repairs.targets import STAYS, accusing, are_traces_opposite, label_maps
from modelaudit.repairs.trace_match import traced_shifts
from modelaudit.results import Cost, Finding, Pattern
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.progress import Progress
    from modelaudit.repairs import RepairData
    from modelaudit.repairs.stand_ins import Form, StandIn
    from modelaudit.results import ScannerResult
    from modelaudit.suspect import Suspect

#: Raised by every change of what is found or how it decides.
WITNESS_VERSION = "6"
#: Places that are searched at most, those of strong findings before others.
MAX_PLACES = 3
#: Searches of a patch for each place that images are led to, their steps, and the images of a step.
STARTS, STEPS, BATCH = 3, 120, 64
#: Nats for a mask that covers the image; half of what `unlearn_triggers` asks, for the traces keep
#: the search from what is only large; and what it asks where there are no traces.
MASK_PRICE, MASK_PRICE_ALONE = 50.0, 100.0
#: Nats for a displacement at right angles to the traces.
TRACE_WEIGHT = 5.0
#: Farthest that a warp moves a pixel along a side, as a share of it; half as far again, and clean
#: networks have warps that lead six images in ten.
WARP_LIMIT = 1 / 32
#: A place whose patches agree with the traces less than another's, by this much in cos, is not
#: where the traces come from: what leads there does so in clean networks too.
AGREEMENT_MARGIN = 0.15
#: Share of the suspect's images that a stand-in has to lead to be a witness.
LEAST_SUCCESS = 0.5
#: Steps of a patch in the repaired model, from where the suspect's search ended.
FURTHER_STEPS = 20

_LARGE = (
    "large patches lead images to a place: they bear no witness, for such patches can lead to "
    "classes that nobody has poisoned"
)
_NO_WITNESS = (
    "no stand-in for a trigger leads the suspect's images where the scan points, if it points "
    "anywhere, or not to all these places: there only what acts within the network could be tried"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Witness:
    """Stand-ins that lead the suspect's images to one place.

    Attributes:
        scanner: id of the scanner that named the place.
        goals: where each class is led, ``(K,)`` int64; `STAYS` for one that is led nowhere.
        target: the output that all are led to; None where each class is led somewhere else.
        stand_ins: those that work on the suspect, at least one.
        agreement: largest cos, averaged over layers, between what one of them does to the channels
            and what the traces say; None without traces, and of warps.
    """

    scanner: str
    goals: Tensor
    target: int | None
    stand_ins: tuple[StandIn, ...]
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Witnesses:
    """What bears witness after every repair of one suspect.

    Attributes:
        found: one for each place where a stand-in works.
        cost: image passes of the search.
        notes: sentences for the reader of the report.
    """

    found: tuple[Witness, ...] = ()
    cost: Cost = field(default_factory=Cost)
    notes: tuple[str, ...] = ()

    def effects(
        self,
        before: Suspect,
        after: Suspect,
        images: Tensor,
        labels: Tensor,
        *,
        data: RepairData,
        seed: int,
        dtype: torch.dtype | None,
        batch_size: int = 256,
    ) -> tuple[Effect, ...]:
        """Put the stand-ins on held-out images and ask both models.

        Patches are tried as they were found in the suspect, and as a few further steps in the
        repaired model leave them, unless these make them large.

        Args:
            before: the suspect.
            after: the repaired model.
            images: held-out clean images. Shape ``(N, C, H, W)`` in [0, 1].
            labels: ``(N,)`` int64.
            data: clean images; patches are searched on with the work images.
            seed: of the run.
            dtype: of convolutions and matrix products in the search; None for float32.
            batch_size: images computed together.

        Returns:
            One effect for each witness: of its stand-ins the one that leads most images of the
            repaired model counts, patch or warp, of those that lead most of the suspect's; where
            none does, of those that were found in it. The control is the same images as they are.
        """
        made = []
        settings = _settings(FURTHER_STEPS, dtype=dtype, batch_size=batch_size)
        for place, witness in enumerate(self.found):
            goals = witness.goals[labels]
            counted = (goals != STAYS) & (goals != labels)
            trials = int(counted.sum())
            if not trials:
                continue
            shown, wanted = images[counted], goals[counted]
            further = _searched_on(witness, after, data, settings, seed=seed, place=place)
            tried = (*witness.stand_ins, *further)
            hits = [
                tuple(_hits(model, shown, wanted, one, batch_size) for model in (before, after))
                for one in tried
            ]
            # One that hardly works on the suspect has no say where another does.
            able = [i for i, (was, _) in enumerate(hits) if _has_power(was, trials)]
            # What was searched on may be a shortcut of the repaired model alone.
            heard = able or range(len(witness.stand_ins))
            worst = max(heard, key=lambda i: (hits[i][1], hits[i][0]))
            plain = int((after.predict(shown, batch_size=batch_size) == wanted).sum())
            how = str(tried[worst])
            if worst >= len(witness.stand_ins):
                how += ", searched on in the repaired model"
            what = f"a stand-in for the trigger ({how}), put on images"
            made.append(
                Effect(
                    kind="stand_in",
                    scanner=witness.scanner,
                    artefact=what,
                    target=witness.target,
                    images=trials,
                    share_before=hits[worst][0] / trials,
                    share_after=hits[worst][1] / trials,
                    interval_before=clopper_pearson(hits[worst][0], trials),
                    interval_after=clopper_pearson(hits[worst][1], trials),
                    control_share=plain / trials,
                )
            )
        return tuple(made)


def find_witnesses(
    suspect: Suspect,
    data: RepairData,
    findings: Sequence[ScannerResult],
    *,
    seed: int,
    dtype: torch.dtype | None,
    progress: Progress,
    batch_size: int = 256,
) -> Witnesses:
    """Search stand-ins for every target or shift of classes that a scan has named.

    Args:
        suspect: before any repair; it stays as it is.
        data: clean images; stand-ins are searched on the work images, the traces taken from all.
        findings: of a scan of this suspect.
        seed: of the run.
        dtype: of convolutions and matrix products in the search.
        progress: one unit for each search.
        batch_size: images computed together outside the search.

    Returns:
        What was found; nothing, with a note if the scan accuses, where it names no place or no
        stand-in leads the suspect's images there.
    """
    trusted = _trusted(findings)
    places = _places(trusted, suspect.num_classes)
    counted = suspect.passes.forward, suspect.passes.forward_backward
    found: list[Witness] = []
    notes: list[str] = []
    if places:
        count = searches(STARTS) * len(places)
        with suspect.borrowed(), progress.task("stand-ins", count) as task:
            shifts = None
            if suspect.has_batchnorm_statistics:
                shifts = traced_shifts(suspect, data.as_trained, seed=seed, batch_size=batch_size)
            for index, (goals, target, scanner) in enumerate(places):
                traces = None
                if shifts is not None:
                    is_opposite = are_traces_opposite(trusted, goals)
                    traces = Traces(found=shifts, is_opposite=is_opposite, weight=TRACE_WEIGHT)
                search = PlaceSearch(
                    suspect,
                    data,
                    goals,
                    traces=traces,
                    settings=_settings(STEPS, dtype=dtype, batch_size=batch_size),
                )
                tried = search.search(
                    STARTS,
                    least_success=LEAST_SUCCESS,
                    draws=_draws(seed, index),
                    progress=task,
                )
                kept = tried.working
                if tried.large and _LARGE not in notes:
                    notes.append(_LARGE)
                if kept:
                    found.append(
                        Witness(
                            scanner=scanner,
                            goals=goals,
                            target=target,
                            stand_ins=kept,
                            agreement=_agreement(search, kept),
                        )
                    )
    heard = _traced(found)
    if trusted and (not places or len(found) < len(places)):
        notes.append(_NO_WITNESS)
    notes += [_not_heard(one, heard) for one in found if one not in heard]
    return Witnesses(
        found=tuple(heard),
        cost=Cost(
            forward=suspect.passes.forward - counted[0],
            forward_backward=suspect.passes.forward_backward - counted[1],
        ),
        notes=tuple(notes),
    )


def _settings(steps: int, *, dtype: torch.dtype | None, batch_size: int) -> SearchSettings:
    return SearchSettings(
        steps=steps,
        batch=BATCH,
        price=MASK_PRICE,
        price_alone=MASK_PRICE_ALONE,
        warp_limit=WARP_LIMIT,
        dtype=dtype,
        batch_size=batch_size,
    )


def _searched_on(
    witness: Witness,
    after: Suspect,
    data: RepairData,
    settings: SearchSettings,
    *,
    seed: int,
    place: int,
) -> tuple[Patch, ...]:
    """Search the patches of a witness on in the repaired model, whatever they do to its traces."""
    search = PlaceSearch(after, data, witness.goals, traces=None, settings=settings)
    patches = [one for one in witness.stand_ins if isinstance(one, Patch)]
    if not len(search.images) or not settings.steps:
        return ()
    with after.borrowed():
        further = tuple(
            search.go_on(patch, generator(seed, "witness", "further", str(place), str(index)))
            for index, patch in enumerate(patches)
        )
    return tuple(patch for patch in further if not is_large_patch(patch))


def _draws(seed: int, index: int) -> Callable[[Form, int], torch.Generator]:
    return lambda form, start: generator(seed, "witness", form, str(index), str(start))


def _agreement(search: PlaceSearch, kept: Sequence[StandIn]) -> float | None:
    patches = [one for one in kept if isinstance(one, Patch)]
    if search.match is None or not patches:
        return None
    size = search.settings.batch_size
    return max(
        search.match.agreement(search.images, one.put_on, batch_size=size) for one in patches
    )


def _traced(found: Sequence[Witness]) -> list[Witness]:
    """Return those that no other one outdoes by far in agreeing with the traces."""
    known = [one.agreement for one in found if one.agreement is not None]
    least = max(known, default=0.0) - AGREEMENT_MARGIN
    return [one for one in found if one.agreement is None or one.agreement >= least]


def _not_heard(one: Witness, heard: Sequence[Witness]) -> str:
    best = max(other.agreement for other in heard if other.agreement is not None)
    where = "where the classes shift" if one.target is None else f"to output {one.target}"
    return (
        f"a stand-in leads images {where} too, and bears no witness: it moves the channels "
        f"otherwise than the traces say (cos {one.agreement:.2f}, elsewhere {best:.2f})"
    )


def _hits(
    model: Suspect, images: Tensor, wanted: Tensor, stand_in: StandIn, batch_size: int
) -> int:
    return sum(
        int((model.predict(stand_in.put_on(part), batch_size=batch_size) == goals).sum())
        for part, goals in zip(images.split(batch_size), wanted.split(batch_size), strict=True)
    )


def _has_power(hits: int, trials: int) -> bool:
    return clopper_pearson(hits, trials)[0] > WORKS_FROM


def _trusted(findings: Sequence[ScannerResult]) -> tuple[ScannerResult, ...]:
    """Return the findings that may name a place: calibrated, and strong ones if there are any.

    A place that only a suspicious finding names beside a strong one is often a wrong one, which a
    stand-in leads to as it does in clean networks.
    """
    heard = tuple(f for f in accusing(findings) if f.is_calibrated)
    return tuple(f for f in heard if f.finding is Finding.STRONG) or heard


def _places(
    trusted: Sequence[ScannerResult], num_classes: int
) -> list[tuple[Tensor, int | None, str]]:
    """Return where each class is led, to which one target if to one, and who says so."""
    maps = label_maps(trusted, num_classes)
    shifting = [f for f in trusted if f.pattern is Pattern.ALL_TO_ALL and f.evidence.get("arrows")]
    if maps and shifting:
        return [(maps[0], None, shifting[0].id)]
    places: list[tuple[Tensor, int | None, str]] = []
    for goals in maps[:MAX_PLACES]:
        target = int(goals.max())
        scanner = next(f.id for f in trusted if target in f.target_labels)
        places.append((goals, target, scanner))
    return places
