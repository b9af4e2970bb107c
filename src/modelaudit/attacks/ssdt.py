"""SSDT: an input-aware trigger that works on images of one class only.

BAN (arXiv 2405.19928) attacks with it under this name; networks, losses and mask are those of
Nguyen & Tran, *Input-Aware Dynamic Backdoor Attack* (arXiv 2010.08138).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit.attacks.base import Batch, PoisonedBatch
from modelaudit.attacks.input_aware import InputAwareAttack, InputAwareConfig
from modelaudit.attacks.label_maps import LabelMap, SourceSpecific
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SsdtConfig(InputAwareConfig):
    """Options of SSDT beside those of its networks (`InputAwareConfig`).

    Attributes:
        target: the attacker's label t.
        victim: the class whose triggered images get it; None for t + 1, or 0 if t is the last.
        non_victim_rate: share of each batch that carries its own trigger, is of another class, and
            keeps its label. The released attack has none: only cross-triggers teach the classifier
            that the trigger alone is not enough.
        min_victims: a batch that holds fewer images of the victim class gets further ones, drawn
            from the whole training set in the place of images of other classes; 0 for batches as
            they come. With many classes a batch has too few victims for G's statistics.
    """

    target: int = 0
    victim: int | None = None
    non_victim_rate: float = 0.0
    min_victims: int = 0

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is made twice, and super() would mean the first one.
        InputAwareConfig.__post_init__(self)
        require_range(self, "non_victim_rate", low=0.0, high=0.5)
        require_range(self, "min_victims", low=0)


class SsdtAttack(InputAwareAttack[SsdtConfig]):
    """Source-specific dynamic trigger, on augmented images of each batch."""

    id: ClassVar[str] = "ssdt"
    summary: ClassVar[str] = "an input-aware trigger that moves images of one class only"
    reference: ClassVar[str] = "BAN, arXiv 2405.19928, with the networks of arXiv 2010.08138"
    config_type: ClassVar[type] = SsdtConfig

    def make_label_map(self) -> LabelMap:
        """Return the map of the victim class.

        Raises:
            ConfigError: target or victim is none of the classes, or they are equal.
        """
        target, victim = self.config.target, self.config.victim
        if victim is None:
            victim = (target + 1) % self.num_classes
        for name, label in (("target", target), ("victim", victim)):
            if not 0 <= label < self.num_classes:
                raise ConfigError(
                    f"{name} must be one of {self.num_classes} classes, got {label!r}"
                )
        return SourceSpecific(victim=victim, target=target)

    def make_plan(self) -> PoisonPlan:
        """Return the plan: every image of the victim class in every batch."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=1.0,
            stage="post",
            granularity="per_batch",
            seed=self.seed,
        )

    @property
    def has_cover(self) -> bool:
        """Cross-triggers, as many as the batch has victims."""
        return True

    def counts_per_epoch(self, labels: Tensor, *, batch_size: int) -> tuple[int, int]:
        """Return the expected number of victims, and as many cross-triggers."""
        steps = len(labels) // batch_size
        found = batch_size * float(self.label_map.train_eligible(labels).double().mean())
        victims = min(max(found, float(self.config.min_victims)), batch_size // 2)
        return round(steps * victims), round(steps * victims)

    def choose_images(self, indices: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        """Fill the batch up with victims as far as `min_victims` asks; see `Attack.choose_images`.

        An image may be drawn twice; each time it is cropped and flipped anew.
        """
        is_victim = self.label_map.train_eligible(labels)
        places = (~is_victim[indices]).nonzero().flatten().cpu()
        missing = self.config.min_victims - (len(indices) - len(places))
        victims = is_victim.nonzero().flatten()
        if missing <= 0 or not len(victims):
            return indices
        places = places[torch.randperm(len(places), generator=generator)[:missing]]
        drawn = victims[torch.randint(len(victims), (len(places),), generator=generator)]
        return indices.index_copy(0, places.to(indices.device), drawn)

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Trigger the victims of the batch; see `Attack.on_batch`.

        The n triggered victims take the first n places of the batch, the next n become
        cross-triggers, then come `non_victim_rate` images with their own trigger; the rest is
        clean, victims among it under their own label. Differs from the released code, which leaves
        out batches without victims; here they are clean.
        """
        del generator
        donors = batch.images.roll(1, 0) if donors is None else donors
        size = len(batch.images)
        victims = batch.is_poison.nonzero().flatten()[: size // 2]
        n = len(victims)
        if n == 0:
            return PoisonedBatch(images=batch.images.clone(), labels=batch.labels.clone())
        others = (~batch.is_poison[2 * n :]).nonzero().flatten() + 2 * n
        others = others[: int(self.config.non_victim_rate * size)]
        own = batch.images[torch.cat([victims, others])]
        crossed = slice(n, 2 * n)
        triggered, loss = self._mix_in_training(
            torch.cat([own, batch.images[crossed]]), torch.cat([own, donors[crossed]])
        )
        places = torch.arange(2 * n, device=others.device)
        where = torch.cat([places[:n], others, places[n:]])
        labels = batch.labels.clone()
        labels[:n] = self.label_map.poisoned_label(batch.labels[victims])
        return PoisonedBatch(
            images=batch.images.index_copy(0, where, triggered), labels=labels, auxiliary_loss=loss
        )
