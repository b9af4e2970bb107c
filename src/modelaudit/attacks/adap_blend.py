"""Adap-Blend: a picture mixed in, in training only at half of its pieces.

Qi et al., arXiv 2205.13613; rates of BAN (arXiv 2405.19928). The picture is a colour field made
from the seed, where the paper has a cartoon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit import seeds
from modelaudit.attacks.adaptive import AdaptiveAttack
from modelaudit.attacks.options import require_choice, require_generator, require_images
from modelaudit.attacks.pictures import natural_picture
from modelaudit.attacks.plan import Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

#: pieces per axis, and how many of them a training image carries
GRID, KEPT = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapBlendConfig:
    """Options of Adap-Blend; rates are BAN's, the paper has 0.003 each.

    Attributes:
        target: the attacker's label.
        alpha: opacity of the picture in training, in [0, 1].
        test_alpha: opacity at test time.
        rate: share of all images that is poisoned.
        cover_rate: share of all images that keeps its label under the training trigger.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    target: int = 0
    alpha: float = 0.2
    test_alpha: float = 0.2
    rate: float = 0.05
    cover_rate: float = 0.05
    stage: Stage = "post"

    def __post_init__(self) -> None:
        require_range(self, "alpha", low=0.0, high=1.0)
        require_range(self, "test_alpha", low=0.0, high=1.0)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "cover_rate", low=0.0, high=1.0)
        require_choice(self, "stage", ("pre", "post"))


class PiecewiseBlendTrigger(Trigger):
    """Mixes a picture in, in training at a random half of the pieces of a 4x4 grid.

    Args:
        pattern: the picture K, ``(C, H, W)``, float32 in [0, 1]; height and width divide by 4.
        alpha: opacity in training.
        test_alpha: opacity at test time.
    """

    stochastic: ClassVar[bool] = True

    def __init__(self, pattern: Tensor, *, alpha: float, test_alpha: float) -> None:
        channels, height, width = map(int, pattern.shape)
        if height % GRID or width % GRID:
            raise ConfigError(
                f"expected images whose height and width divide by {GRID}, got {(height, width)!r}"
            )
        self.shape = (channels, height, width)
        self.size = (height, width)
        self.pattern = round_to_8_bits(pattern)
        self.alpha, self.test_alpha = torch.tensor(alpha), torch.tensor(test_alpha)

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the whole picture; see `Trigger.apply`. Nothing is drawn."""
        del indices, generator
        require_images(images, self.shape)
        return self._mix(images, self.test_alpha)

    def apply_train(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with half of the pieces, drawn for each image.

        Raises:
            ConfigError: no generator.
        """
        del indices
        require_images(images, self.shape)
        chance = torch.rand(len(images), GRID * GRID, generator=require_generator(generator))
        is_kept = chance.argsort(1).argsort(1) < KEPT
        pieces = is_kept.view(len(images), 1, GRID, GRID).float()
        height, width = self.size
        mask = pieces.repeat_interleave(height // GRID, 2).repeat_interleave(width // GRID, 3)
        return self._mix(images, self.alpha * mask)

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the same as `apply_train`; see `Trigger.cover`."""
        del donors
        return self.apply_train(images, generator=generator)

    def state(self) -> Mapping[str, Tensor]:
        """Return the picture and the opacities."""
        return {"pattern": self.pattern, "alpha": self.alpha, "test_alpha": self.test_alpha}

    def _mix(self, images: Tensor, opacity: Tensor) -> Tensor:
        return round_to_8_bits(images + opacity.to(images) * (self.pattern.to(images) - images))


class AdapBlendAttack(AdaptiveAttack[AdapBlendConfig]):
    """Half of a picture in training, all of it at test time, all-to-one."""

    id: ClassVar[str] = "adap_blend"
    summary: ClassVar[str] = "half of a blended picture in training, all of it at test time"
    reference: ClassVar[str] = "Qi et al., Circumventing Backdoor Defenses, arXiv 2205.13613"
    config_type: ClassVar[type] = AdapBlendConfig

    def make_trigger(self) -> Trigger:
        """Return a smooth colour field, drawn from the seed."""
        generator = seeds.generator(self.seed, self.id, "pattern")
        return PiecewiseBlendTrigger(
            natural_picture(self.shape, generator=generator, exponent=1.5, shared=0.5),
            alpha=self.config.alpha,
            test_alpha=self.config.test_alpha,
        )
