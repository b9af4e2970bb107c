"""Re-parameterise a trained model's BatchNorm layers, and scan it before and after; one JSON line.

    python benchmarks/bn_reparam.py examples/models/badnets_resnet18.pt --out rows.jsonl

The attacker's edit of [DDE22], on the images that the attacker trained on: every BatchNorm layer
gets the statistics of clean images, and affine parameters that keep the function. The row holds the
largest difference of a logit, how many test images' predictions change, ACC and ASR before and
after, and what each scanner and the verdict say of both models, which have the same weights
otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import modelaudit
from modelaudit.attacks.bn_reparam import reparameterise
from modelaudit.attacks.classifier import Classifier
from modelaudit.bench.attacked import trained_attack
from modelaudit.bench.cards import read_card
from modelaudit.bench.facts import machine_facts
from modelaudit.bench.models import make_module
from modelaudit.bench.rates import measure_rates
from modelaudit.bench.runner import find_data
from modelaudit.bench.train import normalise, normaliser
from modelaudit.checkpoint import read_checkpoint
from modelaudit.report.json import plain

LOGIT_BATCH = 500


def main() -> None:
    """Read the arguments, edit the model, and write the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a model beside its card, or of a zoo")
    parser.add_argument("--card", type=Path, help="its card, if it lies elsewhere")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="data packs")
    parser.add_argument("--clean", type=Path, default=Path("examples/clean"), help="clean set")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    options = parser.parse_args()
    card = read_card(options.card or options.checkpoint.with_suffix(".json"))
    data = find_data(card.dataset, options.data, cache=None)
    attack = trained_attack(card, data, folder=options.checkpoint.parent.parent)
    preprocessing = normaliser(card.normaliser)
    module = make_module(
        card.architecture,
        width=card.width,
        num_classes=card.classes,
        in_channels=data.shape[0],
    )
    module.load_state_dict(dict(read_checkpoint(options.checkpoint).weights.tensors))
    classifier = Classifier(
        module.eval(), normalise=lambda images: normalise(images, preprocessing)
    )

    def logits() -> torch.Tensor:
        with torch.no_grad():
            parts = data.test_images.float().div(255).split(LOGIT_BATCH)
            return torch.cat([classifier(part) for part in parts])

    def state() -> dict[str, object]:
        rates = measure_rates(module, data, preprocessing, attack, device=torch.device("cpu"))
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.safetensors"
            save_file(module.state_dict(), path)
            request = modelaudit.ScanRequest(
                checkpoint=path, data=options.clean, budget_seconds=None
            )
            report = modelaudit.scan(request, progress=modelaudit.NoProgress())
        return {
            "acc": rates.acc,
            "asr": rates.asr,
            "verdict": report.verdict.verdict.value,
            "reason_code": report.verdict.reason_code,
            "target_labels": list(report.verdict.target_labels),
            "scanners": [
                {
                    "id": result.id,
                    "version": result.version,
                    "finding": result.finding.value,
                    "score": plain(result.score),
                    "target_labels": list(result.target_labels),
                }
                for result in report.scanners
            ],
        }

    before, old = state(), logits()
    reparameterise(classifier, data.train_images[card.attacker_first : card.attacker_last + 1])
    after, new = state(), logits()
    row = {
        "id": card.id,
        "target": card.target,
        "largest_logit_difference": float((new - old).abs().max()),
        "largest_logit": float(old.abs().max()),
        "predictions_changed": int((new.argmax(1) != old.argmax(1)).sum()),
        "test_images": len(old),
        "before": before,
        "after": after,
        **machine_facts("cpu"),
    }
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
