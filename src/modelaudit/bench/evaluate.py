"""Clean accuracy, attack success rate and what a trigger must not do, on test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit import seeds
from modelaudit.attacks.label_maps import SourceSpecific
from modelaudit.bench.train import normalise
from modelaudit.errors import ConfigError

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
    is_cover: bool = False,
    batch_size: int = 500,
) -> Tensor:
    """Return the predicted label of each image.

    Args:
        model: in evaluation mode, on the device of `images`.
        images: ``(N, C, H, W)`` uint8.
        preprocessing: the model's normaliser.
        attack: puts its test-time trigger on the images first; where that differs by image (Refool)
            it goes by the image's place in `images`, whatever its place in the data set.
        is_cover: put the attack's cover on the images instead; each image's donor is the one before
            it.
        batch_size: images per forward pass; changes no result unless the trigger draws at random.

    Returns:
        ``(N,)`` int64.
    """
    predictions = []
    donors = images.roll(1, 0)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            chosen = slice(start, start + batch_size)
            batch = images[chosen].float() / 255.0
            if attack is not None and is_cover:
                generator = seeds.generator(attack.seed, "test_cover", start)
                batch = attack.trigger.cover(
                    batch, donors=donors[chosen].float() / 255.0, generator=generator
                )
            elif attack is not None:
                indices = torch.arange(start, start + len(batch), device=batch.device)
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

    With the clean twin as `model` this is the benign ASR. Eligible are, for all-to-one and
    clean-label, the images of other classes, for source-specific those of the victim class, and for
    all-to-all every image.
    """
    eligible = attack.label_map.test_eligible(labels)
    predictions = predict(model, images[eligible], preprocessing, attack=attack)
    return float(attack.label_map.success(predictions, labels[eligible]).double().mean())


def cover_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    attack: Attack[object],
) -> float | None:
    """Return the fraction of images that keep their label under something like the trigger.

    The noise accuracy of WaNet, the cross accuracy of IAD and SSDT, the accuracy on Bpp's negatives
    and under the partial triggers of the adaptive attacks; all images count.

    Returns:
        The fraction, or None if the attack has no such images.
    """
    if not attack.has_cover:
        return None
    predictions = predict(model, images, preprocessing, attack=attack, is_cover=True)
    return float((predictions == labels).double().mean())


def non_victim_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    attack: Attack[object],
) -> float | None:
    """Return the fraction of images of other classes that keep their label under the trigger.

    Returns:
        The fraction, or None if the attack is not source-specific.

    Raises:
        ConfigError: every image is of the victim class.
    """
    if not isinstance(attack.label_map, SourceSpecific):
        return None
    others = ~attack.label_map.test_eligible(labels)
    if not others.any():
        raise ConfigError("expected test images of other classes than the victim, found none")
    predictions = predict(model, images[others], preprocessing, attack=attack)
    return float((predictions == labels[others]).double().mean())
