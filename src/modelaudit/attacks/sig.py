"""SIG: a sine over the columns of images whose label is left as it is.

Barni, Kallas & Tondi, *A New Backdoor Attack in CNNs by Training Set Corruption Without Label
Poisoning* (arXiv 1902.11237).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit.attacks.base import Attack
from modelaudit.attacks.options import require_choice, require_images, target_map
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap


@dataclass(frozen=True, slots=True, kw_only=True)
class SigConfig:
    """Options of SIG.

    Attributes:
        target: the attacker's label.
        amplitude: height of the sine in steps of 1/255; papers use 20 to 40.
        cycles: periods of the sine over the image's width.
        rate: share of the target class that is poisoned; ANP's.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    target: int = 0
    amplitude: float = 40.0
    cycles: float = 6.0
    rate: float = 0.8
    stage: Stage = "post"

    def __post_init__(self) -> None:
        require_range(self, "amplitude", low=0.0, high=255.0)
        require_range(self, "cycles", low=0.0, is_low_open=True)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_choice(self, "stage", ("pre", "post"))


class SineTrigger(Trigger):
    """Adds ``D sin(2 pi f j / W)`` to column j of every row and channel.

    Args:
        shape: channels, height and width of the images.
        amplitude: D, in units of the pixel range [0, 1].
        cycles: f, periods over the width.
    """

    def __init__(self, shape: tuple[int, int, int], *, amplitude: float, cycles: float) -> None:
        self.shape = shape
        self.size = shape[1:]
        columns = torch.arange(shape[2], dtype=torch.float64)
        signal = amplitude * torch.sin(2.0 * math.pi * cycles * columns / shape[2])
        self.signal = signal.float()

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the sine; see `Trigger.apply`."""
        del indices, generator
        require_images(images, self.shape)
        return round_to_8_bits(images + self.signal.to(images))

    def state(self) -> Mapping[str, Tensor]:
        """Return the sine, ``(W,)``."""
        return {"signal": self.signal}


class SigAttack(Attack[SigConfig]):
    """Sine over the columns, clean-label."""

    id: ClassVar[str] = "sig"
    summary: ClassVar[str] = "a sine over the columns of images that keep their label"
    reference: ClassVar[str] = "Barni et al., A New Backdoor Attack in CNNs, arXiv 1902.11237"
    config_type: ClassVar[type] = SigConfig

    def make_trigger(self) -> Trigger:
        """Return the sine of the config; it does not depend on the seed."""
        return SineTrigger(
            self.shape, amplitude=self.config.amplitude / 255.0, cycles=self.config.cycles
        )

    def make_label_map(self) -> LabelMap:
        """Return clean-label."""
        return target_map(self.config.target, num_classes=self.num_classes, id_="clean_label")

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config, which relabels nothing."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            relabel=False,
            stage=self.config.stage,
            seed=self.seed,
        )
