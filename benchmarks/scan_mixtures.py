"""Scan every model of a population with DDE on a mixture like its training set, one JSON line each.

    python benchmarks/scan_mixtures.py --plan benchmarks/plans/development.toml --zoo zoo \
        --data ../shared/data --clean examples/clean --out mixtures.jsonl

The mixture holds 1,000 of the attacker's images as `modelaudit.bench.attacked.draw_mixture` draws
them, those that were poisoned among them. Nobody tells the scanner which.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from modelaudit.bench.attacked import draw_mixture, trained_attack
from modelaudit.bench.cards import read_card
from modelaudit.bench.plan import read_plan
from modelaudit.bench.runner import find_data
from modelaudit.engine import ScanRequest
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.progress import NoProgress
from modelaudit.results import ScannerResult
from modelaudit.scanners import ScanContext
from modelaudit.scanners.dde import DdeScanner
from modelaudit.suspect import profile


def main() -> None:
    """Read the arguments and scan what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True, help="plan whose models are scanned")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder of models")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="data packs")
    parser.add_argument("--clean", type=Path, default=Path("examples/clean"), help="clean set")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    options = parser.parse_args()
    done = set()
    if options.out.exists():
        done = {json.loads(line)["id"] for line in options.out.read_text("utf-8").splitlines()}
    plan = read_plan(options.plan)
    for model in plan.models:
        path = options.zoo / "models" / f"{model.id}.pt"
        if model.id in done or not path.exists():
            continue
        data = find_data(model.dataset, options.data, cache=options.zoo / "cache")
        card = read_card(options.zoo / "cards" / f"{model.id}.json")
        mixture = draw_mixture(card, data, trained_attack(card, data, folder=options.zoo))
        request = ScanRequest(checkpoint=path, data=options.clean)
        opened = open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())
        clean = dataclasses.replace(opened.clean, mixture=mixture)
        with opened.suspect.borrowed():
            shared = profile(opened.suspect, clean.as_trained)
        result = DdeScanner().scan(opened.suspect, clean, context=ScanContext(profile=shared))
        assert isinstance(result, ScannerResult)
        row = {
            "id": model.id,
            "finding": result.finding,
            "score": result.score,
            "pattern": result.pattern,
            "target_labels": result.target_labels,
            "evidence": dict(result.evidence),
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(model.id, result.finding, result.score, result.target_labels, flush=True)


if __name__ == "__main__":
    main()
