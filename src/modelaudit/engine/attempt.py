"""One attempt at a repair: run it, put it as it would be written, measure it, scan it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from modelaudit import architectures
from modelaudit.engine.effects import deciding, effects, leads_nowhere, noise_effects
from modelaudit.engine.provenance import of_the_model
from modelaudit.engine.rescan import (
    explained_traces,
    keeps_statistics,
    read_rescan,
    unwitnessed_pushes,
)
from modelaudit.engine.scan import audit
from modelaudit.errors import RepairError, UnmetNeedError
from modelaudit.hardware import fast_dtype
from modelaudit.repair_results import RepairAttempt, ScanSummary
from modelaudit.repairs import RepairContext, measure
from modelaudit.results import Verdict
from modelaudit.suspect import Suspect
from modelaudit.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from modelaudit.engine.intake import Opened, Stopwatch
    from modelaudit.engine.repair_images import RepairImages
    from modelaudit.engine.request import RepairRequest
    from modelaudit.engine.witness import Witnesses
    from modelaudit.progress import Progress
    from modelaudit.repair_results import Effect
    from modelaudit.repairs import PruneMask, Repair, RepairedModel
    from modelaudit.scanners.base import Scanner

#: Part of the accuracy budget that a repair may spend where the scan has found the model clean:
#: nothing that anybody has seen is bought with it (docs/adr/0027-half-the-budget-if-clean.md).
BUDGET_IF_CLEAN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """An attempt with what it made.

    Attributes:
        record: for the report.
        tensors: the new weights under the file's names and in its dtypes; None if it did nothing.
        suspect: the repaired model as it would be written, for a further repair to go on from.
        mask: what has been pruned in it.
        earlier: the attempts that it goes on from, the first one first.
    """

    record: RepairAttempt
    tensors: Mapping[str, Tensor] | None = None
    suspect: Suspect | None = None
    mask: PruneMask | None = None
    earlier: tuple[Attempt, ...] = ()

    @property
    def steps(self) -> tuple[RepairAttempt, ...]:
        """The records of every repair in this model, in order."""
        return (*(attempt.record for attempt in self.earlier), self.record)

    @property
    def is_within_budget(self) -> bool:
        """Whether it was judged, and found to lose no more than the request allows."""
        return self.record.budget is not None and self.record.budget.is_within

    @property
    def is_clean(self) -> bool:
        """Whether re-scan and artefacts together say clean."""
        verdict = self.record.verdict
        return verdict is not None and verdict.verdict is Verdict.CLEAN

    @property
    def is_backdoored(self) -> bool:
        """Whether re-scan and artefacts together say backdoored."""
        verdict = self.record.verdict
        return verdict is not None and verdict.verdict is Verdict.BACKDOORED

    @property
    def standing(self) -> tuple[bool, bool, bool, float]:
        """What it leaves of the backdoor, whatever it costs; what is smaller is better.

        Whether the re-scan is not clean, whether it is backdoored, whether an artefact that may
        decide still leads anywhere, and the largest share that one leads beyond its controls:
        rounded to a tenth, for less says nothing of the attack (docs/results/repairs.md). Where
        stand-ins for the trigger may decide, the share is theirs: a push leads somewhere in every
        network.
        """
        decide = [effect for effect in self.record.effects if effect.is_deciding]
        shown = [effect for effect in decide if effect.kind == "stand_in"] or decide
        left = [e.share_beyond_control for e in shown if not leads_nowhere(e)]
        leads = not all(leads_nowhere(effect) for effect in decide)
        return (not self.is_clean, self.is_backdoored, leads, round(max(left, default=0.0), 1))


def attempt(
    repair: Repair[Any],
    opened: Opened,
    images: RepairImages,
    request: RepairRequest,
    *,
    before: ScanSummary | None,
    scanners: Sequence[Scanner[Any]],
    progress: Progress,
    stopwatch: Stopwatch,
    onto: Attempt | None = None,
    witnesses: Witnesses | None = None,
) -> Attempt:
    """Try one repair, on the suspect or on what another repair has made of it.

    Proof and effects are measured against the suspect, whatever came in between; what the repair
    itself says of its validation images is against the model that it was given.

    Args:
        repair: a configured repair.
        opened: the suspect; it stays bit for bit what it is.
        images: what the repair may see, and what it may not.
        request: budget, seed, whether this is a dry run.
        before: the scan of the suspect; None where nobody has scanned it.
        scanners: those of the re-scan.
        progress: where everything reports.
        onto: the attempt to go on from; what it pruned stays pruned, and what it cost counts.
        stopwatch: where the stages are booked.
        witnesses: stand-ins for the trigger that work on the suspect; None if none were searched.

    Returns:
        The attempt, not yet judged by its budget. A need that is not met is an attempt that did
        nothing, and so is one of `auto` that fails; in a dry run nothing is scanned again.
    """
    suspect = opened.suspect
    start = suspect if onto is None or onto.suspect is None else onto.suspect
    earlier = () if onto is None else (*onto.earlier, onto)
    findings = () if before is None else before.scanners
    budget = request.max_accuracy_drop
    if before is not None and before.verdict.verdict is Verdict.CLEAN:
        budget *= BUDGET_IF_CLEAN
    context = RepairContext(
        # What does not read findings is not told any.
        findings=findings if repair.reads_findings else (),
        seed=request.scan.seed,
        progress=progress,
        max_accuracy_drop=budget,
        search_dtype=fast_dtype(suspect.device),
        pruned=None if onto is None else onto.mask,
        original=None if onto is None else suspect,
    )
    try:
        made = repair.repair(start, images.data, context=context)
    except RepairError as err:
        # A later repair that fails takes nothing from what an earlier one has made.
        if request.method != "auto" and not isinstance(err, UnmetNeedError):
            raise
        failed = RepairAttempt(id=repair.full_id, version=repair.version, failure=str(err))
        return Attempt(record=failed)
    finally:
        stopwatch.lap(f"repair {repair.id}")
    tensors = as_in_file(made.module, opened)
    claim = opened.read.repair
    against = [] if claim is None else list(claim.trained_against)
    against += [id_ for one in earlier for id_ in one.record.trained_against]
    against += made.trained_against
    changed = replace(
        _record(made),
        goes_on_from=tuple(attempt.record.id for attempt in earlier),
        trained_against=tuple(dict.fromkeys(against)),
    )
    if _is_in_file(tensors, opened):
        # The suspect once more is no repair, and cannot be the luckiest of several.
        return Attempt(record=changed, earlier=earlier)
    after = _suspect_of(tensors, opened)
    proof = measure(
        suspect.predict(images.proof),
        after.predict(images.proof),
        images.proof_labels,
        has_labels=opened.clean.has_labels,
    )
    record = replace(
        changed,
        proof=proof,
        effects=_marked(
            (
                *_witnessed(witnesses, suspect, after, images, seed=request.scan.seed),
                *effects(
                    findings,
                    suspect,
                    after,
                    images.proof,
                    images.proof_labels,
                    seed=request.scan.seed,
                ),
            )
        ),
    )
    stopwatch.lap(f"measure {repair.id}")
    if before is not None and not request.is_dry_run:
        record = _scanned_again(
            record,
            after,
            before,
            opened,
            images,
            request,
            scanners,
            progress,
            stopwatch,
            # What trains on a mixture trains on poisoned images too.
            is_training=repair.is_training and not repair.requires_mixture,
        )
        stopwatch.lap(f"re-scan after {repair.id}")
    return Attempt(
        record=record,
        tensors=tensors,
        suspect=after,
        mask=_mask(made, onto),
        earlier=earlier,
    )


def _scanned_again(
    record: RepairAttempt,
    after: Suspect,
    before: ScanSummary,
    opened: Opened,
    images: RepairImages,
    request: RepairRequest,
    scanners: Sequence[Scanner[Any]],
    progress: Progress,
    stopwatch: Stopwatch,
    *,
    is_training: bool,
) -> RepairAttempt:
    """Scan the repaired model, try what that finds on both models, and judge everything."""
    suspect = opened.suspect
    repaired = replace(
        opened,
        suspect=after,
        clean=replace(opened.clean, predictions=after.predict(opened.clean.images)),
        obstacles_to_clean=of_the_model(opened.obstacles_to_clean),
    )
    report = audit(repaired, scanners, request.scan, progress=progress, stopwatch=stopwatch)
    summary = ScanSummary.of(report)
    tried = (
        *record.effects,
        *effects(
            report.scanners,
            suspect,
            after,
            images.proof,
            images.proof_labels,
            seed=request.scan.seed,
            is_of_rescan=True,
            earlier=before.scanners,
        ),
        *noise_effects(before.scanners, report.scanners, opened.clean),
    )
    unwitnessed = unwitnessed_pushes(record.trained_against, before, tried)
    are_kept = suspect.has_batchnorm_statistics and keeps_statistics(suspect.module, after.module)
    explained = explained_traces(
        before,
        summary,
        tried,
        are_statistics_kept=are_kept,
        are_weights_trained=is_training,
        unwitnessed=unwitnessed,
    )
    have_drifted = are_kept and is_training
    return replace(
        record,
        effects=_marked(tried, have_weights_drifted=have_drifted),
        after=summary,
        explained=explained,
        verdict=read_rescan(
            summary,
            tried,
            explained,
            repaired,
            request.scan,
            have_weights_drifted=have_drifted,
            unwitnessed=unwitnessed,
        ),
    )


def _marked(tried: tuple[Effect, ...], *, have_weights_drifted: bool = False) -> tuple[Effect, ...]:
    """Return effects that say whether a verdict may rest on them."""
    decide = deciding(tried, have_weights_drifted=have_weights_drifted)
    return tuple(replace(effect, is_deciding=effect in decide) for effect in tried)


def _witnessed(
    witnesses: Witnesses | None,
    suspect: Suspect,
    after: Suspect,
    images: RepairImages,
    *,
    seed: int,
) -> tuple[Effect, ...]:
    if witnesses is None:
        return ()
    return witnesses.effects(
        suspect,
        after,
        images.proof,
        images.proof_labels,
        data=images.data,
        seed=seed,
        dtype=fast_dtype(after.device),
    )


def _is_in_file(tensors: Mapping[str, Tensor], opened: Opened) -> bool:
    """Whether the file holds these very values."""
    old = opened.read.weights.tensors
    return all(torch.equal(old[name].cpu(), tensor) for name, tensor in tensors.items())


def _mask(made: RepairedModel, onto: Attempt | None) -> PruneMask | None:
    """Return what has been pruned in a model altogether; a repair that goes on knows of it."""
    earlier = None if onto is None else onto.mask
    if made.mask is None or earlier is None:
        return made.mask or earlier
    return (
        made.mask if set(earlier.neurons) <= set(made.mask.neurons) else earlier.joined(made.mask)
    )


def as_in_file(module: nn.Module, opened: Opened) -> dict[str, Tensor]:
    """Return a module's state under the names and in the dtypes that the file has.

    Args:
        module: of the architecture that the file was recognised as.
        opened: the file and the architecture.
    """
    rename = opened.fit.candidate.rename
    state = module.state_dict()
    return {
        name: state[rename(name)].detach().cpu().to(tensor.dtype).reshape(tensor.shape)
        for name, tensor in opened.read.weights.tensors.items()
    }


def load_repaired(tensors: Mapping[str, Tensor], opened: Opened) -> nn.Module:
    """Return the model as it will be read from the written file, not as it left the repair.

    Args:
        tensors: of `as_in_file`.
        opened: the suspect that was repaired.

    Returns:
        The network in evaluation mode, float32, on the CPU.
    """
    weights = Weights(
        tensors=tensors,
        hints=opened.read.weights.hints,
        metadata=opened.read.weights.metadata,
    )
    return architectures.load(opened.fit.candidate, weights).float().eval()


def _suspect_of(tensors: Mapping[str, Tensor], opened: Opened) -> Suspect:
    old = opened.suspect
    return Suspect(
        load_repaired(tensors, opened).to(old.device),
        preprocessing=old.preprocessing,
        input_size=old.input_size,
        input_channels=old.input_channels,
        num_classes=old.num_classes,
        device=torch.device(old.device),
    )


def _record(made: RepairedModel) -> RepairAttempt:
    return RepairAttempt(
        id=made.id,
        version=made.version,
        pruned=made.pruned,
        validation=made.measurements,
        history=made.history,
        details=made.details,
        config=made.config,
        config_set=made.config_set,
        seed=made.seed,
        cost=made.cost,
        notes=made.notes,
    )
