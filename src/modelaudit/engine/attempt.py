"""One attempt at a repair: run it, put it as it would be written, measure it, scan it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from modelaudit import architectures
from modelaudit.engine.effects import effects, still_works
from modelaudit.engine.scan import audit, search_dtype
from modelaudit.errors import UnmetNeedError
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
    from modelaudit.progress import Progress
    from modelaudit.repairs import Repair, RepairedModel
    from modelaudit.results import ScannerResult
    from modelaudit.scanners.base import Scanner


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """An attempt with what it made.

    Attributes:
        record: for the report.
        tensors: the new weights under the file's names and in its dtypes; None if it did nothing.
        is_within_budget: whether the held-out images lose no more than the request allows.
    """

    record: RepairAttempt
    tensors: Mapping[str, Tensor] | None = None
    is_within_budget: bool = False

    @property
    def is_clean(self) -> bool:
        """Whether the re-scan is clean and no artefact found before still works."""
        after = self.record.after
        return (
            after is not None
            and after.verdict.verdict is Verdict.CLEAN
            and not any(still_works(effect) for effect in self.record.effects)
        )

    @property
    def is_backdoored(self) -> bool:
        """Whether the re-scan finds a backdoor, or an artefact found before still works."""
        after = self.record.after
        return after is not None and (
            after.verdict.verdict is Verdict.BACKDOORED
            or any(still_works(effect) for effect in self.record.effects)
        )


def attempt(
    repair: Repair[Any],
    opened: Opened,
    images: RepairImages,
    request: RepairRequest,
    *,
    findings: Sequence[ScannerResult],
    scanners: Sequence[Scanner[Any]],
    progress: Progress,
    stopwatch: Stopwatch,
) -> Attempt:
    """Try one repair.

    Args:
        repair: a configured repair.
        opened: the suspect; it stays bit for bit what it is.
        images: what the repair may see, and what it may not.
        request: budget, seed, whether this is a dry run.
        findings: of the scan before.
        scanners: those of the re-scan.
        progress: where everything reports.
        stopwatch: where the stages are booked.

    Returns:
        The attempt. A need that is not met is an attempt that did nothing; in a dry run nothing is
        scanned again.
    """
    suspect = opened.suspect
    context = RepairContext(
        findings=tuple(findings),
        seed=request.scan.seed,
        progress=progress,
        max_accuracy_drop=request.max_accuracy_drop,
        search_dtype=search_dtype(suspect.device),
    )
    try:
        made = repair.repair(suspect, images.data, context=context)
    except UnmetNeedError as err:
        failed = RepairAttempt(id=repair.full_id, version=repair.version, failure=str(err))
        return Attempt(record=failed)
    finally:
        stopwatch.lap(f"repair {repair.id}")
    tensors = as_in_file(made.module, opened)
    after = _suspect_of(tensors, opened)
    proof = measure(
        suspect.predict(images.proof),
        after.predict(images.proof),
        images.proof_labels,
        has_labels=opened.clean.has_labels,
    )
    record = replace(
        _record(made),
        proof=proof,
        effects=effects(findings, suspect, after, images.proof, images.proof_labels),
    )
    stopwatch.lap(f"measure {repair.id}")
    if not request.is_dry_run:
        report = audit(
            replace(
                opened,
                suspect=after,
                clean=replace(opened.clean, predictions=after.predict(opened.clean.images)),
            ),
            scanners,
            request.scan,
            progress=progress,
            stopwatch=stopwatch,
        )
        record = replace(record, after=ScanSummary.of(report))
        stopwatch.lap(f"re-scan after {repair.id}")
    # Equal to the last bit of a float: a drop of exactly the budget is within it.
    is_within = proof.accuracy_drop <= request.max_accuracy_drop + 1e-9
    return Attempt(record=record, tensors=tensors, is_within_budget=is_within)


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
