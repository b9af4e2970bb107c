"""The shipped examples are what their cards and README say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelaudit.bench.cards import read_card
from modelaudit.bench.data import pack_jpeg

EXAMPLES = Path("examples")
PACK = Path("../shared/data/cifar10_jpeg.npz")
NAMES = ("clean_resnet18.safetensors", "badnets_resnet18.pt", "blend_resnet18.pt")

needs_models = pytest.mark.skipif(
    not (EXAMPLES / "models").is_dir(), reason="examples/models is in the repository only"
)
needs_images = pytest.mark.skipif(
    not (EXAMPLES / "clean").is_dir(), reason="examples/clean is in the repository only"
)


@needs_models
@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_is_small_and_the_one_on_its_card(name: str) -> None:
    content = (EXAMPLES / "models" / name).read_bytes()
    card = read_card((EXAMPLES / "models" / name).with_suffix(".json"))
    assert len(content) < 3_000_000
    assert card.checkpoint == name
    assert card.checkpoint_sha256 == hashlib.sha256(content).hexdigest()
    assert (card.architecture, card.width, card.plan) == ("cifar_resnet18", 16, "examples")
    assert name.startswith(card.attack or "clean")


@needs_models
def test_attacks_passed_the_gate_and_have_different_targets() -> None:
    cards = [read_card((EXAMPLES / "models" / name).with_suffix(".json")) for name in NAMES[1:]]
    assert [card.target for card in cards] == [7, 2]
    assert all(card.gate_passed for card in cards)
    assert {card.twin for card in cards} == {"clean_resnet18"}


@needs_models
def test_the_three_ways_of_saving_hold_the_same_names() -> None:
    names = set(load_file(EXAMPLES / "models" / NAMES[0]))
    nested = torch.load(EXAMPLES / "models" / NAMES[2], weights_only=True)
    assert {name.removeprefix("module.") for name in nested["net"]} == names
    with pytest.raises(Exception, match="__main__"):
        torch.load(EXAMPLES / "models" / NAMES[1], weights_only=True)


@needs_images
def test_each_class_has_fifty_held_out_images() -> None:
    folders = sorted(path for path in (EXAMPLES / "clean").iterdir() if path.is_dir())
    assert len(folders) == 10
    for folder in folders:
        indices = [int(file.stem) for file in folder.iterdir()]
        assert len(indices) == 50
        assert all(45_000 <= index < 50_000 for index in indices)


@needs_images
def test_images_are_the_packs_own_bytes() -> None:
    if not PACK.exists():
        pytest.skip(f"the data pack {PACK} is not here")
    files = sorted((EXAMPLES / "clean").glob("*/*.jpg"))[::25]
    stored = pack_jpeg(PACK, [int(file.stem) for file in files])
    assert [file.read_bytes() for file in files] == stored
