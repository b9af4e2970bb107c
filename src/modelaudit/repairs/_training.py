"""The training loop that every training repair shares.

Only BatchNorm layers are put in train mode. Dropout stays off: its draws would come from torch's
global state, which the library neither seeds nor uses, and a repair is short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from modelaudit.config import require_range
from modelaudit.errors import RepairError
from modelaudit.functional.rates import ROUNDING
from modelaudit.hardware import fast_format
from modelaudit.repairs._augment import Augmentation, augment, choose_augmentation
from modelaudit.repairs._batchnorm import set_batchnorm_training
from modelaudit.repairs._views import choose_views, view_accuracy
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a training run moves the weights: stochastic gradient descent with momentum.

    Attributes:
        epochs: passes over the work images.
        batch: images per step; all batches of an epoch have nearly the same size.
        rate: learning rate, not negative, after a fraction of the run in [0, 1).
        momentum: of SGD.
        weight_decay: of SGD.
        max_gradient: L2 norm that the gradient of all that is trained is scaled down to; None
            leaves it as it is.
        is_nesterov: whether the momentum is Nesterov's.
        is_shuffled: whether every epoch has an order of its own.
    """

    epochs: int
    batch: int
    rate: Callable[[float], float]
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient: float | None = None
    is_nesterov: bool = False
    is_shuffled: bool = True


def cosine(peak: float) -> Callable[[float], float]:
    """Return half a cosine from `peak` down to 0."""
    return lambda fraction: 0.5 * peak * (1.0 + math.cos(math.pi * fraction))


