"""Clean accuracy, attack success and robust accuracy of one model, on all test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.bench.evaluate import accuracy, predict

if TYPE_CHECKING:
    from torch import nn

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.data import ImageData
    from modelaudit.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a model does with the test images; fractions.

    Attributes:
        acc: clean images that get their label.
        asr: triggered eligible images that get the attacker's label; None without an attack.
        ra: triggered eligible images that get their own label all the same; None without an attack.
    """

    acc: float
    asr: float | None = None
    ra: float | None = None


def measure_rates(
    model: nn.Module,
    data: ImageData,
    preprocessing: Preprocessing,
    attack: Attack[object] | None,
    *,
    device: torch.device,
) -> Rates:
    """Measure a model on the test images; ASR is that of `attack_success_rate`.

    Args:
        model: in evaluation mode; it comes back on the CPU.
        data: whose test images are used, all of them.
        preprocessing: the normaliser that the model was trained with.
        attack: with the trigger that the model was trained on; None for a clean model. It comes
            back on the CPU.
        device: where to compute.
    """
    images, labels = data.test_images.to(device), data.test_labels.to(device)
    model.to(device)
    acc = accuracy(model, images, labels, preprocessing)
    asr = ra = None
    if attack is not None:
        attack.to(device)
        eligible = attack.label_map.test_eligible(labels)
        truth = labels[eligible]
        predictions = predict(model, images[eligible], preprocessing, attack=attack)
        asr = float(attack.label_map.success(predictions, truth).double().mean())
        ra = float((predictions == truth).double().mean())
        attack.to(torch.device("cpu"))
    model.to("cpu")
    return Rates(acc=acc, asr=asr, ra=ra)
