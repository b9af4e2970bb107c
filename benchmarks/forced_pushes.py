"""Push channels of clean models as `mbns` pushes traces, and count where classes shift one by one.

    python benchmarks/forced_pushes.py zoo/models/clean_*.pt --data zoo/clean/cifar10_500.npz

Clean models have no strong finding, so that the scanner itself tries no push on them. Here the
channels of the clearest traces are taken for traces whatever their scores, few and many of them,
and pushed in the proportions that they have, the furthest by 1 to 32 running deviations, both ways
(a clean model's own traces hardly move an image), beside as many pushes of random channels. A *sure
shift* is a map like a permutation along which surely more than half of the held-out images move:
what confirms all-to-all whatever removing the traces costs, and even where one control follows the
same arrows, if the opposite push and the other controls do not
(``docs/adr/0018-permutations.md``, ``0019-weaker-witnesses.md``). On a clean model every one would
be a step to a false confirmation, had the score been strong. Prints one line per model and one for
all.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modelaudit.engine import ScanRequest
from modelaudit.engine.intake import Opened, Stopwatch, open_suspect
from modelaudit.functional.shares import arrow_map, is_permutation_like
from modelaudit.functional.statistics import lower_bound
from modelaudit.progress import NoProgress
from modelaudit.scanners._channels import MOST_SHIFTED, pushed_predictions
from modelaudit.scanners._divergences import divergences
from modelaudit.scanners.mbns import MbnsConfig
from modelaudit.seeds import generator
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from torch import Tensor

COUNTS = (3, 10, 30, 100, 300)
#: how far the furthest channel is pushed, in its running deviations
FURTHEST = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(slots=True)
class Tally:
    """What pushes did.

    Attributes:
        pushes: how many.
        moving: that moved more than half of the images.
        shifts: that look like a permutation of the classes.
        sure: along which surely more than half of the images moved.
        most: largest share of images along the arrows of a map like a permutation.
    """

    pushes: int = 0
    moving: int = 0
    shifts: int = 0
    sure: int = 0
    most: float = 0.0

    def add(self, predictions: Tensor, labels: Tensor, classes: int) -> None:
        """Count one push."""
        arrows = arrow_map(predictions, labels, classes)
        self.pushes += 1
        self.moving += int(float((predictions != labels).double().mean()) > 0.5)
        if not is_permutation_like(arrows):
            return
        along = int((arrows.errors * arrows.shares).round().sum())
        self.shifts += 1
        self.sure += int(lower_bound(along, len(labels)) > MOST_SHIFTED)
        self.most = max(self.most, along / len(labels))

    def join(self, other: Tally) -> None:
        """Count what another counted too."""
        self.pushes += other.pushes
        self.moving += other.moving
        self.shifts += other.shifts
        self.sure += other.sure
        self.most = max(self.most, other.most)

    def __str__(self) -> str:
        """Return the columns of a Markdown row."""
        return f"{self.pushes} | {self.moving} | {self.shifts} | {self.sure} | {self.most:.2f}"


def forced(opened: Opened, *, seed: int = 0) -> tuple[Tally, Tally]:
    """Push the clearest traces of a model, and random channels; return what each did."""
    suspect, clean, config = opened.suspect, opened.clean, MbnsConfig()
    images, labels = clean.judged()
    draws = generator(seed, "benchmark", "forced_pushes")
    told, random = Tally(), Tally()
    with suspect.borrowed():
        shared = profile(suspect, clean.as_trained)
        found = divergences(suspect, shared, resamples=50, seed=seed, ridge=config.ridge)
        order = found.traces().argsort(descending=True)
        alive = found.alive.nonzero().flatten()
        for count in COUNTS:
            clearest = order[:count]
            sizes = found.shift[clearest] / found.shift[clearest].abs().max()
            strengths = [sign * furthest for furthest in FURTHEST for sign in (1, -1)]
            for tally in (told, random):
                pushes = []
                for strength in strengths:
                    rows, amounts = clearest, sizes * strength
                    if tally is random:
                        rows = alive[torch.randperm(len(alive), generator=draws)[:count]]
                        signs = torch.randint(2, (len(rows),), generator=draws) * 2 - 1
                        amounts = amounts[: len(rows)].abs() * signs
                    amounts = amounts * found.deviation[rows]
                    neurons = [found.neurons[i] for i in rows.tolist()]
                    pushes.append(dict(zip(neurons, amounts.tolist(), strict=True)))
                for row in pushed_predictions(suspect, pushes, images, batch_size=256):
                    tally.add(row, labels, suspect.num_classes)
    return told, random


def main() -> None:
    """Read the arguments and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="clean models")
    parser.add_argument("--data", type=Path, required=True, help="clean images")
    options = parser.parse_args()
    columns = "pushes | move half | permutations | sure shifts | most along one"
    print(f"| model | channels | {columns} |\n|---|---|---|---|---|---|---|")
    everything = {"clearest": Tally(), "random": Tally()}
    for path in options.checkpoints:
        request = ScanRequest(checkpoint=path, data=options.data)
        opened = open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())
        for name, tally in zip(everything, forced(opened), strict=True):
            everything[name].join(tally)
            print(f"| {path.stem} | {name} | {tally} |", flush=True)
    for name, tally in everything.items():
        print(f"| all | {name} | {tally} |")


if __name__ == "__main__":
    main()
