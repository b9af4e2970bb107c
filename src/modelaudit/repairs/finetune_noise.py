"""Fine-tuning under adversarial neuron noise ([BAN24] §3.5).

Noise on the neurons that raises the loss on clean images activates the backdoor without its
trigger; training the noisy network to keep its answers unlearns the short cut that plain
fine-tuning never touches.

Differs from the released code: the answers to keep are the suspect's own probabilities, not labels,
which a few images teach by heart; noise stays in its box; noisy passes leave BatchNorm's running
statistics alone, which in the code end up mostly made of noisy batches; where a scan named target
classes the noise aims at them; steps are many and small, and the learning rate falls to zero; an
accuracy budget says how much of the change is kept; the box shrinks where the noise leaves a
network no better than guessing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.config import require_range
from modelaudit.repairs._distil import answers
from modelaudit.repairs._noise import adversarial_noise
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    augmentation_for,
    constant,
    module_state,
    train,
)
from modelaudit.repairs._walk_back import passes, standing, walk_back
from modelaudit.repairs.base import Change, Repair, RepairContext
from modelaudit.repairs.targets import named_targets
from modelaudit.results import Cost
from modelaudit.scanners._noise_search import paper_epsilon, site_edits
from modelaudit.seeds import generator
from modelaudit.suspect import BatchNormMode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


class NoiseObjective(Objective):
    """CE(clean) + weight x CE(under noise searched for this batch) ([BAN24] Eq. 8).

    S backward passes reach the noise alone; one last backward pass takes both losses to the
    weights: S + 2 passes per image.

    Args:
        model: the copy that is trained.
        dtype: of convolutions and matrix products; noise and its gradient stay float32.
        epsilon: half-width of the noise box.
        steps: S.
        weight: lambda_2.
        draws: CPU generator of the random starts, and of the target of each batch.
        targets: classes that noise may aim at, one of them for each batch; none for noise that
            always raises the loss by whatever way is shortest.
        aimed_fraction: share of the batches whose noise aims at a target, where there are any.
        is_released: as the released code: noise not clipped, noisy passes in train mode and before
            the clean one, so that they take part in the running statistics; a fixed box.

    Attributes:
        epsilon: as it is now.
        noisy_losses: mean CE under noise of each epoch.
        epsilons: box of each epoch.
    """

    def __init__(
        self,
        model: Suspect,
        *,
        dtype: torch.dtype | None,
        epsilon: float,
        steps: int,
        weight: float,
        draws: torch.Generator,
        targets: Sequence[int] = (),
        aimed_fraction: float = 0.5,
        is_released: bool = False,
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.epsilon = epsilon
        self.steps = steps
        self.weight = weight
        self.draws = draws
        self.targets = tuple(targets)
        self.aimed_fraction = aimed_fraction
        self.is_released = is_released
        self.noisy_losses: list[float] = []
        self.epsilons: list[float] = []
        self._sums: list[Tensor] = []
        if not model.has_batchnorm:
            self.mode = BatchNormMode.RUNNING
        else:
            self.mode = BatchNormMode.TRAIN if is_released else BatchNormMode.BATCH

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted sum of both losses; noise climbs from the likeliest class."""
        likeliest = labels.argmax(1) if labels.is_floating_point() else labels
        target = None
        is_aimed = float(torch.rand((), generator=self.draws)) < self.aimed_fraction
        if self.targets and is_aimed:
            index = torch.randint(len(self.targets), (), generator=self.draws)
            target = self.targets[int(index)]
        noise = adversarial_noise(
            self.model,
            images,
            likeliest,
            epsilon=self.epsilon,
            steps=self.steps,
            is_clipped=not self.is_released,
            mode=self.mode,
            dtype=self.dtype,
            generator=self.draws,
            target=target,
        )
        with self.model.edited(site_edits(self.model, noise[0], noise[1]), mode=self.mode):
            noisy = F.cross_entropy(self.logits(images), labels)
        self._sums.append(noisy.detach())
        return super().loss(images, labels) + self.weight * noisy

    def after_epoch(self) -> None:
        """Halve the box if the epoch's noisy network was no better than guessing.

        methods/repairs.md §1, failures: with a noisy loss stuck at log K the noise destroys the
        network instead of steering it, and the weights learn to be noise-proof at the price of
        accuracy. Narrow networks, whose neurons are few, need the smaller box.
        """
        mean = float(torch.stack(self._sums).mean())
        self._sums.clear()
        self.noisy_losses.append(mean)
        self.epsilons.append(self.epsilon)
        if not self.is_released and mean >= math.log(self.model.num_classes):
            self.epsilon /= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneNoisePaperCodeConfig:
    """Hyper-parameters of `FinetuneNoisePaperCodeRepair`, as the released code's README sets them.

    Attributes:
        epsilon: half-width of the random start; a step of the same size follows unclipped.
        steps: sign steps S of each batch's noise.
        noise_weight: lambda_2 of the loss under noise.
        epochs: passes over the work images; the paper says 25, the loop of its code makes 24.
        learning_rate: constant.
        batch: images per step.
        momentum: of SGD.
        weight_decay: of SGD.
        flip: whether half of the images are mirrored; their loader for CIFAR does, that for road
            signs does not.
    """

    epsilon: float = 0.3
    steps: int = 1
    noise_weight: float = 0.5
    epochs: int = 24
    learning_rate: float = 0.005
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    flip: bool = True

    def __post_init__(self) -> None:
        require_range(self, "epsilon", low=0, high=1)
        require_range(self, "steps", low=1)
        require_range(self, "noise_weight", low=0)
        require_range(self, "epochs", low=1)
        require_range(self, "learning_rate", low=0)
        require_range(self, "batch", low=2)
        require_range(self, "momentum", low=0, high=1)
        require_range(self, "weight_decay", low=0)