def constant(rate: float) -> Callable[[float], float]:
    """Return the same rate at all times."""
    return lambda _: rate


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Hyper-parameters of training at a rate that falls to 0.

    How long to train is for each repair to say. The presets of released code are not based on this:
    they always crop, and most have rates of their own.

    Attributes:
        learning_rate: at the start; half a cosine leads down to 0.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        max_gradient: L2 norm that a gradient is scaled down to. At the start of a repair a few
            images ask for much, and steps as long as their gradients lead away from what the
            network can do; None takes them.
        crop: whether images are cropped at random after padding; None asks the model, which labels
            cropped images as well as plain ones if it was trained on such.
        flip: whether half of the images are mirrored; None asks the model in the same way, since
            mirrored road signs and digits are other ones.
    """

    learning_rate: float = 0.01
    batch: int = 32
    momentum: float = 0.9
    weight_decay: float = 5e-4
    max_gradient: float | None = None
    crop: bool | None = None
    flip: bool | None = None

    def __post_init__(self) -> None:
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)
        require_range(self, "max_gradient", low=0, is_low_open=True)

    def schedule(self, epochs: int) -> Schedule:
        """Return the schedule of a run of `epochs` passes over the work images."""
        return Schedule(
            epochs=epochs,
            batch=self.batch,
            rate=cosine(self.learning_rate),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            max_gradient=self.max_gradient,
        )

    def augmentation(
        self, model: Suspect, data: RepairData, context: RepairContext
    ) -> Augmentation:
        """Return the augmentation asked for, or that the model was trained with."""
        return augmentation_for(model, data, context, crop=self.crop, flip=self.flip)


class Objective:
    """Cross-entropy of the clean forward pass; subclasses add what their method adds.

    Args:
        model: the copy that is trained.
        dtype: of convolutions and matrix products; None for float32.
    """

    def __init__(self, model: Suspect, *, dtype: torch.dtype | None) -> None:
        self.model = model
        self.dtype = dtype

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar with its graph.

        Args:
            images: ``(N, C, H, W)`` in [0, 1], augmented.
            labels: ``(N,)`` int64 or probabilities ``(N, K)``, on the model's device.
        """
        return F.cross_entropy(self.logits(images), labels)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits, convolutions in `dtype`, the rest in float32."""
        with self.model.autocast(self.dtype):
            return self.model.logits(images)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of what is trained."""
        loss.backward()

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Act on the weights after every step, as masks of pruned neurons do."""

    def after_epoch(self) -> None:
        """Adapt to what the epoch has shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What a run did.

    Attributes:
        losses: mean loss of each epoch.
        kept: epoch whose weights the model has now, counted from 1.
        accuracies: over views of the validation images, of the epochs that could be kept, and of
            the model before the run as epoch 0; empty where no epoch is chosen.
    """

    losses: tuple[float, ...]
    kept: int
    accuracies: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))


def choose_epoch(accuracies: Mapping[int, float], *, before: float, drop: float) -> int:
    """Return the latest epoch whose accuracy drop is within `drop`.

    Where there is none the most accurate one, the latest of equals; whether the loss is too large
    is then for the caller to say.

    Args:
        accuracies: of the epochs to choose from, counted from 1; one at least.
        before: accuracy before the run.
        drop: the budget.
    """
    # Accuracies are quotients of counts; the budget must not fall to their rounding.
    within = [
        epoch for epoch, accuracy in accuracies.items() if accuracy >= before - drop - ROUNDING
    ]
    return max(within, default=max(accuracies, key=lambda epoch: (accuracies[epoch], epoch)))


def train(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    schedule: Schedule,
    objective: Objective,
    augmentation: Augmentation,
    draws: torch.Generator,
    name: str,
    max_drop: float | None = None,
    taught: Tensor | None = None,
    trained: Sequence[Tensor] | None = None,
    is_batchnorm_frozen: bool = False,
) -> TrainingLog:
    """Train ``model.module`` in place and leave it in eval mode with the weights of one epoch.

    Args:
        model: a copy that belongs to the repair.
        data: `work` is trained on, `validation` chooses the epoch.
        context: gives progress, the batch size of validation, and what stays pruned.
        schedule: how the weights move.
        objective: what is minimised.
        augmentation: of the work images.
        draws: CPU generator of order, crops and mirror images.
        name: of the progress task, which gets one unit per epoch.
        max_drop: accuracy that the epoch to be kept may have lost, see `choose_epoch`. Only the
            second half of the run is asked: the first epochs are accurate because they have
            repaired nothing yet, the backdoor leaves with time, and the accuracy comes back as the
            rate falls. None keeps the last epoch and looks at no validation image.
        taught: what is learned of each image instead of its label, ``(N, K)`` probabilities; None
            for the labels.
        trained: tensors that the optimiser moves; every parameter of the module if None.
        is_batchnorm_frozen: whether BatchNorm layers use and keep their running statistics.

    Raises:
        RepairError: the loss is not finite.
    """
    module = model.module.to(memory_format=fast_format(model.module, model.device))
    labels = (data.labels if taught is None else taught).to(model.device)
    moved = list(module.parameters() if trained is None else trained)
    optimiser = torch.optim.SGD(
        moved,
        lr=schedule.rate(0.0),
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        nesterov=schedule.is_nesterov,
    )
    steps = max(1, math.ceil(len(data.work) / schedule.batch))
    accuracies: dict[int, float] = {}
    seen, before = augmentation, 0.0
    if max_drop is not None:
        seen = choose_views(model, data, context, augmentation)
        before = view_accuracy(model, data, context, seen)
    losses: list[float] = []
    kept = schedule.epochs
    kept_state: dict[str, Tensor] = {}
    with context.progress.task(name, schedule.epochs) as task:
        for epoch in range(1, schedule.epochs + 1):
            set_batchnorm_training(module, is_training=not is_batchnorm_frozen)
            order = data.work
            if schedule.is_shuffled:
                order = order[torch.randperm(len(order), generator=draws)]
            total = torch.zeros((), device=model.device)
            for step, rows in enumerate(order.tensor_split(steps)):
                for group in optimiser.param_groups:
                    group["lr"] = schedule.rate((epoch - 1 + step / steps) / schedule.epochs)
                batch = augment(data.images[rows], augmentation, generator=draws)
                loss = objective.loss(batch, labels[rows.to(labels.device)])
                optimiser.zero_grad(set_to_none=True)
                objective.backward(loss)
                if schedule.max_gradient is not None:
                    nn.utils.clip_grad_norm_(moved, schedule.max_gradient)
                optimiser.step()
                objective.after_step(optimiser)
                if context.pruned is not None:
                    context.pruned.apply(module, optimiser)
                total += loss.detach()
            set_batchnorm_training(module, is_training=False)
            losses.append(float(total) / steps)
            if not math.isfinite(losses[-1]):
                raise RepairError(
                    f"expected a finite loss, it was {losses[-1]!r} in epoch {epoch}; lower "
                    "learning_rate"
                )
            objective.after_epoch()
            if max_drop is not None and epoch > schedule.epochs // 2:
                accuracies[epoch] = view_accuracy(model, data, context, seen)
                if choose_epoch(accuracies, before=before, drop=max_drop) == epoch:
                    kept, kept_state = epoch, module_state(module)
            task.advance()
    if max_drop is not None and kept != schedule.epochs:
        module.load_state_dict(kept_state)
    for parameter in module.parameters():
        parameter.grad = None
    module.to(memory_format=torch.contiguous_format)
    if max_drop is not None:
        accuracies = {0: before} | accuracies
    return TrainingLog(losses=tuple(losses), kept=kept, accuracies=MappingProxyType(accuracies))


def augmentation_for(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    crop: bool | None,
    flip: bool | None,
) -> Augmentation:
    """Return the augmentation that a configuration asks for, or that the model was trained with."""
    return choose_augmentation(
        model,
        data.images[data.validation],
        data.labels[data.validation],
        crop=crop,
        flip=flip,
        generator=generator(context.seed, "repair", "augmentation"),
        batch_size=context.batch_size,
    )


def validation_accuracy(model: Suspect, data: RepairData, context: RepairContext) -> float:
    """Return the share of the validation images that get their label, in float32."""
    predictions = model.predict(data.images[data.validation], batch_size=context.batch_size)
    right = (predictions == data.labels[data.validation].cpu()).double()
    return float(right.mean())


def freeze(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Take the parameters whose names begin with one of `prefixes` out of training.

    Raises:
        RepairError: a prefix fits no parameter, or nothing is left to train.
    """
    for prefix in prefixes:
        found = [p for name, p in module.named_parameters() if name.startswith(prefix)]
        if not found:
            raise RepairError(
                f"expected parameters whose names begin with {prefix!r}, the model has none"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in module.parameters()):
        raise RepairError("expected parameters to train, all of them are frozen; shorten frozen")


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
