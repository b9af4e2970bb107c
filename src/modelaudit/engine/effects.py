"""What a scanner's artefact does before and after a repair, and which artefacts decide.

A re-scan looks for a backdoor anew, and a repair that trains re-estimates the very statistics that
some scanners read, while one that prunes leaves them as they were. What the traces in them lead to
is tried on both models (docs/adr/0010-re-scan-after-a-repair.md). A push acts within the network,
where in deep layers any class's own direction leads as far; where there is a stand-in for the
trigger, which is put on images (`modelaudit.engine.witness`), that decides instead.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.statistics import clopper_pearson
from modelaudit.repair_results import Effect
from modelaudit.repairs.pushes import amounts_of, edits_of
from modelaudit.repairs.targets import push_of
from modelaudit.results import Pattern
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.targets import Push
    from modelaudit.results import ScannerResult
    from modelaudit.scanners import CleanImages
    from modelaudit.suspect import Suspect

#: Share of the images from which an artefact still works, by its lower bound (§0.4).
WORKS_FROM = 0.5
#: Share of the images, beyond that of its controls, up to which an artefact leads nowhere.
NOWHERE_UP_TO = 0.1
#: Upper 95 % bound of a stand-in's share, beyond its control, up to which it leads nowhere: few
#: images show nothing.
NOWHERE_BOUND = 0.2
#: Share of the images, beyond that of its control, up to which a stand-in leaves nothing to try
#: another repair for (docs/adr/0030-when-auto-goes-on.md).
SETTLED_UP_TO = 0.05
#: Random sets of other channels that a push is compared with.
CONTROL_SETS = 5
#: How far traced channels are tried, in what suits the whole push.
_FACTORS = (1.0, 2.0, 4.0, -1.0, -2.0, -4.0)

#: Family of the scanners that read running statistics.
STATISTICS_FAMILY = "bn_statistics"
#: Family of the scanners whose noise is an artefact.
NOISE_FAMILY = "parameter_noise"


def effects(
    results: Sequence[ScannerResult],
    before: Suspect,
    after: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    is_of_rescan: bool = False,
    earlier: Sequence[ScannerResult] = (),
    batch_size: int = 256,
) -> tuple[Effect, ...]:
    """Try every artefact of a scan on both models.

    Args:
        results: of the scan before, or of the re-scan. Those with ``evidence["push"]`` (layer,
            channel, amount) have an artefact: the amount added to the inputs of BatchNorm channels.
            It leads to the result's target, or, where none is named, each class to where
            ``evidence["arrows"]`` say.
        before: the suspect.
        after: the repaired model.
        images: held-out clean images.
        labels: ``(N,)`` int64.
        seed: the run's seed, which draws the controls.
        is_of_rescan: whether `results` are the re-scan's.
        earlier: of a re-scan, what the scan before said: which channels carried a trace then.
        batch_size: images computed together.

    Returns:
        One effect per artefact, in the results' order.
    """
    named = {label for result in earlier for label in result.target_labels}
    found = []
    for result in results:
        if not result.is_calibrated:
            continue
        push = push_of(result)
        target = result.target_labels[0] if result.target_labels else None
        goals = _goals(result, labels, target)
        counted = (goals != labels) & (goals >= 0)
        trials = int(counted.sum())
        if not push or not trials:
            continue
        shown, wanted = images[counted], goals[counted]
        hits = [_hits(m, push, shown, wanted, batch_size=batch_size) for m in (before, after)]
        control = None
        if hits[1] > NOWHERE_UP_TO * trials:
            draws = generator(seed, "effects", result.id, str(is_of_rescan))
            sets = [_control(after, push, draws) for _ in range(CONTROL_SETS)]
            count = sum(_hits(after, s, shown, wanted, batch_size=batch_size) for s in sets)
            control = count / (CONTROL_SETS * trials)
        traced = _traced_before(result, earlier)
        where = "the statistics are still off" if is_of_rescan else "the backdoor had them"
        found.append(
            Effect(
                scanner=result.id,
                artefact=f"{len(push)} channels pushed to where {where}",
                target=target,
                images=trials,
                share_before=hits[0] / trials,
                share_after=hits[1] / trials,
                interval_before=clopper_pearson(hits[0], trials),
                interval_after=clopper_pearson(hits[1], trials),
                control_share=control,
                is_of_rescan=is_of_rescan,
                is_disproved=is_of_rescan and is_disproved(result),
                is_by_repair=bool(traced)
                and target not in {None, *named}
                and _is_by_repair(
                    push, traced, before, after, shown, wanted, batch_size=batch_size
                ),
            )
        )
    return tuple(found)


def noise_effects(
    before: Sequence[ScannerResult], after: Sequence[ScannerResult], clean: CleanImages
) -> tuple[Effect, ...]:
    """Return what neuron noise did to the target that it named before, as both scans measured it.

    Nothing is run again: the shares of both scans are compared. The largest share that another
    class has after the repair is the control, as in the scanner's own score.

    Args:
        before: results of the scan before.
        after: results of the re-scan.
        clean: the clean set of both, whose held-out part they judged.
    """
    again = {result.id: result for result in after if result.family == NOISE_FAMILY}
    # the scanner's shares are of images that the model labels rightly
    judged = clean.labels[clean.judge]
    judged = judged[clean.predictions[clean.judge] == judged]
    found = []
    for result in before:
        later = again.get(result.id)
        if later is None or not (result.is_calibrated and later.is_calibrated):
            continue
        if not (result.target_labels and result.per_class and later.per_class):
            continue
        target = result.target_labels[0]
        shares = result.per_class[target], later.per_class[target]
        trials = int((judged != target).sum())
        counts = [round(share * trials) for share in shares]
        found.append(
            Effect(
                kind="noise",
                scanner=result.id,
                artefact="noise on every neuron, searched anew in each model",
                target=target,
                images=trials,
                share_before=shares[0],
                share_after=shares[1],
                interval_before=clopper_pearson(counts[0], trials),
                interval_after=clopper_pearson(counts[1], trials),
                control_share=max(s for c, s in enumerate(later.per_class) if c != target),
            )
        )
    return tuple(found)


def deciding(
    effects: Sequence[Effect], *, have_weights_drifted: bool = False
) -> tuple[Effect, ...]:
    """Return the effects that a verdict may rest on.

    Where stand-ins lead most of the suspect's images to a target (lower 95 % bound above one half),
    what was pushed or made noisy within the network toward that target is for the reader alone. So
    are pushes of the re-scan by a scanner which had named it, toward no target, or toward another
    by channels without a trace in the suspect, or, where the weights have drifted, disproved ones.

    Args:
        effects: of artefacts of both scans.
        have_weights_drifted: whether weights were trained under statistics that stayed: these are
            off the clean ones then in channels that the network needs, and what pushes them leads
            anywhere.
    """
    witnessed = {effect.target for effect in effects if is_powerful(effect)}
    named = {e.scanner for e in effects if not e.is_of_rescan and e.target in witnessed}

    def is_answered(effect: Effect) -> bool:
        if effect.target in witnessed:
            return True
        is_idle = effect.target is None or effect.is_by_repair
        is_idle |= have_weights_drifted and effect.is_disproved
        return is_idle and effect.is_of_rescan and effect.scanner in named

    return tuple(e for e in effects if is_powerful(e) or not is_answered(e))


def is_disproved(result: ScannerResult) -> bool:
    """Whether the scanner's own controls speak against the one target that its push names.

    Other channels lead there as well, or the network needs the pushed ones, which a trigger's own
    are not: removing them costs more than the scanner's setting allows. A scanner without controls,
    or whose controls had no channels to draw from, disproves nothing.
    """
    if result.pattern is not Pattern.ALL_TO_ONE or result.is_confirmed:
        return False
    cost, free = result.evidence.get("pruned_accuracy_drop"), result.config.get("max_accuracy_drop")
    is_needed = isinstance(cost, float) and isinstance(free, float) and cost > free
    return is_needed or result.is_refuted


def is_powerful(effect: Effect) -> bool:
    """Whether the effect is of a stand-in that leads most of the suspect's images."""
    return effect.kind == "stand_in" and effect.interval_before[0] > WORKS_FROM


