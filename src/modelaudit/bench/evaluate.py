"""Clean accuracy, attack success rate and benign attack success rate, on test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit import seeds
from modelaudit.bench.train import normalise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelaudit.attacks.base import Attack
    from modelaudit.preprocessing import Preprocessing


def predict(
    model: nn.Module,
    images: Tensor,
    preprocessing: Preprocessing,
    *,
    attack: Attack[object] | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Return the predicted label of each image.

    Args:
        model: in evaluation mode.
        images: ``(N, C, H, W)`` uint8.
        preprocessing: the model's normaliser.
        attack: puts its test-time trigger on the images first.
        batch_size: images per forward pass; changes no result.

    Returns:
        ``(N,)`` int64.
    """
    predictions = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].float() / 255.0
            if attack is not None:
                indices = torch.arange(start, start + len(batch))
                generator = seeds.generator(attack.seed, "test_trigger", start)
                batch = attack.trigger.apply(batch, indices=indices, generator=generator)
            predictions.append(model(normalise(batch, preprocessing)).argmax(1))
    return torch.cat(predictions)


def accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, preprocessing: Preprocessing
) -> float:
    """Return the fraction of images that get their label (ACC)."""
    return float((predict(model, images, preprocessing) == labels).double().mean())


def attack_success_rate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    attack: Attack[object],
) -> float:
    """Return the fraction of triggered eligible images that get the attacker's label (ASR).

    With the clean twin as `model` this is the benign ASR. Eligible are, for all-to-one, the images
    of other classes, and for all-to-all every image.
    """
    eligible = attack.label_map.test_eligible(labels)
    predictions = predict(model, images[eligible], preprocessing, attack=attack)
    return float(attack.label_map.success(predictions, labels[eligible]).double().mean())
