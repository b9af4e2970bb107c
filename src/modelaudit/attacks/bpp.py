"""BppAttack: fewer colour levels; other images' quantisation errors keep their label.

Wang, Zhai & Ma, *BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via
Image Quantization and Contrastive Adversarial Learning* (arXiv 2205.13383). As in the released
code, the negatives are the only contrast: there is no adversarial loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from modelaudit.attacks.base import Attack
from modelaudit.attacks.options import (
    require_choice,
    require_generator,
    require_images,
    target_map,
)
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap


@dataclass(frozen=True, slots=True, kw_only=True)
class BppConfig:
    """Options of BppAttack; the defaults are those of the released configurations.

    Attributes:
        label_map: ``"one"`` sends every triggered image to `target`, ``"all"`` sends class y to y +
            1.
        target: the attacker's label; not used by ``"all"``.
        levels: values per channel that are left; the released command line says 32.
        is_dithered: whether Floyd-Steinberg dithering spreads the quantisation error.
        rate: share of each batch that is poisoned.
        negative_rate: share of each batch that keeps its label under another image's quantisation
            error.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    label_map: Literal["one", "all"] = "one"
    target: int = 0
    levels: int = 8
    is_dithered: bool = False
    rate: float = 0.2
    negative_rate: float = 0.2
    stage: Stage = "pre"

    def __post_init__(self) -> None:
        require_choice(self, "label_map", ("one", "all"))
        require_range(self, "levels", low=2, high=256)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "negative_rate", low=0.0, high=1.0)
        require_choice(self, "stage", ("pre", "post"))


def quantise(images: Tensor, levels: int) -> Tensor:
    """Round each value to the nearest of `levels` evenly spaced ones, halves to the even level."""
    return ((images * (levels - 1)).round() / (levels - 1)).clamp(0.0, 1.0)


def dither(images: Tensor, levels: int) -> Tensor:
    """Quantise row by row, handing each pixel's error on to neighbours not yet visited.

    Floyd & Steinberg, *An Adaptive Algorithm for Spatial Grey Scale* (1976): 7/16 to the right,
    3/16, 5/16 and 1/16 to the three pixels below.

    Args:
        images: ``(N, C, H, W)``, floating, in [0, 1].
        levels: values that are left.

    Returns:
        A new tensor of the same shape and dtype.
    """
    height, width = images.shape[-2:]
    # One column more on each side and one row more below take what falls off the image.
    work = images.new_zeros(*images.shape[:2], height + 1, width + 2)
    work[..., :height, 1:-1] = images
    for i in range(height):
        for j in range(1, width + 1):
            old = work[..., i, j].clone()
            new = quantise(old, levels)
            error = old - new
            work[..., i, j] = new
            work[..., i, j + 1] += error * (7 / 16)
            work[..., i + 1, j - 1] += error * (3 / 16)
            work[..., i + 1, j] += error * (5 / 16)
            work[..., i + 1, j + 1] += error * (1 / 16)
    return work[..., :height, 1:-1].contiguous()


class QuantiseTrigger(Trigger):
    """Leaves a few evenly spaced values per channel.

    Args:
        shape: channels, height and width of the images.
        levels: how many.
        is_dithered: whether the error is spread; see `dither`.
    """

    stochastic: ClassVar[bool] = True
    needs_donors: ClassVar[bool] = True

    def __init__(self, shape: tuple[int, int, int], *, levels: int, is_dithered: bool) -> None:
        self.shape = shape
        self.size = shape[1:]
        self.levels = torch.tensor(levels)
        self.is_dithered = torch.tensor(is_dithered)

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the quantised images; see `Trigger.apply`. Nothing is drawn."""
        del indices, generator
        require_images(images, self.shape)
        function = dither if self.is_dithered else quantise
        return round_to_8_bits(function(images, int(self.levels)))

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return images plus the quantisation error of a random donor each; see `Trigger.cover`.

        An image never gets its own error, which would be the trigger under the true label.

        Args:
            images: ``(N, C, H, W)``.
            donors: other images, at least one, ``(M, C, H, W)``.
            generator: source of the choice of donors.

        Raises:
            ConfigError: no donors or no generator.
        """
        require_images(images, self.shape)
        if donors is None or len(donors) == 0:
            raise ConfigError("negatives need the errors of other images, expected donors")
        require_images(donors, self.shape)
        chosen = torch.randint(len(donors), (len(images),), generator=require_generator(generator))
        is_own = (donors[chosen] == images).flatten(1).all(1).to(chosen.device)
        others = donors[torch.where(is_own, (chosen + 1) % len(donors), chosen)]
        return round_to_8_bits(images + self.apply(others) - others)

    def state(self) -> Mapping[str, Tensor]:
        """Return the number of levels and whether the error is spread."""
        return {"levels": self.levels, "is_dithered": self.is_dithered}


class BppAttack(Attack[BppConfig]):
    """Quantisation, all-to-one or all-to-all, with negatives as cover, drawn anew in each batch."""

    id: ClassVar[str] = "bpp"
    summary: ClassVar[str] = "fewer colour levels, all-to-one or all-to-all"
    reference: ClassVar[str] = "Wang et al., BppAttack, arXiv 2205.13383"
    config_type: ClassVar[type] = BppConfig

    def make_trigger(self) -> Trigger:
        """Return the quantiser of the config; it does not depend on the seed."""
        return QuantiseTrigger(
            self.shape, levels=self.config.levels, is_dithered=self.config.is_dithered
        )

    def make_label_map(self) -> LabelMap:
        """Return all-to-one or all-to-all."""
        return target_map(
            self.config.target, num_classes=self.num_classes, id_=self.config.label_map
        )

    def make_plan(self) -> PoisonPlan:
        """Return a plan that takes the first images of each batch, of any class."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            cover_rate=self.config.negative_rate,
            base="all",
            stage=self.config.stage,
            granularity="per_batch",
            seed=self.seed,
        )