def still_works(effect: Effect) -> bool:
    """Whether the artefact still leads most images to its target, beyond chance."""
    return effect.interval_after[0] > WORKS_FROM and not leads_nowhere(effect)


def leads_nowhere(effect: Effect) -> bool:
    """Whether the artefact leads hardly more images there than its control does."""
    if effect.kind == "stand_in":
        upper = effect.interval_after[1] - (effect.control_share or 0.0)
        return effect.share_beyond_control <= NOWHERE_UP_TO and upper <= NOWHERE_BOUND
    return effect.share_beyond_control <= NOWHERE_UP_TO


def is_settled(tried: Sequence[Effect]) -> bool:
    """Whether no stand-in that may decide leads more than a twentieth beyond its control."""
    return all(
        effect.share_beyond_control <= SETTLED_UP_TO
        for effect in tried
        if effect.kind == "stand_in" and effect.is_deciding
    )


def _traced_before(result: ScannerResult, earlier: Sequence[ScannerResult]) -> Push:
    """Return the push of the suspect's traces, by the same scanner with the same settings.

    Poisoned images leave traces in few channels: where half of all that live have one, the median
    that they are measured by has one too, and what carries none is not known. Then nothing is
    returned, as of a scanner that had nothing to push.
    """
    for other in earlier:
        is_same = other.id == result.id and _settings(other) == _settings(result)
        is_able = other.is_calibrated and result.family == other.family == STATISTICS_FAMILY
        if is_same and is_able:
            push, live = push_of(other), other.evidence.get("live_channels")
            return push if isinstance(live, int) and 2 * len(push) < live else ()
    return ()


