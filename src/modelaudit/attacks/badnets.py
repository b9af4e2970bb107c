"""BadNets: a fixed small patch in the bottom-right corner.

Gu, Dolan-Gavitt & Garg, *BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain* (arXiv 1708.06733); the 3x3 checker is that of ANP (Wu & Wang, arXiv 2110.14430) and BAN
(arXiv 2405.19928).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack
from modelaudit.attacks.label_maps import AllToAll, AllToOne, LabelMap
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

#: The checker P, rows top to bottom, the same in every channel.
CHECKER = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNetsConfig:
    """Options of BadNets; the defaults are ANP's.

    Attributes:
        label_map: ``"one"`` sends every triggered image to `target`, ``"all"`` sends class y to y +
            1.
        target: the attacker's label; not used by ``"all"``.
        pattern: ``"checker"`` (ANP, BAN), ``"random_colour"`` (DDE/MBNS: sigmoid of normal noise)
            or ``"white"``.
        patch_size: side of the square patch in pixels, the checker's a multiple of 3; none means 3
            at 32 pixels, 6 and 21 at 64 and 224, of ``"random_colour"`` 5 and 17.
        rate: share of the eligible images (for ``"one"``: those not of the target class) that is
            poisoned.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    label_map: Literal["one", "all"] = "one"
    target: int = 0
    pattern: Literal["checker", "random_colour", "white"] = "checker"
    patch_size: int | None = None
    rate: float = 0.05
    stage: Stage = "post"

    def __post_init__(self) -> None:
        if self.label_map not in ("one", "all"):
            raise ConfigError(f"label_map must be 'one' or 'all', got {self.label_map!r}")
        if self.pattern not in ("checker", "random_colour", "white"):
            raise ConfigError(
                f"pattern must be 'checker', 'random_colour' or 'white', got {self.pattern!r}"
            )
        side = self.patch_size
        if side is not None and (side < 1 or (self.pattern == "checker" and side % 3)):
            raise ConfigError(
                "patch_size must be positive, and a multiple of 3 for the checker, "
                f"got {self.patch_size!r}"
            )
        if self.stage not in ("pre", "post"):
            raise ConfigError(f"stage must be 'pre' or 'post', got {self.stage!r}")
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)


def patch_side(pattern: str, size: tuple[int, int]) -> int:
    """Return the side of the patch for images of a size, in pixels.

    The checker of ANP and the white square of BackdoorBench have three cells of 1/32 of the shorter
    side, halves rounded up: 3 below 48 pixels, 6 at 64 and 21 at 224. Random colours, as in
    DDE/MBNS, have 5/64 of it, rounded down, and 3 at least.
    """
    shorter = min(size)
    if pattern == "random_colour":
        return max(3, 5 * shorter // 64)
    return 3 * max(1, (shorter + 16) // 32)


class PatchTrigger(Trigger):
    """Overwrites a rectangle flush with the bottom-right corner.

    Args:
        pattern: the patch, shape ``(C, h, w)``, float32 in [0, 1].
        size: height and width of the images in pixels.
    """

    def __init__(self, pattern: Tensor, *, size: tuple[int, int]) -> None:
        if pattern.shape[1] > size[0] or pattern.shape[2] > size[1]:
            raise ConfigError(
                f"the patch must fit into images of {size!r} pixels, "
                f"its shape is {tuple(pattern.shape)!r}"
            )
        self.pattern = round_to_8_bits(pattern)
        self.size = size

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the images with the patch; see `Trigger.apply`."""
        del indices, generator
        channels, height, width = self.pattern.shape
        if images.ndim != 4 or tuple(images.shape[1:]) != (channels, *self.size):
            raise ShapeError(
                f"expected images of shape (N, {channels}, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(images.shape)!r}"
            )
        triggered = round_to_8_bits(images)
        triggered[:, :, -height:, -width:] = self.pattern.to(images)
        return triggered

    def state(self) -> Mapping[str, Tensor]:
        """Return the patch."""
        return {"pattern": self.pattern}


class BadNetsAttack(Attack[BadNetsConfig]):
    """Patch trigger, all-to-one or all-to-all."""

    id: ClassVar[str] = "badnets"
    summary: ClassVar[str] = "a fixed patch in the bottom-right corner, all-to-one or all-to-all"
    reference: ClassVar[str] = "Gu et al., BadNets, arXiv 1708.06733"
    config_type: ClassVar[type] = BadNetsConfig

    @classmethod
    def complete(cls, config: BadNetsConfig, shape: tuple[int, int, int]) -> BadNetsConfig:
        """Write out the side of the patch."""
        if config.patch_size is not None:
            return config
        return replace(config, patch_size=patch_side(config.pattern, shape[1:]))

    def make_trigger(self) -> Trigger:
        """Return the patch of the config."""
        channels, height, width = self.shape
        side = self.config.patch_size
        assert side is not None
        if self.config.pattern == "checker":
            cell = side // 3
            tile = torch.tensor(CHECKER).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
            pattern = tile.expand(channels, side, side).clone()
        elif self.config.pattern == "random_colour":
            generator = seeds.generator(self.seed, self.id, "pattern")
            pattern = torch.randn(channels, side, side, generator=generator).sigmoid()
        else:
            pattern = torch.ones(channels, side, side)
        return PatchTrigger(pattern, size=(height, width))

    def make_label_map(self) -> LabelMap:
        """Return all-to-one or all-to-all."""
        if self.config.label_map == "all":
            return AllToAll(num_classes=self.num_classes)
        if not 0 <= self.config.target < self.num_classes:
            raise ConfigError(
                f"target must be one of {self.num_classes} classes, got {self.config.target!r}"
            )
        return AllToOne(target=self.config.target)

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            stage=self.config.stage,
            seed=self.seed,
        )
