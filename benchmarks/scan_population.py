"""Scan every model of a trained population as a user would, and write one JSON line for each.

    python benchmarks/scan_population.py --plan benchmarks/plans/test.toml --zoo zoo \
        --data examples/clean --out benchmarks/results/test.jsonl [--scanner ban@paper_code]

Resumable: models that the output file already holds under the same scanners are left out. The card
    beside each
model gives the truth, which the scan never sees.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from modelaudit import engine
from modelaudit.bench.plan import read_plan
from modelaudit.progress import NoProgress
from modelaudit.report import to_document


def main() -> None:
    """Read the arguments and scan what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True, help="plan whose models are scanned")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder of models and cards")
    parser.add_argument("--data", type=Path, default=Path("examples/clean"), help="clean set")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    parser.add_argument("--scanner", action="append", default=[], help="id; all if omitted")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    parser.add_argument("--shard", default="0/1", help="i/n: scan every n-th model from the i-th")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    done = set()
    if options.out.exists():
        done = {json.loads(line)["id"] for line in options.out.read_text("utf-8").splitlines()}
    first, step = map(int, options.shard.split("/"))
    for model in read_plan(options.plan).models[first::step]:
        path = options.zoo / "models" / f"{model.id}.pt"
        if model.id in done or not path.exists():
            continue
        row = scan_one(model.id, path, options)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(summary(row), flush=True)


def scan_one(model_id: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return card and report of one model."""
    request = engine.ScanRequest(
        checkpoint=path,
        data=options.data,
        scanners=tuple(options.scanner),
        budget_seconds=None,
    )
    card = json.loads((options.zoo / "cards" / f"{model_id}.json").read_text("utf-8"))
    document = to_document(engine.scan(request, progress=NoProgress()))
    return {
        "id": model_id,
        "truth": {
            key: card[key]
            for key in ("attack", "label_map", "target", "acc", "asr", "benign_asr", "gate_passed")
        },
        "architecture": f"{card['architecture']} width {card['width']}",
        "hardware": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "report": document,
    }


def summary(row: dict[str, Any]) -> str:
    """Return one line for the terminal."""
    report, truth = row["report"], row["truth"]
    scores = ", ".join(
        f"{s['id']} {s['finding']} {s['score'] if s['score'] is None else round(s['score'], 3)}"
        f" {s['target_labels']}"
        for s in report["scanners"]
    )
    attack = truth["attack"] or "clean"
    return (
        f"{row['id']}: truth {attack} {truth['label_map'] or ''} {truth['target']}, "
        f"{report['verdict']} {report['pattern']} {report['target_labels']} | {scores}"
    )


if __name__ == "__main__":
    main()
