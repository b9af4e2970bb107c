"""Walk back from a training repair, and hold what validation images show beside the truth.

    python benchmarks/walking_back.py zoo clean_vgg16w16_s16 --data ../shared/data

A repair that trains keeps as much of its change as the validation images say that the accuracy
bears (``docs/adr/0020-walking-back.md``). This trains once for each division of the clean images
and prints, in points, what is lost at shares of the way: over all test images, and over the
validation images by their plain accuracy, by the probability of their labels (at a matched
temperature), and by the accuracy over several views of each (``docs/adr/0022-several-views.md``).
Test images and triggers are for the reader alone. Prints a Markdown table, and beneath it how far
each measure errs.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from modelaudit.bench.cards import read_card
from modelaudit.bench.clean_sets import store_clean_set
from modelaudit.bench.patient import Patient
from modelaudit.bench.repair_methods import build_methods
from modelaudit.bench.runner import find_data
from modelaudit.engine import RepairRequest, ScanRequest
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.repair_images import repair_images
from modelaudit.hardware import fast_dtype
from modelaudit.progress import NoProgress
from modelaudit.repairs import RepairContext, divide
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._training import module_state
from modelaudit.repairs._walk_back import WayBack, between, standing, standing_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from modelaudit.repairs import Repair, RepairData
    from modelaudit.suspect import Suspect

IMAGES = 2500
SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
MEASURES = ("plain", "probability", "views")


def ways(
    patient: Patient, repair: Repair[Any], suspect: Suspect, data: RepairData, *, seed: int
) -> Iterator[tuple[float, ...]]:
    """Train once; yield share, loss over test images, ASR and loss by each measure."""
    seen: dict[str, Any] = {}

    def watched(model: Suspect, start: Mapping[str, Tensor], *_: object, **given: Any) -> WayBack:
        seen.update(given, model=model, start=start, end=module_state(model.module))
        return WayBack()

    context = RepairContext(seed=seed, search_dtype=fast_dtype(suspect.device))
    home = sys.modules[type(repair).__module__]
    with suspect.borrowed(), mock.patch.object(home, "walk_back", watched):
        repair.repair(suspect, data, context=context)
        model = seen["model"]
        rates = patient.rates(copy.deepcopy(suspect.module))
        plain, views = standing(suspect, data, context, Augmentation()), seen["before"]
        for share in SHARES:
            model.module.load_state_dict(between(seen["start"], seen["end"], share))
            now = standing_like(model, data, context, plain)
            after = patient.rates(copy.deepcopy(model.module))
            yield (
                share,
                rates.acc - after.acc,
                float("nan") if after.asr is None else after.asr,
                plain.accuracy - now.accuracy,
                plain.probability - now.probability,
                views.accuracy - standing_like(model, data, context, views).accuracy,
            )


def main() -> None:
    """Read the arguments, train, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path, help="folder of a population")
    parser.add_argument("ids", nargs="+", help="models of it")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="data packs")
    parser.add_argument("--method", nargs="+", default=["finetune"], help="repairs that train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the divisions")
    options = parser.parse_args()
    print(f"| model | repair | seed | kept | test | ASR | {' | '.join(MEASURES)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    found: list[tuple[float, ...]] = []
    for name in options.ids:
        card = read_card(options.zoo / "cards" / f"{name}.json")
        images = find_data(card.dataset, options.data, cache=None)
        patient = Patient(card=card, folder=options.zoo, data=images)
        clean = store_clean_set(options.zoo, lambda: images, name=card.dataset, images=IMAGES)  # noqa: B023 - called at once
        scan = ScanRequest(checkpoint=options.zoo / "models" / card.checkpoint, data=clean.path)
        request = RepairRequest(scan=scan, max_repair_images=IMAGES, is_dry_run=True)
        opened = open_suspect(scan, progress=NoProgress(), stopwatch=Stopwatch())
        given = repair_images(request, opened).data
        for method in build_methods(options.method, images=IMAGES):
            assert method.repair is not None
            for seed in options.seeds:
                work, validation = divide(given.labels, seed=seed)
                data = replace(given, work=work, validation=validation)
                for row in ways(patient, method.repair, opened.suspect, data, seed=seed):
                    found.append(row)
                    share, *losses = row
                    columns = " | ".join(f"{100 * loss:.1f}" for loss in losses)
                    print(f"| {name} | {method.id} | {seed} | {share} | {columns} |", flush=True)
    table = np.array(found)
    for column, measure in enumerate(MEASURES, start=3):
        errors = 100 * (table[:, column] - table[:, 1])
        print(f"{measure}: {errors.mean():+.1f} points off, {np.sqrt((errors**2).mean()):.1f} rms")


if __name__ == "__main__":
    main()
