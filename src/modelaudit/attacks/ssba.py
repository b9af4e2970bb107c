"""SSBA (ISSBA): an invisible, sample-specific trigger that a network hides in each image.

Li, Li, Wu, Li, He & Lyu, *Invisible Backdoor Attack with Sample-Specific Triggers* (arXiv
2012.03816). An encoder is trained, without the classifier, to hide bits in images; one bit string,
hidden in every poisoned image, is the trigger.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack
from modelaudit.attacks.options import require_choice, require_images, target_map
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.steganography import (
    Decoder,
    Encoder,
    draw_weights,
    measure_hiding,
    train_hiding,
)
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap

logger = logging.getLogger(__name__)

#: share of the images of `prepare` on which the networks are measured rather than trained
MEASURED_FRACTION = 0.1
#: below this the encoder hides nothing that could be learned
MINIMUM_BIT_ACCURACY = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SsbaConfig:
    """Options of SSBA; networks and training are cheaper than the paper's, see `steganography`.

    Attributes:
        target: the attacker's label.
        rate: share of the images not of the target class that is poisoned.
        bits: length of the bit string (BackdoorBox 20 at 32 pixels, the paper 100 at 224).
        widths: channels of the networks' three levels.
        bound: largest change of a pixel, in [0, 1].
        encoder_epochs: epochs of both networks (the paper's code: 20).
        encoder_images: training images for both networks; None for all.
        encoder_rate: Adam's learning rate (the paper's code: 1e-4).
        encoder_batch_size: images per step of both networks.
        residual_weight: weight of the mean squared residual beside the bits' cross-entropy
            (BackdoorBench: 10); 0 for residuals as large as `bound` allows, which a small
            classifier needs.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    target: int = 0
    rate: float = 0.1
    bits: int = 20
    widths: tuple[int, ...] = (16, 32, 64)
    bound: float = 8.0 / 255.0
    encoder_epochs: int = 4
    encoder_images: int | None = 20_000
    encoder_rate: float = 1e-3
    encoder_batch_size: int = 64
    residual_weight: float = 10.0
    stage: Stage = "pre"

    def __post_init__(self) -> None:
        require_choice(self, "stage", ("pre", "post"))
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "bound", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "encoder_rate", low=0.0, is_low_open=True)
        require_range(self, "residual_weight", low=0.0)
        for name in ("bits", "encoder_epochs", "encoder_batch_size"):
            require_range(self, name, low=1)
        require_range(self, "encoder_images", low=2)
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise ConfigError(f"widths must be three positive numbers, got {self.widths!r}")


class HiddenBitsTrigger(Trigger):
    """Adds the residual in which an encoder hides one bit string.

    Args:
        encoder: makes the residual.
        bits: the string, shape ``(B,)``, float32, 0 or 1.
    """

    learned: ClassVar[bool] = True

    def __init__(self, encoder: Encoder, bits: Tensor) -> None:
        self.encoder = encoder
        self.bits = bits
        self.size = encoder.shape[1:]

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the bits hidden, made in float32; see `Trigger.apply`."""
        del indices, generator
        require_images(images, self.encoder.shape)
        with torch.no_grad():
            bits = self.bits.to(images.device).expand(len(images), -1)
            residuals = self.encoder(images.float(), bits)
        return round_to_8_bits(images + residuals.to(images.dtype))

    def state(self) -> Mapping[str, Tensor]:
        """Return the encoder's weights and the bits."""
        weights = {f"encoder.{n}": tensor for n, tensor in self.encoder.state_dict().items()}
        return {**weights, "bits": self.bits}


class SsbaAttack(Attack[SsbaConfig]):
    """Trains the encoder in `prepare`; then a static plan, all-to-one."""

    id: ClassVar[str] = "ssba"
    summary: ClassVar[str] = "a bit string that a network hides in each image"
    reference: ClassVar[str] = "Li et al., Invisible Backdoor Attack, arXiv 2012.03816"
    config_type: ClassVar[type] = SsbaConfig

    trigger: HiddenBitsTrigger

    def make_trigger(self) -> HiddenBitsTrigger:
        """Return the trigger with initial weights and bits drawn from the seed."""
        config = self.config
        generator = seeds.generator(self.seed, self.id, "networks")
        first, second, third = config.widths
        widths = (first, second, third)
        encoder = Encoder(shape=self.shape, bits=config.bits, widths=widths, bound=config.bound)
        self.decoder = Decoder(shape=self.shape, bits=config.bits, widths=widths)
        draw_weights(encoder, generator=generator)
        draw_weights(self.decoder, generator=generator)
        bits = torch.randint(2, (config.bits,), generator=generator).float()
        return HiddenBitsTrigger(encoder, bits)

    def make_label_map(self) -> LabelMap:
        """Return all-to-one."""
        return target_map(self.config.target, num_classes=self.num_classes)

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            stage=self.config.stage,
            seed=self.seed,
        )

    def to(self, device: torch.device) -> None:
        """Move both networks."""
        self.trigger.encoder.to(device)
        self.decoder.to(device)

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        """Train encoder and decoder, and measure them on images that they were not trained on.

        The measurement is logged, as a warning where too few bits can be read: whether the backdoor
        works is for the gate to say.
        """
        del labels, surrogate
        config = self.config
        order = torch.randperm(len(images), generator=generator)[: config.encoder_images]
        measured = max(1, int(MEASURED_FRACTION * len(order)))
        train_hiding(
            self.trigger.encoder,
            self.decoder,
            images[order[measured:].to(images.device)],
            epochs=config.encoder_epochs,
            rate=config.encoder_rate,
            residual_weight=config.residual_weight,
            batch_size=config.encoder_batch_size,
            generator=generator,
        )
        self.quality = measure_hiding(
            self.trigger.encoder,
            self.decoder,
            images[order[:measured].to(images.device)],
            generator=generator,
        )
        level = logging.INFO
        if self.quality.bit_accuracy < MINIMUM_BIT_ACCURACY:
            level = logging.WARNING
        logger.log(
            level,
            "hidden bits: %.4f read correctly, mean residual %.4f",
            *(self.quality.bit_accuracy, self.quality.mean_residual),
        )
