"""What Adap-Blend and Adap-Patch share: weakened triggers in training, half of them as cover.

Qi, Xie, Li, Mahloujifar & Mittal, *Revisiting the Assumption of Latent Separability for Backdoor
Defenses* (ICLR 2023; earlier title *Circumventing Backdoor Defenses That Are Based on Latent
Separability*, arXiv 2205.13613).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, TypeVar

from modelaudit.attacks.base import Attack, Batch, PoisonedBatch
from modelaudit.attacks.options import target_map
from modelaudit.attacks.plan import PoisonPlan, Stage

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap
    from modelaudit.attacks.triggers import Trigger


class AdaptiveConfig(Protocol):
    """The options that both attacks have."""

    @property
    def target(self) -> int:
        """The attacker's label."""

    @property
    def rate(self) -> float:
        """Share of all images that is poisoned."""

    @property
    def cover_rate(self) -> float:
        """Share of all images that keeps its label under the training trigger."""

    @property
    def stage(self) -> Stage:
        """Trigger before or after crop and flip."""


ConfigT = TypeVar("ConfigT", bound=AdaptiveConfig)


class AdaptiveAttack(Attack[ConfigT]):
    """All-to-one; poisoned and cover images carry the same weakened trigger."""

    @abstractmethod
    def make_trigger(self) -> Trigger:
        """Return the trigger for `shape` and `seed`."""

    def make_label_map(self) -> LabelMap:
        """Return all-to-one."""
        return target_map(self.config.target, num_classes=self.num_classes)

    def make_plan(self) -> PoisonPlan:
        """Return the static plan of the config, drawn from all classes."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            cover_rate=self.config.cover_rate,
            base="all",
            stage=self.config.stage,
            seed=self.seed,
        )

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Put the training trigger on poisoned and cover images; relabel the poisoned ones."""
        del donors
        images, labels = batch.images.clone(), batch.labels.clone()
        chosen = batch.is_poison | batch.is_cover
        if chosen.any():
            images[chosen] = self.trigger.apply_train(
                batch.images[chosen], indices=batch.indices[chosen], generator=generator
            )
            poisoned = self.label_map.poisoned_label(batch.labels)
            labels[batch.is_poison] = poisoned[batch.is_poison]
        return PoisonedBatch(images=images, labels=labels)
