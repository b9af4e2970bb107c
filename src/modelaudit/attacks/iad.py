"""IAD: an input-aware dynamic trigger, made from each image by a network.

Nguyen & Tran, *Input-Aware Dynamic Backdoor Attack* (arXiv 2010.08138).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from modelaudit.attacks.base import Batch, PoisonedBatch
from modelaudit.attacks.input_aware import InputAwareAttack, InputAwareConfig
from modelaudit.attacks.options import require_choice, target_map
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.config import require_range

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from modelaudit.attacks.label_maps import LabelMap


@dataclass(frozen=True, slots=True, kw_only=True)
class IadConfig(InputAwareConfig):
    """Options of IAD beside those of its networks (`InputAwareConfig`).

    Attributes:
        label_map: ``"one"`` sends every triggered image to `target`, ``"all"`` sends class y to y +
            1.
        target: the attacker's label; not used by ``"all"``.
        rate: share of each batch that is triggered and relabelled, of any class.
        cross_rate: share of each batch that carries the trigger of another image and keeps its
            label.
    """

    label_map: Literal["one", "all"] = "one"
    target: int = 0
    rate: float = 0.1
    cross_rate: float = 0.1

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is made twice, and super() would mean the first one.
        InputAwareConfig.__post_init__(self)
        require_choice(self, "label_map", ("one", "all"))
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "cross_rate", low=0.0, high=1.0 - self.rate)


class IadAttack(InputAwareAttack[IadConfig]):
    """Input-aware trigger, all-to-one or all-to-all, on augmented images of each batch."""

    id: ClassVar[str] = "iad"
    summary: ClassVar[str] = "a pattern and a mask that networks make from each image"
    reference: ClassVar[str] = "Nguyen & Tran, Input-Aware Dynamic Backdoor, arXiv 2010.08138"
    config_type: ClassVar[type] = IadConfig

    def make_label_map(self) -> LabelMap:
        """Return all-to-one or all-to-all."""
        return target_map(
            self.config.target, num_classes=self.num_classes, id_=self.config.label_map
        )

    def make_plan(self) -> PoisonPlan:
        """Return the plan: the first images of each batch, of any class."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            cover_rate=self.config.cross_rate,
            base="all",
            stage="post",
            granularity="per_batch",
            seed=self.seed,
        )

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Trigger what the plan drew; see `Attack.on_batch`."""
        del generator
        donors = batch.images.roll(1, 0) if donors is None else donors
        poison, cover = batch.is_poison.nonzero().flatten(), batch.is_cover.nonzero().flatten()
        where = torch.cat([poison, cover])
        if len(where) == 0:
            return PoisonedBatch(images=batch.images.clone(), labels=batch.labels.clone())
        triggered, loss = self._mix_in_training(
            batch.images[where], torch.cat([batch.images[poison], donors[cover]])
        )
        labels = batch.labels.clone()
        labels[poison] = self.label_map.poisoned_label(batch.labels[poison])
        return PoisonedBatch(
            images=batch.images.index_copy(0, where, triggered), labels=labels, auxiliary_loss=loss
        )
