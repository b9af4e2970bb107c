"""One model of a population under repair: opened as a user would, measured as only we can.

The repairs see the clean images of the defender, and nothing that the card says. The trigger
appears where the rates are measured, and in the mixture of the repairs that ask for one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from modelaudit import engine
from modelaudit.bench.attacked import draw_mixture, trained_attack
from modelaudit.bench.rates import Rates, measure_rates
from modelaudit.bench.train import normaliser
from modelaudit.engine.attempt import attempt, load_repaired
from modelaudit.engine.budget import cost_sentence, judge
from modelaudit.engine.components import build_scanners
from modelaudit.engine.intake import Opened, Stopwatch, open_suspect
from modelaudit.engine.repair_images import RepairImages, repair_images
from modelaudit.engine.scan import audit
from modelaudit.engine.witness import Witnesses, find_witnesses
from modelaudit.errors import TooFewImagesError
from modelaudit.hardware import fast_dtype
from modelaudit.progress import NoProgress
from modelaudit.repair_results import ScanSummary
from modelaudit.report.json import plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.data import ImageData
    from modelaudit.repair_results import RepairAttempt, RepairReport
    from modelaudit.repairs import Repair
    from modelaudit.results import Cost

#: clean images of the scans, as `modelaudit repair` takes them
SCAN_IMAGES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """What became of a repair.

    Attributes:
        outcome: ``"done"``, ``"unmet_need"`` or ``"failed"``; of `auto` as in `RepairOutcome`.
        reason: in words.
        cost: passes and seconds; of `auto` its scans are part of it.
        failure: the need that is not met, or the error; None if there is none.
        module: the repaired network, on the CPU; None where the model is left as it is.
        pruned: how many neurons were pruned.
        facts: what else its row says.
    """

    outcome: str
    reason: str
    cost: Cost
    failure: str | None = None
    module: nn.Module | None = None
    pruned: int = 0
    facts: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(slots=True, kw_only=True, eq=False)
class Patient:
    """A model under repair; nothing is read before it is needed, and everything once.

    Attributes:
        card: of the model.
        folder: of the population.
        data: what it was trained on, test images included.
        seed: of scans and repairs.
        device: name of the device.
    """

    card: ModelCard
    folder: Path
    data: ImageData
    seed: int = 0
    device: str = "cpu"
    _opened: dict[Path, tuple[Opened, RepairImages]] = field(default_factory=dict)
    _scans: dict[Path, ScanSummary] = field(default_factory=dict)
    _witnesses: dict[Path, Witnesses] = field(default_factory=dict)
    _attack: Attack[object] | None = None
    _has_attack: bool = False

    def repaired_by(self, repair: Repair[Any], clean: Path, *, images: int) -> Treated:
        """Try one repair alone; the model is scanned first, for what bears witness afterwards.

        Args:
            repair: a configured repair.
            clean: file of the clean set.
            images: of how many images.

        Raises:
            ModelAuditError: the model cannot be opened, or the repair failed.
        """
        request = self._request(clean, images, is_dry_run=True)
        opened, parts = self._open(request)
        if opened.obstacles:
            raise TooFewImagesError("; ".join(opened.obstacles))
        if repair.requires_mixture:
            parts = replace(parts, data=replace(parts.data, mixture=self.mixture()))
        tried = attempt(
            repair,
            opened,
            parts,
            request,
            before=self._scan(request),
            scanners=(),
            progress=NoProgress(),
            stopwatch=Stopwatch(),
            witnesses=self._witness(request),
        )
        (made,) = judge((tried,), max_accuracy_drop=request.max_accuracy_drop)
        record = made.record
        module = None if made.tensors is None else load_repaired(made.tensors, opened)
        reason = record.failure or "nothing was changed"
        if record.budget is not None:
            reason = cost_sentence(record, max_accuracy_drop=request.max_accuracy_drop)
        return Treated(
            outcome="unmet_need" if record.failure else "done",
            reason=reason,
            failure=record.failure or None,
            module=module,
            pruned=record.pruned_neurons,
            cost=record.cost,
            facts={
                "repair_images": len(parts.data.images),
                "proof_images": len(parts.proof),
                # What changes nothing costs nothing.
                "is_within_budget": None
                if record.failure
                else record.budget is None or made.is_within_budget,
                **_attempt_facts(record),
            },
        )

    def repaired_by_auto(self, clean: Path, *, images: int) -> Treated:
        """Scan, repair and scan again as ``modelaudit repair auto`` does.

        Args:
            clean: file of the clean set.
            images: of how many images.

        Raises:
            ModelAuditError: the model cannot be opened, or a repair failed.
        """
        done = engine.repair(self._request(clean, images, is_dry_run=False), progress=NoProgress())
        report, is_written = done.report, done.tensors is not None
        chosen = report.chosen if is_written else None
        return Treated(
            outcome=str(report.outcome),
            reason=report.reason,
            module=done.module() if is_written else None,
            pruned=0 if chosen is None else chosen.pruned_neurons,
            cost=report.cost,
            facts={
                **_auto_facts(report),
                "is_written": is_written,
                "chosen": None if chosen is None else chosen.id,
                "validation": None if chosen is None else plain(chosen.validation),
                "proof": None if chosen is None else plain(chosen.proof),
            },
        )

    def rates(self, module: nn.Module) -> Rates:
        """Measure a network of this model on all test images."""
        return measure_rates(
            module,
            self.data,
            normaliser(self.card.normaliser),
            self.attack(),
            device=torch.device(self.device),
        )

    def rates_before(self, clean: Path, *, images: int) -> Rates:
        """Measure the model as it was opened.

        Raises:
            ModelAuditError: it cannot be opened.
        """
        opened, _ = self._open(self._request(clean, images, is_dry_run=True))
        tensors = dict(opened.read.weights.tensors)
        return self.rates(load_repaired(tensors, opened))

    def attack(self) -> Attack[object] | None:
        """Return the attack with the trigger that the model has learned; None if it is clean.

        Raises:
            ConfigError: the trigger is not the one that the card names.
        """
        if not self._has_attack:
            self._attack = trained_attack(self.card, self.data, folder=self.folder)
            self._has_attack = True
        return self._attack

    def mixture(self) -> Tensor:
        """Return images of the model's training set, see `draw_mixture`."""
        return draw_mixture(self.card, self.data, self.attack(), seed=self.seed)

    def _request(self, clean: Path, images: int, *, is_dry_run: bool) -> engine.RepairRequest:
        return engine.RepairRequest(
            scan=engine.ScanRequest(
                checkpoint=self.folder / "models" / self.card.checkpoint,
                data=clean,
                max_images=min(images, SCAN_IMAGES),
                budget_seconds=None,
                device=self.device,
                seed=self.seed,
            ),
            max_repair_images=images,
            is_dry_run=is_dry_run,
        )

    def _open(self, request: engine.RepairRequest) -> tuple[Opened, RepairImages]:
        clean = request.scan.data
        if clean not in self._opened:
            opened = open_suspect(request.scan, progress=NoProgress(), stopwatch=Stopwatch())
            self._opened[clean] = (opened, repair_images(request, opened))
        return self._opened[clean]

    def _scan(self, request: engine.RepairRequest) -> ScanSummary:
        """Return what all scanners say, as `modelaudit repair` has them say it first."""
        clean = request.scan.data
        if clean not in self._scans:
            opened, _ = self._open(request)
            report = audit(
                opened,
                build_scanners((), ()),
                request.scan,
                progress=NoProgress(),
                stopwatch=Stopwatch(),
            )
            self._scans[clean] = ScanSummary.of(report)
        return self._scans[clean]

    def _witness(self, request: engine.RepairRequest) -> Witnesses:
        """Return the stand-ins for the trigger, as `modelaudit repair` searches them."""
        clean = request.scan.data
        if clean not in self._witnesses:
            opened, parts = self._open(request)
            self._witnesses[clean] = find_witnesses(
                opened.suspect,
                parts.data,
                self._scan(request).scanners,
                seed=self.seed,
                dtype=fast_dtype(opened.suspect.device),
                progress=NoProgress(),
            )
        return self._witnesses[clean]


def _attempt_facts(record: RepairAttempt) -> dict[str, object]:
    return {
        "validation": plain(record.validation),
        "proof": plain(record.proof),
        "history": plain(record.history),
        "details": plain(record.details),
        "config": plain(record.config),
        "notes": plain(record.notes),
        "effects": plain(record.effects),
    }


def _auto_facts(report: RepairReport) -> dict[str, object]:
    return {
        "repair_images": report.repair_images,
        "proof_images": report.proof_images,
        "exit_status": int(report.exit_status),
        "verdict_before": _verdict(report.before),
        "attempts": [
            {
                "id": tried.id,
                "pruned": tried.pruned_neurons,
                "failure": tried.failure,
                "drop": None if tried.proof is None else tried.proof.accuracy_drop,
                "budget": plain(tried.budget),
                "goes_on_from": list(tried.goes_on_from),
                "verdict_after": None if tried.verdict is None else str(tried.verdict.verdict),
                "reason_after": None if tried.verdict is None else tried.verdict.reason,
                "effects": plain(tried.effects),
                "seconds": tried.cost.seconds,
            }
            for tried in report.attempts
        ],
    }


def _verdict(summary: ScanSummary | None) -> str | None:
    return None if summary is None else str(summary.verdict.verdict)
