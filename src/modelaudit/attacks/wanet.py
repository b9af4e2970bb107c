"""WaNet: a smooth fixed warp of the whole image; a noisier warp keeps its label.

Nguyen & Tran, *WaNet - Imperceptible Warping-Based Backdoor Attack* (arXiv 2102.10369).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn.functional import grid_sample, interpolate

from modelaudit import seeds
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap

#: image side for which the paper's strength is meant, in pixels
REFERENCE_SIDE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class WaNetConfig:
    """Options of WaNet; the defaults are the paper's.

    Attributes:
        label_map: ``"one"`` sends every triggered image to `target`, ``"all"`` sends class y to y +
            1.
        target: the attacker's label; not used by ``"all"``.
        control_points: k, points of the control field per axis.
        strength: s; 0.5 moves pixels by 0.29 on average at every image size.
        is_relative: whether `strength` grows with the image's side, so that the warp looks alike at
            every size; the paper's moves the same number of pixels, which is little in large
            images.
        rate: share of each batch that is poisoned.
        noise_rate: share of each batch that keeps its label under a noisier warp.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    label_map: Literal["one", "all"] = "one"
    target: int = 0
    control_points: int = 4
    strength: float = 0.5
    is_relative: bool = False
    rate: float = 0.1
    noise_rate: float = 0.2
    stage: Stage = "pre"

    def __post_init__(self) -> None:
        require_choice(self, "label_map", ("one", "all"))
        require_range(self, "control_points", low=2)
        require_range(self, "strength", low=0.0)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "noise_rate", low=0.0, high=1.0)
        require_choice(self, "stage", ("pre", "post"))


class WarpTrigger(Trigger):
    """Resamples the image along one smooth field of displacements.

    Args:
        field: displacements n of mean absolute value 1 at the control points, shape ``(H, W, 2)``,
            x before y.
        strength: s.
        channels: of the images.
    """

    stochastic: ClassVar[bool] = True

    def __init__(self, field: Tensor, *, strength: float, channels: int) -> None:
        height, width = int(field.shape[0]), int(field.shape[1])
        self.size = (height, width)
        self.shape = (channels, height, width)
        self.field = field
        self.strength = torch.tensor(strength)
        rows, columns = torch.linspace(-1.0, 1.0, height), torch.linspace(-1.0, 1.0, width)
        self._identity = torch.stack(
            [columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1
        )
        # Displacements are given in half pixels, the grid's units are half sides.
        self._sides = torch.tensor([float(width), float(height)])

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the warped images; see `Trigger.apply`. Nothing is drawn."""
        del indices, generator
        require_images(images, self.shape)
        return _resample(images, self._grid().expand(len(images), -1, -1, -1))

    def cover(
        self, images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return images under the warp plus noise that is fresh for each; see `Trigger.cover`.

        One noise field for all would be memorised.

        Raises:
            ConfigError: no generator.
        """
        del donors
        require_images(images, self.shape)
        height, width = self.size
        noise = torch.rand(
            len(images), height, width, 2, generator=require_generator(generator)
        ).mul(2.0)
        grid = self._grid() + (noise - 1.0) / self._sides
        return _resample(images, grid.clamp(-1.0, 1.0))

    def state(self) -> Mapping[str, Tensor]:
        """Return the field and the strength."""
        return {"field": self.field, "strength": self.strength}

    def _grid(self) -> Tensor:
        moved = self._identity + self.strength * self.field / self._sides
        return moved.clamp(-1.0, 1.0)


class WaNetAttack(Attack[WaNetConfig]):
    """Warp, all-to-one or all-to-all, with noise warps as cover, drawn anew in each batch."""

    id: ClassVar[str] = "wanet"
    summary: ClassVar[str] = "a smooth warp of the whole image, all-to-one or all-to-all"
    reference: ClassVar[str] = "Nguyen & Tran, WaNet, arXiv 2102.10369"
    config_type: ClassVar[type] = WaNetConfig

    def make_trigger(self) -> Trigger:
        """Return the warp, drawn from the seed."""
        channels, height, width = self.shape
        points = self.config.control_points
        generator = seeds.generator(self.seed, self.id, "field")
        control = torch.rand(1, 2, points, points, generator=generator) * 2.0 - 1.0
        control = control / control.abs().mean()
        field = interpolate(control, size=(height, width), mode="bicubic", align_corners=True)
        scale = min(height, width) / REFERENCE_SIDE if self.config.is_relative else 1.0
        return WarpTrigger(
            field[0].permute(1, 2, 0).contiguous(),
            strength=self.config.strength * scale,
            channels=channels,
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
            cover_rate=self.config.noise_rate,
            base="all",
            stage=self.config.stage,
            granularity="per_batch",
            seed=self.seed,
        )


def _resample(images: Tensor, grid: Tensor) -> Tensor:
    sampled = grid_sample(
        images, grid.to(images), mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return round_to_8_bits(sampled)
