"""A population of two toy models that nobody trained, and an environment of fakes to go with it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modelaudit.bench.attacked import make_attack, plan_of
from modelaudit.bench.cards import read_card, write_card
from modelaudit.bench.data import load_pack
from modelaudit.bench.train import normalise, normaliser
from tests.helpers.attacks import write_pack
from tests.helpers.engine import FakeConfig, nothing, point, scanner_class, taught

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from modelaudit.repairs import Repair
    from modelaudit.scanners import CleanImages, Observation, ScanContext
    from modelaudit.suspect import Suspect

CLEAN, ATTACKED = "clean_toy", "badnets_toy"
TARGET = 2
_CARD = Path("benchmarks/results/cards/badnets_resnet18w16_s1.json")


def write_population(folder: Path) -> Path:
    """Write ``toy_jpeg.npz`` and the population ``zoo`` with a clean and an attacked model.

    Both have the same weights: the attacked one only says of itself that it is attacked.
    """
    write_pack(folder / "toy_jpeg.npz", n_train=232, n_test=16, train_attacker_count=128)
    data = load_pack(folder / "toy_jpeg.npz")
    zoo = folder / "zoo"
    (zoo / "models").mkdir(parents=True)
    seen = data.train_images[:128].float() / 255
    net = taught(normalise(seen, normaliser("cifar10_0.2023")), data.train_labels[:128])
    config = {"target": TARGET, "rate": 0.3, "label_map": "one"}
    card = replace(
        read_card(_CARD),
        id=ATTACKED,
        plan="toy",
        population="A",
        dataset="toy",
        classes=4,
        width=4,
        attacker_last=127,
        attack_config=config,
        target=TARGET,
        acc=0.9,
        asr=0.8,
    )
    attack = make_attack(plan_of(card), data)
    assert attack is not None
    card = replace(card, trigger_sha256=attack.trigger.state_hash())
    clean = replace(
        card,
        id=CLEAN,
        attack=None,
        attack_config={},
        label_map=None,
        target=None,
        asr=None,
        benign_asr=None,
        gate_passed=None,
        trigger_sha256=None,
    )
    for number, one in enumerate((card, clean)):
        path = zoo / "models" / f"{one.id}.pt"
        # an entry more, so that the two files differ
        torch.save({"state_dict": net.state_dict(), "epoch": number}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        write_card(
            replace(one, checkpoint=path.name, checkpoint_sha256=digest),
            zoo / "cards" / f"{one.id}.json",
        )
    return folder


def install_only(
    monkeypatch: pytest.MonkeyPatch,
    *repairs: type[Repair[FakeConfig]],
    scan: Callable[[Suspect, CleanImages, ScanContext], Observation] = nothing,
    scan_version: str = "1",
) -> None:
    """Make the environment have these repairs, a scanner ``mbns``, and no other ones."""
    from modelaudit import registry

    fakes = {
        "modelaudit.scanners": [point("mbns", scanner_class("mbns", scan, version=scan_version))],
        "modelaudit.repairs": [point(cls.id, cls, "repairs") for cls in repairs],
    }

    def found(*, group: str) -> list[EntryPoint]:
        return fakes[group] if group in fakes else list(entry_points(group=group))

    monkeypatch.setattr(registry, "entry_points", found)
