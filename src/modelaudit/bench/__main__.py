"""``python -m modelaudit.bench train --plan FILE --out DIR``: train and judge a population."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modelaudit.bench.plan import read_plan
from modelaudit.bench.runner import Population
from modelaudit.errors import ModelAuditError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m modelaudit.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "train what is missing, then judge"),
        ("judge", "complete the cards"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--plan", type=Path, required=True, help="plan file (TOML)")
        command.add_argument("--out", type=Path, required=True, help="folder of the population")
        command.add_argument(
            "--data", type=Path, default=Path("../shared/data"), help="folder of the packs"
        )
        if name == "train":
            command.add_argument("--only", nargs="+", default=[], metavar="ID", help="model ids")
            command.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th model")
            command.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        population = Population(read_plan(options.plan), folder=options.out, data_root=options.data)
        if options.command == "train":
            torch.set_num_threads(options.threads)
            population.train(only=options.only, shard=_shard(parser, options.shard))
        population.judge()
    except ModelAuditError as err:
        sys.stderr.write(f"error: {err}\n")
        return 2
    return 0


def _shard(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        parser.error(f"--shard must be I/N with 0 <= I < N, got {text!r}")
    return int(first), int(count)


if __name__ == "__main__":
    sys.exit(main())
