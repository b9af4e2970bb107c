"""The trainer: one short, fully seeded run per model, resumable after any epoch.

SGD with Nesterov momentum under a one-cycle schedule, crop and flip, convolutions in bfloat16 where
the hardware has it, BatchNorm statistics in float32; the last epoch's weights are the model. A
killed run that is started again ends with the same weights as one that was never interrupted (on
the CPU, bit for bit): all randomness is derived from (seed, epoch, step), and the state after the
attack's preparation and after each epoch is written atomically.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from modelaudit import seeds
from modelaudit.attacks.base import Attack, Batch, ExtraOptimiser, PoisonedBatch
from modelaudit.attacks.classifier import Classifier
from modelaudit.bench.batches import draw_poison, prepare_batch
from modelaudit.bench.models import make_module
from modelaudit.bench.state import Training, load_state, save_state
from modelaudit.errors import ConfigError
from modelaudit.hardware import fast_dtype, fast_format
from modelaudit.preprocessing import PRESETS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from modelaudit.bench.data import ImageData
    from modelaudit.bench.plan import ModelPlan

logger = logging.getLogger(__name__)

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
#: share of the steps in which the learning rate rises
WARMUP_FRACTION = 0.25
#: the learning rate starts at this share of its peak
START_FRACTION = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What `train` returns.

    Attributes:
        model: float32, on the CPU, in evaluation mode; takes normalised images.
        seconds: wall time of the attack's preparation and of all epochs, those before an
            interruption included.
        final_loss: mean training loss of the last epoch; None if there was no epoch.
        precision: of the convolutions.
    """

    model: nn.Module
    seconds: float
    final_loss: float | None
    precision: str


