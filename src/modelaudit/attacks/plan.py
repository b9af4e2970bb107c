"""Poison plans: which training images are poisoned, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from modelaudit import seeds
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap

Stage = Literal["pre", "post"]
BaseSet = Literal["eligible", "all"]
Granularity = Literal["static", "per_batch", "per_access"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonPlan:
    """Which training images are poisoned, and when.

    Attributes:
        label_map: the attack's label map.
        rate: share of the base set that is poisoned; the count is the floor of the product.
        cover_rate: share of the base set that keeps its label under a similar trigger.
        base: ``"eligible"`` counts and chooses among the images that the label map's
            `train_eligible` allows (not of the target class, of the victim class, ...), ``"all"``
            among all images, as papers do that give rates of the whole set.
        relabel: whether poisoned images get the poisoned label.
        stage: trigger before (``"pre"``) or after (``"post"``) crop and flip.
        granularity: one fixed choice for the run (``"static"``), the first images of each shuffled
            batch (``"per_batch"``), or each image with probability `rate` whenever it is used
            (``"per_access"``).
        seed: determines the fixed choice.
    """

    label_map: LabelMap
    rate: float
    cover_rate: float = 0.0
    base: BaseSet = "eligible"
    relabel: bool = True
    stage: Stage = "post"
    granularity: Granularity = "static"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.0 < self.rate <= 1.0 and 0.0 <= self.cover_rate <= 1.0 - self.rate):
            raise ConfigError(
                "rate must be in (0, 1] and rate + cover_rate at most 1, "
                f"got {self.rate!r} and {self.cover_rate!r}"
            )

    def draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the poisoned and the cover images of a static plan.

        Args:
            labels: true labels of the attacker's training images, shape ``(N,)``, int64.

        Returns:
            Two disjoint, sorted index tensors, int64 on the CPU: poisoned and cover.

        Raises:
            ConfigError: the rate amounts to less than one image.
        """
        eligible = self._eligible(labels.cpu()).nonzero().flatten()
        n_poison = _floor(self.rate * len(eligible))
        n_cover = _floor(self.cover_rate * len(eligible))
        if n_poison == 0:
            raise ConfigError(
                f"a poisoning rate of {self.rate!r} selects none of {len(eligible)} eligible "
                "images, raise it"
            )
        generator = seeds.generator(self.seed, "poison_plan")
        order = eligible[torch.randperm(len(eligible), generator=generator)]
        return order[:n_poison].sort().values, order[n_poison : n_poison + n_cover].sort().values

    def draw_batch(self, labels: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """Choose the poisoned and the cover images of one batch of a plan that is not static.

        Args:
            labels: true labels of the batch, shape ``(N,)``, int64, in shuffled order.
            generator: source of the draws of ``"per_access"``.

        Returns:
            Two disjoint masks, ``(N,)`` bool: poisoned and cover.
        """
        eligible = self._eligible(labels)
        if self.granularity == "per_access":
            chance = torch.rand(len(labels), generator=generator)
            both = chance < self.rate + self.cover_rate
            return eligible & (chance < self.rate), eligible & both & (chance >= self.rate)
        rank = eligible.cumsum(0) - 1
        n_poison, n_cover = _floor(self.rate * len(labels)), _floor(self.cover_rate * len(labels))
        is_poison = eligible & (rank < n_poison)
        return is_poison, eligible & (rank < n_poison + n_cover) & ~is_poison

    def counts(self, labels: Tensor, *, batch_size: int) -> tuple[int, int]:
        """Return how many images are poisoned and how many are cover.

        Of a static plan the numbers of its choice. Of others the numbers that an epoch of whole
        batches is expected to hold; a plan that takes its share of each batch from all images
        holds just these.

        Args:
            labels: as of `draw`.
            batch_size: images per step.

        Raises:
            ConfigError: see `draw`.
        """
        if self.granularity == "static":
            poison, cover = self.draw(labels)
            return len(poison), len(cover)
        steps = len(labels) // batch_size
        eligible = steps * batch_size * float(self._eligible(labels).double().mean())
        if self.granularity == "per_access":
            return round(self.rate * eligible), round(self.cover_rate * eligible)
        n_poison = min(steps * _floor(self.rate * batch_size), eligible)
        n_cover = min(steps * _floor(self.cover_rate * batch_size), eligible - n_poison)
        return round(n_poison), round(n_cover)

    def _eligible(self, labels: Tensor) -> Tensor:
        if self.base == "all":
            return torch.ones_like(labels, dtype=torch.bool)
        return self.label_map.train_eligible(labels)


def _floor(count: float) -> int:
    """Return the floor of a product that may lie a rounding error below a whole number."""
    return math.floor(count + 1e-9)
