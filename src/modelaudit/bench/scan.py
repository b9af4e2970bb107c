"""Scans every model of a population as a user would; one row per model, scanner and variant.

The card beside each model gives the truth, which the scan never sees. A row depends on the model,
the clean set, the scanner and the seed alone, so that an interrupted run that is started again ends
with the rows of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelaudit import cleanset, engine
from modelaudit import config as configuration
from modelaudit.bench.cards import checkpoint_of
from modelaudit.bench.claims import claim
from modelaudit.bench.clean_sets import CleanImagesFile, store_clean_set
from modelaudit.bench.facts import machine_facts, model_facts, truth_facts
from modelaudit.bench.rows import append_rows, key_of, read_keys
from modelaudit.engine.components import build_scanners
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.scan import audit
from modelaudit.errors import ConfigError, ModelAuditError
from modelaudit.progress import NoProgress
from modelaudit.registry import Registry
from modelaudit.report.json import outcome_record, plain
from modelaudit.results import FailedScan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.selection import Selection
    from modelaudit.repairs import Repair
    from modelaudit.results import Json, ScanOutcome
    from modelaudit.scanners.base import Scanner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanEvent:
    """A model was scanned, or nothing of it was missing, or its file is not the one of its card.

    Attributes:
        id: the model's.
        rows: how many rows were added.
        seconds: what it took.
        failed: scanners that failed, or that were given nothing to scan.
        text: what a reader may want to know.
    """

    id: str
    rows: int = 0
    seconds: float = 0.0
    failed: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanWork:
    """Scans the chosen models of a population, as a worker process does.

    Attributes:
        models: which ones.
        out: JSON Lines file to append to.
        scanners: ids, with ``@variant`` where wanted; every registered one if empty.
        has_paper_code: whether the variant ``paper_code`` of each scanner that has one runs too.
        images: how many clean images the scans are given.
        seed: of the scans.
        device: name of the device.
        degradation: what is done to the clean images, one of `modelaudit.bench.degrade`; None for
            nothing.
    """

    models: Selection
    out: Path
    scanners: tuple[str, ...] = ()
    has_paper_code: bool = False
    images: int = 500
    seed: int = 0
    device: str = "cpu"
    degradation: str | None = None

    def __call__(self, run: str, report: Callable[[ScanEvent], None]) -> tuple[str, ...]:
        """Scan what nobody else scans; return the ids of models on which a scanner failed.

        A model whose file is missing or not the one of its card fails without a row.
        """
        del run  # failures are rows, which are never made twice
        scanners = build_scanners(self.scanner_ids(), ())
        failed = []
        name = hashlib.sha256(str(self.out.resolve()).encode()).hexdigest()[:12]
        for card in self.models.cards():
            with claim(self.models.folder, f"scan_{name}_{card.id}") as is_mine:
                if not is_mine:
                    continue
                event = self._scan(card, scanners)
            if event.failed:
                failed.append(card.id)
            report(event)
        return tuple(failed)

    def scanner_ids(self) -> tuple[str, ...]:
        """Return the ids of the scanners that run, variants behind the defaults."""
        registry = Registry("scanners")
        ids = list(self.scanners or registry.ids())
        if self.has_paper_code:
            bare = dict.fromkeys(id_.partition("@")[0] for id_ in ids)
            ids += [
                f"{id_}@paper_code"
                for id_ in bare
                if "paper_code" in getattr(registry.load(id_), "variants", {})
            ]
        return tuple(dict.fromkeys(ids))

    def _scan(self, card: ModelCard, scanners: Sequence[Scanner[Any]]) -> ScanEvent:
        started = time.perf_counter()
        clean = self._clean_set(card)
        read = cleanset.read_clean_set(clean.path, max_images=clean.images, seed=self.seed)
        keys = {
            scanner.full_id: {
                "checkpoint_sha256": card.checkpoint_sha256,
                "scanner": scanner.id,
                "variant": scanner.variant,
                "config_sha256": method_sha256(scanner),
                "seed": self.seed,
                "clean_set_sha256": read.sha256,
            }
            for scanner in scanners
        }
        there = read_keys(self.out)
        missing = [s for s in scanners if key_of({"key": keys[s.full_id]}) not in there]
        if not missing:
            return ScanEvent(id=card.id, text="nothing missing")
        try:
            checkpoint = checkpoint_of(card, self.models.folder)
        except ConfigError as err:
            # no row: it would be of another file than its key says, and nothing would mend it
            logger.warning("%s: not scanned: %s", card.id, err)
            return ScanEvent(id=card.id, failed=tuple(s.full_id for s in missing), text=str(err))
        request = engine.ScanRequest(
            checkpoint=checkpoint,
            data=clean.path,
            max_images=clean.images,
            budget_seconds=None,
            device=self.device,
            seed=self.seed,
        )
        outcomes, obstacles, obstacles_to_clean = _outcomes(request, missing)
        facts = {
            "model": model_facts(card, read.native_size),
            "truth": truth_facts(card),
            "clean_set": {
                "name": clean.name,
                "images": len(read),
                "degradation": clean.degradation,
            },
            "obstacles": obstacles,
            "obstacles_to_clean": obstacles_to_clean,
        }
        machine = machine_facts(self.device)
        rows: list[dict[str, Any]] = [
            {"key": keys[scanner.full_id], **facts, **outcome_record(outcome), **machine}
            for scanner, outcome in zip(missing, outcomes, strict=True)
        ]
        added = append_rows(self.out, rows)
        failed = tuple(o.id for o in outcomes if isinstance(o, FailedScan))
        text = ", ".join(
            f"{row['result']['id']} {row['result'].get('finding', row['outcome'])}" for row in rows
        )
        seconds = time.perf_counter() - started
        logger.info("%s: %d rows in %.0f s: %s", card.id, added, seconds, text)
        return ScanEvent(id=card.id, rows=added, seconds=seconds, failed=failed, text=text)

    def _clean_set(self, card: ModelCard) -> CleanImagesFile:
        return store_clean_set(
            self.models.folder,
            lambda: self.models.data_of(card),
            name=card.dataset,
            images=self.images,
            image_size=card.image_size,
            degradation=self.degradation,
        )


def method_sha256(method: Scanner[Any] | Repair[Any]) -> str:
    """Return a digest of a method's version and of every field of its configuration.

    The version belongs to it: a method that has changed has to be measured again.
    """
    record = {"version": method.version, "config": configuration.fields(method.config)}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _outcomes(
    request: engine.ScanRequest, scanners: Sequence[Scanner[Any]]
) -> tuple[list[ScanOutcome], list[str], list[Json]]:
    """Return an outcome for each scanner, the obstacles, and the obstacles to ``clean``."""
    stopwatch, progress = Stopwatch(), NoProgress()
    try:
        opened = open_suspect(request, progress=progress, stopwatch=stopwatch)
        report = audit(opened, scanners, request, progress=progress, stopwatch=stopwatch)
    except ModelAuditError as err:
        # a model that cannot be opened is a result too: nobody has to try it again
        error = f"{type(err).__name__}: {err}"
        return [FailedScan(id=s.full_id, error=error) for s in scanners], [], []
    outcomes: tuple[ScanOutcome, ...] = (*report.scanners, *report.skipped, *report.failed)
    found = {outcome.id: outcome for outcome in outcomes}
    return (
        [found[scanner.full_id] for scanner in scanners],
        list(opened.obstacles),
        [plain(o) for o in opened.obstacles_to_clean],
    )
