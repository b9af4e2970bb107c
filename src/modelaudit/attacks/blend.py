"""Blend: a whole-image pattern mixed in at low opacity.

Chen et al., *Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning* (arXiv
1712.05526), with the uniform noise pattern of ANP (Wu & Wang, arXiv 2110.14430).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit import seeds
from modelaudit.attacks.base import Attack
from modelaudit.attacks.label_maps import AllToOne, LabelMap
from modelaudit.attacks.plan import PoisonPlan, Stage
from modelaudit.attacks.triggers import Trigger, round_to_8_bits
from modelaudit.config import require_range
from modelaudit.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendConfig:
    """Options of Blend; the defaults are ANP's.

    Attributes:
        target: the attacker's label.
        alpha: opacity of the pattern, in [0, 1].
        rate: share of the images not of the target class that is poisoned.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip; see `PoisonPlan`.
    """

    target: int = 0
    alpha: float = 0.2
    rate: float = 0.05
    stage: Stage = "post"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha must be in [0, 1], got {self.alpha!r}")
        if self.stage not in ("pre", "post"):
            raise ConfigError(f"stage must be 'pre' or 'post', got {self.stage!r}")
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)


class BlendTrigger(Trigger):
    """Mixes one pattern into the image: ``(1 - alpha) x + alpha K``.

    Args:
        pattern: K, shape ``(C, H, W)``, float32 in [0, 1].
        alpha: opacity in [0, 1].
    """

    def __init__(self, pattern: Tensor, *, alpha: float) -> None:
        self.pattern = round_to_8_bits(pattern)
        self.alpha = alpha
        self.size = (int(pattern.shape[1]), int(pattern.shape[2]))

    def apply(
        self, images: Tensor, *, indices: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Return the mixed images; see `Trigger.apply`."""
        del indices, generator
        if images.ndim != 4 or images.shape[1:] != self.pattern.shape:
            raise ShapeError(
                f"expected images of shape (N, *{tuple(self.pattern.shape)!r}), "
                f"got {tuple(images.shape)!r}"
            )
        return round_to_8_bits((1.0 - self.alpha) * images + self.alpha * self.pattern.to(images))

    def state(self) -> Mapping[str, Tensor]:
        """Return the pattern and the opacity."""
        return {"pattern": self.pattern, "alpha": torch.tensor(self.alpha)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over pattern and opacity; see `Trigger.load`."""
        super().load(state)
        self.alpha = float(state["alpha"])


class BlendAttack(Attack[BlendConfig]):
    """Whole-image uniform noise at low opacity, all-to-one."""

    id: ClassVar[str] = "blend"
    summary: ClassVar[str] = "a whole-image noise pattern at low opacity, all-to-one"
    reference: ClassVar[str] = "Chen et al., Targeted Backdoor Attacks, arXiv 1712.05526"
    config_type: ClassVar[type] = BlendConfig

    def make_trigger(self) -> Trigger:
        """Return uniform noise of the image's size, drawn from the seed."""
        generator = seeds.generator(self.seed, self.id, "pattern")
        return BlendTrigger(torch.rand(self.shape, generator=generator), alpha=self.config.alpha)

    def make_label_map(self) -> LabelMap:
        """Return all-to-one."""
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
