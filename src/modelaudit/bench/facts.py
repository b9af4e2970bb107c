"""What a row says of a model and of the machine."""

from __future__ import annotations

import torch

from modelaudit.bench.cards import ModelCard, processor
from modelaudit.engine.versions import versions

#: what a card knows and no method is told
_TRUTH = (
    "attack",
    "label_map",
    "target",
    "victim",
    "acc",
    "twin_acc",
    "asr",
    "benign_asr",
    "gate_passed",
)


def model_facts(card: ModelCard, size: int | None) -> dict[str, object]:
    """Return what a row says of its model.

    Args:
        card: the model's.
        size: side of its square images in pixels, None if they are none.
    """
    return {
        "id": card.id,
        "plan": card.plan,
        "population": card.population,
        "dataset": card.dataset,
        "architecture": card.architecture,
        "width": card.width,
        "classes": card.classes,
        "input_size": size,
    }


def truth_facts(card: ModelCard) -> dict[str, object]:
    """Return what a row says of what was done to its model."""
    return {name: getattr(card, name) for name in _TRUTH}


def machine_facts(device: str) -> dict[str, object]:
    """Return ``hardware`` and ``versions`` of a row that is made in this process."""
    return {
        "hardware": {"cpu": processor(), "threads": torch.get_num_threads(), "device": device},
        "versions": versions(),
    }
