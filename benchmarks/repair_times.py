"""Time every repair on an example model, and measure what it did; one JSON line each.

    python benchmarks/repair_times.py examples/models/badnets_resnet18.pt --out times.jsonl

The repairs get the 500 images of ``examples/clean`` and see no trigger; `prune_dde` gets a mixture
beside, as `modelaudit.bench.attacked.draw_mixture` draws it. ACC and ASR are of all test images.
Seconds are of the repair alone, without the file, the fit, the scan before, the proof and the
stand-ins, which are searched once for all repairs. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from modelaudit.bench.cards import read_card
from modelaudit.bench.facts import machine_facts
from modelaudit.bench.patient import Patient
from modelaudit.bench.repair_methods import build_methods
from modelaudit.bench.runner import find_data
from modelaudit.registry import Registry
from modelaudit.repairs.data import VALIDATION_FRACTION

IMAGES = 500


def main() -> None:
    """Read the arguments and run every repair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a model of examples/models")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="data packs")
    parser.add_argument("--clean", type=Path, default=Path("examples/clean"), help="clean set")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    options = parser.parse_args()
    card = read_card(options.checkpoint.with_suffix(".json"))
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "models").symlink_to(options.checkpoint.parent.resolve())
        data = find_data(card.dataset, options.data, cache=None)
        patient = Patient(card=card, folder=Path(name), data=data)
        before = patient.rates_before(options.clean, images=IMAGES)
        for method in build_methods(Registry("repairs").ids(), images=IMAGES):
            assert method.repair is not None
            treated = patient.repaired_by(method.repair, options.clean, images=IMAGES)
            given = treated.facts["repair_images"]
            assert isinstance(given, int)
            work = given - round(VALIDATION_FRACTION * given)  # the others choose
            after = before if treated.module is None else patient.rates(treated.module)
            row = {
                "id": card.id,
                "repair": method.full_id,
                "version": method.repair.version,
                "seconds": treated.cost.seconds,
                "forward": treated.cost.forward,
                "forward_backward": treated.cost.forward_backward,
                "passes_per_work_image": treated.cost.forward_backward / work,
                "pruned": treated.pruned,
                "acc": [before.acc, after.acc],
                "asr": [before.asr, after.asr],
                "is_within_budget": treated.facts["is_within_budget"],
                "failure": treated.failure,
                **machine_facts("cpu"),
            }
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row["repair"], f"{row['seconds']:.1f} s", treated.failure or "", flush=True)


if __name__ == "__main__":
    main()
