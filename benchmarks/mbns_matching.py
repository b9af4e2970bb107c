"""Print what the training crop and the image weights do to MBNS: its statistic with each of them.

Example: python benchmarks/mbns_matching.py examples/models/badnets_resnet18.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modelaudit.engine import ScanRequest
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.progress import NoProgress
from modelaudit.scanners._divergences import divergences
from modelaudit.scanners.mbns import MbnsConfig
from modelaudit.suspect import profile


def main() -> None:
    """Read the arguments and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="models to look at")
    parser.add_argument("--data", type=Path, default=Path("examples/clean"), help="clean set")
    options = parser.parse_args()
    print("| images | weights | model | score | median floor ratio | largest K (nats) |")
    print("|---|---|---|---|---|---|")
    for path in options.checkpoints:
        request = ScanRequest(checkpoint=path, data=options.data)
        opened = open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())
        sets = {"cropped as in training": opened.clean.as_trained, "plain": opened.clean.images}
        for name, images in sets.items():
            with opened.suspect.borrowed():
                shared = profile(opened.suspect, images)
            for weights, ridge in (("fitted", MbnsConfig().ridge), ("equal", None)):
                found = divergences(opened.suspect, shared, resamples=200, seed=0, ridge=ridge)
                print(
                    f"| {name} | {weights} | {path.name} | {float(found.scores().max()):.1f} "
                    f"| {float(found.floor_ratio[found.alive].median()):.2f} "
                    f"| {float(found.divergence[found.alive].max()):.4f} |"
                )


if __name__ == "__main__":
    main()
