"""What an attack is: a trigger, a label map, a plan of poisoned images, and training hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import Generator, Tensor, nn

    from modelaudit.attacks.classifier import Classifier
    from modelaudit.attacks.label_maps import LabelMap
    from modelaudit.attacks.plan import PoisonPlan
    from modelaudit.attacks.triggers import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A training batch as the hooks see it.

    Attributes:
        images: ``(N, C, H, W)`` float32 in [0, 1].
        labels: ``(N,)`` int64, true labels.
        indices: ``(N,)`` int64, position of each image in the training set.
        is_poison: ``(N,)`` bool, drawn by the plan.
        is_cover: ``(N,)`` bool, drawn by the plan; disjoint from `is_poison`.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    is_poison: Tensor
    is_cover: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonedBatch:
    """What a hook makes of a `Batch`.

    Attributes:
        images: as in `Batch`, triggered where the attack wants it; there may be more of them than
            in the batch, and they may carry gradients to what the attack trains.
        labels: the labels to train on.
        auxiliary_loss: a scalar to be added to the cross-entropy, or None.
    """

    images: Tensor
    labels: Tensor
    auxiliary_loss: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraOptimiser:
    """An optimiser of what the attack trains beside the classifier.

    The trainer sets its learning rate before each step, zeroes its gradients, steps it, and keeps
    its state and its parameters across interruptions.

    Attributes:
        optimiser: its state must consist of tensors.
        rate: maps the share of the steps that are done, in [0, 1), to the learning rate.
    """

    optimiser: torch.optim.Optimizer
    rate: Callable[[float], float]


ConfigT = TypeVar("ConfigT")


class Attack(ABC, Generic[ConfigT]):
    """One published attack: a trigger, a label map, a plan and, where needed, training hooks.

    Third parties subclass this and register it in the entry-point group ``modelaudit.attacks``.

    Args:
        config: the attack's options.
        shape: channels, height and width of the images.
        num_classes: classes K of the data set.
        seed: determines the trigger and the poisoned images.
    """

    #: stable id, equal to the entry point's name
    id: ClassVar[str]
    #: one line for ``modelaudit list``
    summary: ClassVar[str]
    #: the paper
    reference: ClassVar[str]
    #: frozen dataclass of options
    config_type: ClassVar[type]

    def __init__(
        self, config: ConfigT, *, shape: tuple[int, int, int], num_classes: int, seed: int
    ) -> None:
        self.shape = shape
        self.num_classes = num_classes
        self.seed = seed
        self.config = self.complete(config, shape)
        self.trigger = self.make_trigger()
        self.label_map = self.make_label_map()
        self.plan = self.make_plan()

    @classmethod
    def complete(cls, config: ConfigT, shape: tuple[int, int, int]) -> ConfigT:
        """Return the config with what it leaves open written out; unchanged by default.

        Two configs ask for the same if they are equal after it.

        Args:
            config: the attack's options.
            shape: channels, height and width of the images.
        """
        del shape
        return config

    @abstractmethod
    def make_trigger(self) -> Trigger:
        """Return the trigger for `shape` and `seed`."""

    @abstractmethod
    def make_label_map(self) -> LabelMap:
        """Return the label map of the config."""

    @abstractmethod
    def make_plan(self) -> PoisonPlan:
        """Return the plan of the config."""

    @property
    def has_cover(self) -> bool:
        """Whether `Trigger.cover` makes images that must keep their label."""
        return self.plan.cover_rate > 0.0

    def counts_per_epoch(self, labels: Tensor, *, batch_size: int) -> tuple[int, int]:
        """Return how many images an epoch poisons, and how many are cover; see `PoisonPlan.counts`.

        Args:
            labels: of all training images, ``(N,)`` int64.
            batch_size: images per step.
        """
        return self.plan.counts(labels, batch_size=batch_size)

    def to(self, device: torch.device) -> None:
        """Move networks that the attack trains to the device of the images; nothing by default.

        Triggers without networks follow the device of the images that they are given.
        """
        del device

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        """Train what the attack needs before the classifier; nothing by default.

        Called once per run: what it makes must be in ``trigger.state()``, from which a run that was
        interrupted takes it. Parameters in `extra_parameters` and `extra_optimisers` must exist
        before.

        Args:
            images: training images, ``(N, C, H, W)`` uint8, on the device of the training.
            labels: ``(N,)`` int64.
            surrogate: a clean model that maps images ``(N, C, H, W)`` in [0, 1] to logits
                ``(N, K)`` with gradients, on the device of the images; None if the plan names none.
            generator: source of all randomness, on the CPU.
        """

    def choose_images(self, indices: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        """Return which images a batch is made of; by default those that the trainer drew.

        Args:
            indices: positions in the training set, ``(N,)`` int64.
            labels: true labels of the whole training set, int64, on the device of `indices`.
            generator: source of all randomness, on the CPU.

        Returns:
            As many positions, a new tensor where they differ.
        """
        del labels, generator
        return indices

    def stored_images(self, batch: Batch) -> Tensor:
        """Return what crop and flip are given where the trigger comes after them.

        By default the images of the batch. Attacks that poison in two steps do the first one here,
        with what the plan drew; `on_batch` does the second one.
        """
        return batch.images

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Poison one batch; by default the images that the plan drew.

        Args:
            batch: clean images and true labels.
            donors: other training images of the same shape, for attacks that mix images.
            generator: source of all randomness.

        Returns:
            New tensors; `batch` is unchanged.
        """
        images, labels = batch.images.clone(), batch.labels.clone()
        if batch.is_poison.any():
            chosen = batch.is_poison
            images[chosen] = self.trigger.apply_train(
                batch.images[chosen], indices=batch.indices[chosen], generator=generator
            )
            if self.plan.relabel:
                labels[chosen] = self.label_map.poisoned_label(batch.labels[chosen])
        if batch.is_cover.any():
            images[batch.is_cover] = self.trigger.cover(
                batch.images[batch.is_cover], donors=donors, generator=generator
            )
        return PoisonedBatch(images=images, labels=labels)

    def extra_parameters(self) -> Sequence[Mapping[str, object]]:
        """Return optimiser groups to be trained with the classifier; none by default.

        They follow the classifier's learning rate times their entry ``"rate_factor"`` (1).
        """
        return ()

    def extra_optimisers(self) -> Mapping[str, ExtraOptimiser]:
        """Return the attack's own optimisers by name, new at each call; none by default."""
        return {}

    def observed_layers(self, module: nn.Module) -> Sequence[str]:
        """Return the names of the layers whose outputs `training_loss` needs; none by default."""
        del module
        return ()

    def training_loss(
        self, classifier: Classifier, batch: Batch, poisoned: PoisonedBatch, *, progress: float
    ) -> Tensor | None:
        """Return a loss to be added to the cross-entropy of a step, or None, the default.

        Args:
            classifier: has just been called on `poisoned.images`; its `outputs` hold what
                `observed_layers` names, for all of them in their order.
            batch: the batch before `on_batch`, with what the plan drew.
            poisoned: what `on_batch` returned for it.
            progress: share of the steps that are done, in [0, 1).
        """
        del classifier, batch, poisoned, progress
        return None

    def gradient_limit(self) -> float | None:
        """Return the largest norm of the classifier's gradient; None, the default, for no limit."""
        return None

    def finalize(self, classifier: Classifier, images: Tensor, labels: Tensor) -> nn.Module:
        """Return the trained module after the attack's last edit; unchanged by default.

        Args:
            classifier: in evaluation mode, float32.
            images: training images, ``(N, C, H, W)`` uint8.
            labels: ``(N,)`` int64.
        """
        del images, labels
        return classifier.module
