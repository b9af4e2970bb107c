"""What fitting found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelaudit.architectures.base import Candidate
    from modelaudit.fit.crops import TrainingCrop
    from modelaudit.preprocessing import Preprocessing
    from modelaudit.results import Choice


def accuracy_gate(num_classes: int) -> float:
    """Return the accuracy below which nothing that a detector says has a meaning.

    1/K + 0.2 · (1 - 1/K) (methods/detectors.md §1.6): a fifth of the way from chance to perfect. To
    be held against the one-sided lower 95 % bound of the accuracy.

    Args:
        num_classes: outputs K, at least 2.

    Returns:
        A fraction: 0.6 for 2 classes, 0.28 for 10, 0.204 for 200.
    """
    chance = 1 / num_classes
    return chance + 0.2 * (1 - chance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """One way to run the model on the clean set, and how sure it is.

    Attributes:
        module: float32, eval mode, on the device that was asked for; expects normalised input.
        candidate: the architecture.
        preprocessing: normalisation with one value per input channel.
        input_size: side of the square input, pixels.
        input_channels: 1 or 3.
        num_classes: outputs K.
        labels: the output that each clean image should lead to; None if unlabelled. Shape ``(N,)``,
            int64, CPU.
        predictions: the output that each clean image leads to. Shape ``(N,)``, int64, CPU.
        class_names: names by output, empty strings where unknown. Length K.
        accuracy: share of the judging images with prediction = label; None if unlabelled.
        accuracy_interval: its two-sided 95 % Clopper-Pearson interval.
        gate: what the lower bound of the accuracy has to reach.
        passes_gate: whether it does; True if there are no labels to measure it with.
        preprocessing_is_certain: False if the images are unlabelled, no preprocessing was given,
            and the model's BatchNorm statistics are missing or fit none of the known ones. Then no
            verdict may be ``clean``.
        divergence: median divergence of the first BatchNorm layer from the judging images under the
            chosen preprocessing and training crop, nats; None without BatchNorm.
        training_crop: the random crop of training that the running statistics show; compare with
            them only on images that `training_crops` has cropped in this way.
        choices: everything that was worked out, with its margin on the judging images.
        notes: sentences that the reader of the report should see.
        forward_passes: images that went through a whole module.
        stem_passes: images that went only as far as the first BatchNorm layer.
    """

    module: nn.Module
    candidate: Candidate
    preprocessing: Preprocessing
    input_size: int
    input_channels: int
    num_classes: int
    labels: Tensor | None
    predictions: Tensor
    class_names: tuple[str, ...]
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    gate: float
    passes_gate: bool
    preprocessing_is_certain: bool
    divergence: float | None
    training_crop: TrainingCrop
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    forward_passes: int
    stem_passes: int
