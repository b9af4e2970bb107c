"""Print how much memory and time MBNS's statistic takes, as a Markdown table.

Example: python benchmarks/mbns_memory.py --architectures resnet18 resnet50 --images 500 2000

The statistics of images are drawn at random, a dozen factors behind all channels: no image is
passed through a network. One thread; each row is a process of its own, for the peak is a
process's. Needs an operating system that tells a process's peak (not Windows).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from modelaudit.preprocessing import Preprocessing
from modelaudit.scanners._divergences import divergences
from modelaudit.scanners.mbns import MbnsConfig
from modelaudit.suspect import Profile, SiteProfile, Suspect

_FACTORS = 12
_POSITIONS = 49


def _suspect(architecture: str) -> Suspect:
    """Return an untrained model of torchvision's."""
    from torchvision import models

    return Suspect(
        models.get_model(architecture, num_classes=10).eval(),
        preprocessing=Preprocessing(id="none", mean=(0.0,), std=(1.0,)),
        input_size=64,
        num_classes=10,
    )


def _profile(suspect: Suspect, images: int) -> Profile:
    """Draw what a pass over `images` would yield, and running statistics of another mixture."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factors, other = draw(images, _FACTORS), 0.3 * draw(_FACTORS)
    sites = []
    for site in suspect.sites:
        loads = 0.2 * draw(_FACTORS, site.channels)
        sums, squares = factors @ loads, draw(images, site.channels)
        sums += 0.2 * squares
        squares.mul_(0.05).add_(1.0).addcmul_(sums, sums).mul_(_POSITIONS)
        sums.mul_(_POSITIONS)
        layer = suspect.module.get_submodule(site.name)
        layer.get_buffer("running_mean").copy_(other @ loads + 0.01 * draw(site.channels))
        layer.get_buffer("running_var").copy_(1.04 + loads.square().sum(0))
        sites.append(
            SiteProfile(
                site=site,
                sums=sums,
                squares=squares,
                peaks=torch.zeros(images, site.channels),
                positions=_POSITIONS,
            )
        )
    return Profile(
        logits=torch.zeros(images, 10), features=None, sites=tuple(sites), seconds_per_image=0.0
    )


def _peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _row(architecture: str, images: int) -> str:
    torch.set_num_threads(1)
    suspect = _suspect(architecture)
    shared = _profile(suspect, images)
    held = sum(t.nbytes for r in shared.sites for t in (r.sums, r.squares, r.peaks))
    before, start = _peak(), time.process_time()
    divergences(suspect, shared, resamples=200, seed=0, ridge=MbnsConfig().ridge)
    seconds = time.process_time() - start
    channels = sum(r.site.channels for r in shared.sites)
    return (
        f"| {architecture} | {channels:,} | {images:,} | {held / 1e9:.2f} "
        f"| {(_peak() - before) / 1e9:.2f} | {seconds:.1f} |"
    )


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2000])
    options = parser.parse_args()
    print(
        "| architecture | channels | images | shared pass holds (GB) | MBNS beyond that, at most "
        "(GB) | CPU seconds |"
    )
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        sizes = itertools.product(options.architectures, options.images)
        for row in pool.map(_row, *zip(*sizes, strict=True)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