def _settings(result: ScannerResult) -> str:
    """Return a scanner's settings as a report holds them: one that was read has no tuples."""
    return json.dumps(dict(result.config), sort_keys=True)


def _is_by_repair(
    push: Push,
    traced: Push,
    before: Suspect,
    after: Suspect,
    images: Tensor,
    goals: Tensor,
    *,
    batch_size: int,
) -> bool:
    """Whether a push of the re-scan leads there by channels without a trace in the suspect.

    Such channels tell nothing of the images that the suspect was trained on. If they alone lead
    most images there, in the suspect as well, and those with a trace hardly any, neither as the
    suspect's own traces imply nor as those of the repaired model do, however far they are pushed
    and on either side of the clean mean, then the repair has made the mismatch
    (docs/adr/0025-traces-of-the-repair.md).
    """
    known = {row[:2] for row in traced}
    old = tuple(row for row in push if row[:2] in known)
    new = tuple(row for row in push if row[:2] not in known)
    trials = len(goals)
    for model in (before, after):
        hits = _hits(model, new, images, goals, batch_size=batch_size)
        if not new or clopper_pearson(hits, trials)[0] <= WORKS_FROM:
            return False
    return all(
        _hits(
            model,
            tuple((name, index, factor * amount) for name, index, amount in some),
            images,
            goals,
            batch_size=batch_size,
        )
        <= NOWHERE_UP_TO * trials
        for some in (traced, old)
        for model in (before, after)
        for factor in _FACTORS
    )


def _goals(result: ScannerResult, labels: Tensor, target: int | None) -> Tensor:
    """Return where the artefact leads each image; -1 where nothing is known."""
    if target is not None:
        return torch.full_like(labels, target)
    arrows = result.evidence.get("arrows")
    if not isinstance(arrows, list | tuple):
        return torch.full_like(labels, -1)
    return torch.tensor([int(a) for a in arrows], dtype=torch.int64)[labels]  # type: ignore[arg-type]


def _control(model: Suspect, push: Push, draws: torch.Generator) -> Push:
    """Draw other channels of the same layers, pushed as far in deviations, either way."""
    sites = {site.name: site for site in model.sites}
    by_layer: dict[str, dict[int, float]] = {}
    for name, index, amount in push:
        by_layer.setdefault(name, {})[index] = amount
    drawn: list[tuple[str, int, float]] = []
    for name, amounts in by_layer.items():
        if not sites[name].has_statistics:
            continue
        deviation = model.statistics(sites[name])[1].sqrt().clamp_min(1e-12).tolist()
        others = [k for k in range(sites[name].channels) if k not in amounts]
        order = torch.randperm(len(others), generator=draws).tolist()
        signs = (torch.randint(2, (len(amounts),), generator=draws) * 2 - 1).tolist()
        # A layer with fewer other channels gives a smaller control, and so a stricter one.
        for place, (index, amount), sign in zip(order, amounts.items(), signs, strict=False):
            channel = others[place]
            units = abs(amount) / deviation[index]
            drawn.append((name, channel, sign * units * deviation[channel]))
    return tuple(drawn)


def _hits(model: Suspect, push: Push, images: Tensor, goals: Tensor, *, batch_size: int) -> int:
    with (
        model.borrowed(),
        model.edited(edits_of(amounts_of(push, model))),
    ):
        return int((model.predict(images, batch_size=batch_size) == goals).sum())