def learning_rate(step: int, total: int, peak: float) -> float:
    """Return the one-cycle learning rate of a step: linear rise, then half a cosine down to 0.

    Args:
        step: 0-based.
        total: steps of the whole run.
        peak: maximum.
    """
    warmup = max(1.0, WARMUP_FRACTION * total)
    if step < warmup:
        return peak * (START_FRACTION + (1.0 - START_FRACTION) * step / warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def normaliser(id_: str) -> Preprocessing:
    """Return a preset of `modelaudit.preprocessing` by id.

    Raises:
        ConfigError: there is none of that id.
    """
    for preset in PRESETS:
        if preset.id == id_:
            return preset
    raise ConfigError(f"normaliser must be one of {[p.id for p in PRESETS]!r}, got {id_!r}")


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return ``(images - mean) / std`` per channel; ``(N, C, H, W)``, floating."""
    settings = preprocessing.for_channels(images.shape[1])
    mean = images.new_tensor(settings.mean).view(1, -1, 1, 1)
    std = images.new_tensor(settings.std).view(1, -1, 1, 1)
    return (images - mean) / std


def build_model(plan: ModelPlan, *, num_classes: int, in_channels: int) -> nn.Module:
    """Make the plan's model with initial weights drawn from its seed alone.

    He et al., arXiv 1502.01852, fan-out normal weights for convolutions; PyTorch's defaults
    elsewhere.
    """
    with torch.device("meta"):
        model = make_module(
            plan.architecture, width=plan.width, num_classes=num_classes, in_channels=in_channels
        )
    model.to_empty(device="cpu")
    generator = seeds.generator(plan.seed, "initial_weights")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return model


def train(
    plan: ModelPlan,
    data: ImageData,
    attack: Attack[object] | None,
    *,
    state_path: Path,
    initial: Mapping[str, Tensor] | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | None = None,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> TrainingRun:
    """Train one model, continuing from `state_path` if that holds a state of the same plan.

    Args:
        plan: what to train.
        data: only the attacker's images are used.
        attack: the attack that the plan names, or None.
        state_path: where the state after each epoch is kept, as safetensors.
        initial: weights and buffers to start from, by name; drawn from the plan's seed if None.
        surrogate: see `Attack.prepare`; on `device`.
        device: where to train; where the data is if None.
        after_epoch: called with the number of finished epochs after each state is written.

    Returns:
        The run; the state stays at `state_path`, the attack's trigger where the data is.

    Raises:
        ConfigError: fewer images than one batch, no epochs without `initial`, or `initial` of
            another architecture.
    """
    device = data.train_images.device if device is None else device
    images = data.train_images[: data.attacker_count].to(device)
    labels = data.train_labels[: data.attacker_count].to(device)
    steps = len(images) // plan.batch_size
    if steps == 0:
        raise ConfigError(
            f"batch_size must be at most the {len(images)} training images, got {plan.batch_size!r}"
        )
    if plan.epochs == 0 and initial is None:
        raise ConfigError(f"model {plan.id!r} has no epochs and nothing to start from, give either")
    if attack is not None:
        attack.to(device)
    material = _material(images, labels, attack)

    model = build_model(plan, num_classes=len(data.classes), in_channels=data.shape[0])
    if initial is not None:
        _start_from(model, initial, plan.id)
    model.to(device).to(memory_format=fast_format(model, device))
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    groups += [dict(group) for group in (attack.extra_parameters() if attack else ())]
    optimiser = torch.optim.SGD(
        groups, lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    extra = attack.extra_optimisers() if attack is not None else {}
    dtype = fast_dtype(device)
    precision = str(dtype or torch.float32).removeprefix("torch.")
    training = Training(
        model=model,
        optimiser=optimiser,
        extra={name: one.optimiser for name, one in extra.items()},
        trigger=attack.trigger if attack is not None else None,
        precision=precision,
    )
    done = load_state(state_path, plan, training)
    preprocessing = normaliser(plan.normaliser)

    def to_input(batch: Tensor) -> Tensor:
        return normalise(batch, preprocessing)

    if attack is not None and not (done.is_prepared or done.epochs):
        started = time.perf_counter()
        attack.prepare(
            images, labels, surrogate=surrogate, generator=seeds.generator(plan.seed, "prepare")
        )
        done = replace(done, is_prepared=True, seconds=time.perf_counter() - started)
        save_state(state_path, plan, done, training)

    classifier = Classifier(model, normalise=to_input, dtype=dtype)
    model.train()
    for epoch in range(done.epochs, plan.epochs):
        started = time.perf_counter()
        loss_sum = _train_epoch(plan, epoch, material, classifier, attack, training, extra)
        done = replace(
            done,
            epochs=epoch + 1,
            seconds=done.seconds + time.perf_counter() - started,
            loss_sum=loss_sum,
        )
        save_state(state_path, plan, done, training)
        logger.info(
            "%s: epoch %d of %d, loss %.4f, %.0f s",
            *(plan.id, epoch + 1, plan.epochs, done.loss_sum / steps, done.seconds),
        )
        after_epoch(epoch + 1)
    model.eval()
    if attack is not None and not done.is_final:
        model = attack.finalize(Classifier(model, normalise=to_input), images, labels)
        done = replace(done, is_final=True)
        save_state(state_path, plan, done, replace(training, model=model))
    if attack is not None:
        attack.to(data.train_images.device)
    return TrainingRun(
        model=model.to("cpu").to(memory_format=torch.contiguous_format),
        seconds=done.seconds,
        final_loss=done.loss_sum / steps if plan.epochs else None,
        precision=precision,
    )


@dataclass(frozen=True, slots=True)
class _Material:
    """The attacker's images, with what a static plan drew among them; all on one device."""

    images: Tensor
    labels: Tensor
    is_poison: Tensor
    is_cover: Tensor

    def batch(self, chosen: Tensor) -> Batch:
        """Return the images of these indices as a batch."""
        return Batch(
            images=self.images[chosen].float() / 255.0,
            labels=self.labels[chosen],
            indices=chosen,
            is_poison=self.is_poison[chosen],
            is_cover=self.is_cover[chosen],
        )


def _material(images: Tensor, labels: Tensor, attack: Attack[object] | None) -> _Material:
    is_poison = torch.zeros(len(images), dtype=torch.bool)
    is_cover = torch.zeros(len(images), dtype=torch.bool)
    if attack is not None and attack.plan.granularity == "static":
        poison, cover = attack.plan.draw(labels)
        is_poison[poison], is_cover[cover] = True, True
    return _Material(images, labels, is_poison.to(images.device), is_cover.to(images.device))


def _train_epoch(
    plan: ModelPlan,
    epoch: int,
    material: _Material,
    classifier: Classifier,
    attack: Attack[object] | None,
    training: Training,
    extra: Mapping[str, ExtraOptimiser],
) -> float:
    """Train one epoch and return the sum of its steps' losses."""
    assert training.optimiser is not None
    device = material.images.device
    steps = len(material.images) // plan.batch_size
    generator = seeds.generator(plan.seed, "epoch", epoch)
    # The attack draws from its own source, so that a clean twin sees the same crops and order.
    attack_generator = seeds.generator(plan.seed, "attack", epoch)
    order = torch.randperm(len(material.images), generator=generator).to(device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for step in range(steps):
        chosen = order[step * plan.batch_size : (step + 1) * plan.batch_size]
        if attack is not None:
            chosen = attack.choose_images(chosen, material.labels, generator=attack_generator)
        batch = draw_poison(material.batch(chosen), attack, generator=attack_generator)
        poisoned = prepare_batch(
            batch, attack, flip=plan.flip, generator=generator, attack_generator=attack_generator
        )
        position, total = epoch * steps + step, plan.epochs * steps
        rate = learning_rate(position, total, plan.peak_learning_rate)
        _set_rates(training.optimiser, rate, extra, progress=position / total)
        loss_sum += _step(
            classifier,
            [training.optimiser, *training.extra.values()],
            batch,
            poisoned,
            attack,
            progress=position / total,
        )
    return float(loss_sum)


def _start_from(model: nn.Module, initial: Mapping[str, Tensor], id_: str) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in initial.items()}
    if own != given:
        differing = sorted(name for name in own | given if own.get(name) != given.get(name))
        raise ConfigError(
            f"the weights that model {id_!r} starts from must be of its own architecture, "
            f"{len(differing)} tensors differ, such as {differing[0]!r}"
        )
    model.load_state_dict(initial)


def _set_rates(
    optimiser: torch.optim.Optimizer,
    rate: float,
    extra: Mapping[str, ExtraOptimiser],
    *,
    progress: float,
) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    for one in extra.values():
        for group in one.optimiser.param_groups:
            group["lr"] = one.rate(progress)


def _step(
    classifier: Classifier,
    optimisers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    poisoned: PoisonedBatch,
    attack: Attack[object] | None,
    *,
    progress: float,
) -> Tensor:
    """Do one step and return its loss, a float64 scalar without gradient."""
    layers = attack.observed_layers(classifier.module) if attack is not None else ()
    with classifier.observing(layers):
        loss = cross_entropy(classifier(poisoned.images), poisoned.labels)
        if attack is not None:
            added = attack.training_loss(classifier, batch, poisoned, progress=progress)
            loss = loss if added is None else loss + added
    if poisoned.auxiliary_loss is not None:
        loss = loss + poisoned.auxiliary_loss
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    limit = attack.gradient_limit() if attack is not None else None
    if limit is not None:
        nn.utils.clip_grad_norm_(classifier.module.parameters(), limit)
    for optimiser in optimisers:
        optimiser.step()
    return loss.detach().double()