class FinetuneNoisePaperCodeRepair(Repair[FinetuneNoisePaperCodeConfig]):
    """BAN's fine-tuning as released: unclipped noise that also moves the running statistics."""

    id = "finetune_noise"
    version = "1"
    summary = "fine-tuning under neuron noise as the released code of BAN runs it"
    reference = "[BAN24] released code"
    config_type = FinetuneNoisePaperCodeConfig
    is_training = True
    requires_gradients = True
    requires_batchnorm = True
    requires_labels = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of training."""
        config = self.config
        passes = (config.steps + 2) * config.epochs * len(data.work)
        return Cost(forward_backward=passes)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        objective = NoiseObjective(
            model,
            dtype=context.search_dtype,
            epsilon=config.epsilon,
            steps=config.steps,
            weight=config.noise_weight,
            draws=generator(context.seed, self.id, "paper_code", "noise"),
            is_released=True,
        )
        log = train(
            model,
            data,
            context,
            schedule=Schedule(
                epochs=config.epochs,
                batch=config.batch,
                rate=constant(config.learning_rate),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                is_shuffled=False,
            ),
            objective=objective,
            augmentation=augmentation_for(model, data, context, crop=True, flip=config.flip),
            draws=generator(context.seed, self.id, "paper_code", "training"),
            name=self.full_id,
        )
        return Change(history=log.losses, details={"noisy_losses": list(objective.noisy_losses)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneNoiseConfig(TrainingConfig):
    """Hyper-parameters of `FinetuneNoiseRepair`, beside those of the training.

    Attributes:
        epsilon: half-width of the noise box, relative; None takes the scanner's by input size: 0.3
            up to 40 pixels, 0.2 up to 96, 0.1 beyond. It is halved after an epoch whose mean loss
            under noise is log K or more.
        steps: sign steps S of each batch's noise, of size epsilon / S.
        noise_weight: lambda_2 of the loss under noise (paper: 0.5).
        epochs: passes over the work images.
        batch: images per step (paper: 128); more and smaller steps remove more for the same passes.
        aimed_fraction: share of the batches whose noise aims at a target class that a scan named,
            where it named some; Eq. 4 aims at none. Near 1 the class itself is unlearned.
        is_distilled: whether the suspect's own probabilities take the place of labels (paper:
            labels).
    """

    epsilon: float | None = None
    steps: int = 1
    noise_weight: float = 1.0
    epochs: int = 8
    batch: int = 32
    aimed_fraction: float = 0.5
    is_distilled: bool = True

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require_range(self, "epsilon", low=0, high=1)
        require_range(self, "steps", low=1)
        require_range(self, "noise_weight", low=0)
        require_range(self, "aimed_fraction", low=0, high=1)
        require_range(self, "epochs", low=1)


class FinetuneNoiseRepair(Repair[FinetuneNoiseConfig]):
    """Cross-entropy on clean images with and without adversarial neuron noise.

    The model's own answers will do: what unlearns the backdoor is that the noisy network must give
    the answers of the network without noise, whether they are right or not. Its probabilities say
    more of each image than its label does, and are not learned by heart.
    """

    id = "finetune_noise"
    version = "4"
    summary = "fine-tuning under adversarial neuron noise"
    reference = "[BAN24] Eq. 8"
    config_type = FinetuneNoiseConfig
    variants = MappingProxyType({"paper_code": FinetuneNoisePaperCodeRepair})
    is_training = True
    reads_findings = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - the contract's
        """Return the passes of training, of validation and of the augmentation's."""
        config = self.config
        taught = len(data.work) if config.is_distilled else 0
        return Cost(
            forward=passes(data) + 3 * len(data.validation) + taught,
            forward_backward=(config.steps + 2) * config.epochs * len(data.work),
        )

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        augmentation = config.augmentation(model, data, context)
        targets = named_targets(context.findings) if config.aimed_fraction else ()
        epsilon = paper_epsilon(model.input_size) if config.epsilon is None else config.epsilon
        objective = NoiseObjective(
            model,
            dtype=context.search_dtype,
            epsilon=epsilon,
            steps=config.steps,
            weight=config.noise_weight,
            draws=generator(context.seed, self.id, "noise"),
            targets=targets,
            aimed_fraction=config.aimed_fraction,
        )
        before = standing(model, data, context, augmentation)
        start = module_state(model.module)
        taught = None
        if config.is_distilled:
            taught = torch.zeros(len(data.images), model.num_classes)
            for rows in data.work.split(context.batch_size):
                # Asked once and learned in every epoch: in float32.
                taught[rows] = answers(model, data.images[rows], dtype=None).cpu()
        log = train(
            model,
            data,
            context,
            schedule=config.schedule(config.epochs),
            objective=objective,
            augmentation=augmentation,
            draws=generator(context.seed, self.id, "training"),
            name=self.full_id,
            taught=taught,
        )
        way = walk_back(model, start, data, context, before=before)
        return Change(
            history=log.losses,
            details={
                **way.details,
                "targets": list(targets),
                "noisy_losses": list(objective.noisy_losses),
                "epsilons": list(objective.epsilons),
                "crop_padding": augmentation.padding,
                "is_flipped": augmentation.flip,
            },
            notes=(
                *(() if targets else ("no scan named a target: the noise aims at no class",)),
                *way.notes,
            ),
        )
