"""Repairs every model of a population by every method; one row per model and method.

A row depends on the model, the clean set, the method and the seed alone, and is written as soon as
it is made, so that an interrupted run that is started again ends with the rows of one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit import cleanset
from modelaudit.bench.cards import checkpoint_of
from modelaudit.bench.claims import claim
from modelaudit.bench.clean_sets import CleanImagesFile, store_clean_set
from modelaudit.bench.facts import machine_facts, model_facts, truth_facts
from modelaudit.bench.patient import Patient, Treated
from modelaudit.bench.rates import Rates
from modelaudit.bench.repair_methods import Method, build_methods
from modelaudit.bench.rows import append_rows, key_of, read_keys
from modelaudit.errors import ConfigError, ModelAuditError
from modelaudit.results import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelaudit.bench.cards import ModelCard
    from modelaudit.bench.data import ImageData
    from modelaudit.bench.selection import Selection
    from modelaudit.cleanset import CleanSet

logger = logging.getLogger(__name__)

#: outcome of a repair that raised
FAILED = "failed"

_Data = dict[tuple[str, int | None], "ImageData"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairEvent:
    """A repair of a model was measured, or had been before, or the model is not that of its card.

    Attributes:
        id: the model's.
        method: the repair's id with its variant.
        rows: how many rows were added.
        seconds: what it took.
        is_failed: whether the repair raised, or was not tried.
        text: what a reader may want to know.
    """

    id: str
    method: str
    rows: int = 0
    seconds: float = 0.0
    is_failed: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairWork:
    """Repairs the chosen models of a population, as a worker process does.

    Attributes:
        models: which ones.
        out: JSON Lines file to append to.
        methods: see `build_methods`.
        has_paper_code: see `build_methods`.
        images: see `build_methods`.
        seed: of scans and repairs.
        device: name of the device.
    """

    models: Selection
    out: Path
    methods: tuple[str, ...] = ()
    has_paper_code: bool = False
    images: int | None = None
    seed: int = 0
    device: str = "cpu"

    def __call__(self, run: str, report: Callable[[RepairEvent], None]) -> tuple[str, ...]:
        """Repair what nobody else repairs; return the ids of models on which a repair failed.

        A model whose file or trigger is missing or not the one of its card fails without a row.
        """
        del run  # failures are rows, which are never made twice
        methods, data = self.built(), _Data()
        failed: dict[str, None] = {}
        name = hashlib.sha256(str(self.out.resolve()).encode()).hexdigest()[:12]
        for card in self.models.cards():
            with claim(self.models.folder, f"repair_{name}_{card.id}") as is_mine:
                if not is_mine:
                    continue
                for event in self._repair(card, methods, data):
                    if event.is_failed:
                        failed[card.id] = None
                    report(event)
        return tuple(failed)

    def built(self) -> tuple[Method, ...]:
        """Return the repairs that are compared, see `build_methods`."""
        return build_methods(self.methods, has_paper_code=self.has_paper_code, images=self.images)

    def _repair(
        self, card: ModelCard, methods: tuple[Method, ...], known: _Data
    ) -> Iterator[RepairEvent]:
        def load() -> ImageData:
            key = (card.dataset, card.image_size)
            if key not in known:
                known.clear()  # the models of one data set follow each other, mostly
                known[key] = self.models.data_of(card)
            return known[key]

        files: dict[int, tuple[CleanImagesFile, CleanSet]] = {}
        patient: Patient | None = None
        before = Rates(acc=card.acc, asr=card.asr)
        there = read_keys(self.out)
        for method in methods:
            started = time.perf_counter()
            if method.images not in files:
                files[method.images] = self._clean_set(card, load, method.images)
            clean, read = files[method.images]
            key = self._key(card, method, read)
            if key_of({"key": key}) in there:
                yield RepairEvent(id=card.id, method=method.full_id, text="nothing missing")
                continue
            if patient is None:
                try:
                    patient = self._patient(card, load)
                except ConfigError as err:
                    # no row: it would be of another model than its key says
                    logger.warning("%s: not repaired: %s", card.id, err)
                    yield RepairEvent(
                        id=card.id, method=method.full_id, is_failed=True, text=str(err)
                    )
                    continue
                before = _rates_before(patient, clean)
            treated = _treat(patient, method, clean)
            # what no repair has changed is measured already
            after = before if treated.module is None else patient.rates(treated.module)
            row = {
                "kind": "repair",
                "key": key,
                "model": model_facts(card, read.native_size),
                "truth": truth_facts(card),
                "clean_set": {"name": clean.name, "images": len(read), "degradation": None},
                "method": method.id,
                "variant": method.variant,
                "images": len(read),
                **_measured(treated, before, after),
                **machine_facts(self.device),
            }
            added = append_rows(self.out, [row])
            text = f"{treated.outcome}, {_words(before, after)}"
            logger.info("%s: %s: %s", card.id, method.full_id, text)
            yield RepairEvent(
                id=card.id,
                method=method.full_id,
                rows=added,
                seconds=time.perf_counter() - started,
                is_failed=treated.outcome == FAILED,
                text=text,
            )

    def _patient(self, card: ModelCard, load: Callable[[], ImageData]) -> Patient:
        """Return the model under repair.

        Raises:
            ConfigError: its file or its trigger is not the one that the card names.
        """
        checkpoint_of(card, self.models.folder)
        patient = Patient(
            card=card,
            folder=self.models.folder,
            data=load(),
            seed=self.seed,
            device=self.device,
        )
        patient.attack()
        return patient

    def _key(self, card: ModelCard, method: Method, read: CleanSet) -> dict[str, object]:
        return {
            "checkpoint_sha256": card.checkpoint_sha256,
            "method": method.id,
            "variant": method.variant,
            "config_sha256": method.config_sha256,
            "seed": self.seed,
            "clean_set_sha256": read.sha256,
        }

    def _clean_set(
        self, card: ModelCard, load: Callable[[], ImageData], images: int
    ) -> tuple[CleanImagesFile, CleanSet]:
        clean = store_clean_set(
            self.models.folder, load, name=card.dataset, images=images, image_size=card.image_size
        )
        return clean, cleanset.read_clean_set(clean.path, max_images=images, seed=self.seed)


def _rates_before(patient: Patient, clean: CleanImagesFile) -> Rates:
    """Measure the model as it is; one that cannot be opened has the rates of its card."""
    try:
        return patient.rates_before(clean.path, images=clean.images)
    except ModelAuditError:
        return Rates(acc=patient.card.acc, asr=patient.card.asr)


def _treat(patient: Patient, method: Method, clean: CleanImagesFile) -> Treated:
    """Return what became of a repair; one that raises leaves the model as it is."""
    started = time.perf_counter()
    try:
        if method.repair is None:
            return patient.repaired_by_auto(clean.path, images=clean.images)
        return patient.repaired_by(method.repair, clean.path, images=clean.images)
    except Exception as err:  # noqa: BLE001 - one bad repair must not stop the others
        failure = f"{type(err).__name__}: {err}"
        logger.warning("%s: %s: %s", patient.card.id, method.full_id, failure)
        return Treated(
            outcome=FAILED,
            reason="the repair raised an error",
            failure=failure,
            cost=Cost(seconds=time.perf_counter() - started),
        )


def _measured(treated: Treated, before: Rates, after: Rates) -> dict[str, object]:
    return {
        **_both("acc", before.acc, after.acc),
        **_both("asr", before.asr, after.asr),
        **_both("ra", before.ra, after.ra),
        "outcome": treated.outcome,
        "reason": treated.reason,
        "pruned": treated.pruned,
        "passes": {
            "forward": treated.cost.forward,
            "forward_backward": treated.cost.forward_backward,
        },
        "seconds": treated.cost.seconds,
        "failure": treated.failure,
        **treated.facts,
    }


def _both(name: str, before: float | None, after: float | None) -> dict[str, float | None]:
    return {f"{name}_before": before, f"{name}_after": after}


def _words(before: Rates, after: Rates) -> str:
    said = f"ACC {before.acc:.4f} to {after.acc:.4f}"
    if before.asr is None or after.asr is None:
        return said
    return f"{said}, ASR {before.asr:.4f} to {after.asr:.4f}"
