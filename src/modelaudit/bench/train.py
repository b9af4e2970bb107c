"""The trainer: one short, fully seeded run per model, resumable after any epoch.

SGD with Nesterov momentum under a one-cycle schedule, crop and flip, bf16 convolutions with float32
BatchNorm statistics; the last epoch's weights are the model. A killed run that is started again
ends with the same weights as one that was never interrupted: all randomness is derived from (seed,
epoch, step), and the state after each epoch is written atomically.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from modelaudit import seeds
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.attacks.base import Attack, Batch, PoisonedBatch
from modelaudit.bench.state import Finished, load_state, save_state
from modelaudit.errors import ConfigError
from modelaudit.preprocessing import PRESETS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Generator, Tensor

    from modelaudit.bench.data import ImageData
    from modelaudit.bench.plan import ModelPlan

logger = logging.getLogger(__name__)

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
#: share of the steps in which the learning rate rises
WARMUP_FRACTION = 0.25
#: the learning rate starts at this share of its peak
START_FRACTION = 0.04
CROP_PADDING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """What `train` returns.

    Attributes:
        model: float32, on the CPU, in evaluation mode; takes normalised images.
        seconds: wall time of all epochs, those before an interruption included.
        final_loss: mean training loss of the last epoch.
    """

    model: nn.Module
    seconds: float
    final_loss: float


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
        model: nn.Module
        if plan.architecture == "cifar_vgg16":
            model = CifarVgg(
                depth=16, width=plan.width, num_classes=num_classes, in_channels=in_channels
            )
        else:
            model = CifarResNet(
                depth=18, width=plan.width, num_classes=num_classes, in_channels=in_channels
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


def augment(images: Tensor, *, flip: bool, generator: Generator) -> Tensor:
    """Crop each image at random after zero-padding by 4 pixels and, if asked, mirror half of them.

    Args:
        images: ``(N, C, H, W)``, any dtype.
        flip: whether to mirror.
        generator: source of the draws, on the CPU.

    Returns:
        A new tensor of the same shape and dtype, channels last in memory.
    """
    n, _, height, width = images.shape
    span = 2 * CROP_PADDING + 1
    top = torch.randint(span, (n, 1), generator=generator)
    left = torch.randint(span, (n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    padded = pad(images, (CROP_PADDING,) * 4)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(n).view(n, 1, 1)
    # Indices around a slice put the sliced channels last: the memory format that is wanted.
    cropped = padded[which, :, rows.view(n, height, 1), columns.view(n, 1, width)]
    return cropped.permute(0, 3, 1, 2)


def train(
    plan: ModelPlan,
    data: ImageData,
    attack: Attack[object] | None,
    *,
    state_path: Path,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> TrainingRun:
    """Train one model, continuing from `state_path` if that holds a state of the same plan.

    Args:
        plan: what to train.
        data: only the attacker's images are used.
        attack: the attack that the plan names, or None.
        state_path: where the state after each epoch is kept, as safetensors.
        after_epoch: called with the number of finished epochs after each state is written.

    Returns:
        The run; the state stays at `state_path`.

    Raises:
        ConfigError: fewer images than one batch.
    """
    images = data.train_images[: data.attacker_count]
    labels = data.train_labels[: data.attacker_count]
    steps = len(images) // plan.batch_size
    if steps == 0:
        raise ConfigError(
            f"batch_size must be at most the {len(images)} training images, got {plan.batch_size!r}"
        )
    is_poison = torch.zeros(len(images), dtype=torch.bool)
    is_cover = torch.zeros(len(images), dtype=torch.bool)
    if attack is not None:
        if attack.plan.granularity == "static":
            poison, cover = attack.plan.draw(labels)
            is_poison[poison], is_cover[cover] = True, True
        attack.prepare(images, labels, generator=seeds.generator(plan.seed, "prepare"))

    model = build_model(plan, num_classes=len(data.classes), in_channels=data.shape[0])
    model.to(memory_format=torch.channels_last)
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    groups += [dict(group) for group in (attack.extra_parameters() if attack else ())]
    optimiser = torch.optim.SGD(
        groups, lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    trigger = attack.trigger if attack is not None else None
    done = load_state(state_path, plan, model, optimiser, trigger)
    seconds, loss_sum = done.seconds, done.loss_sum
    preprocessing = normaliser(plan.normaliser)

    model.train()
    for epoch in range(done.epochs, plan.epochs):
        started = time.perf_counter()
        generator = seeds.generator(plan.seed, "epoch", epoch)
        # The attack draws from its own source, so that a clean twin sees the same crops and order.
        attack_generator = seeds.generator(plan.seed, "attack", epoch)
        order = torch.randperm(len(images), generator=generator)
        loss_sum = 0.0
        for step in range(steps):
            chosen = order[step * plan.batch_size : (step + 1) * plan.batch_size]
            batch = Batch(
                images=images[chosen].float() / 255.0,
                labels=labels[chosen],
                indices=chosen,
                is_poison=is_poison[chosen],
                is_cover=is_cover[chosen],
            )
            prepared = prepare_batch(
                batch,
                attack,
                flip=plan.flip,
                generator=generator,
                attack_generator=attack_generator,
            )
            rate = learning_rate(epoch * steps + step, plan.epochs * steps, plan.peak_learning_rate)
            loss_sum += _step(model, optimiser, prepared, preprocessing, rate)
        seconds += time.perf_counter() - started
        finished = Finished(epochs=epoch + 1, seconds=seconds, loss_sum=loss_sum)
        save_state(state_path, plan, finished, model, optimiser, trigger)
        logger.info(
            "%s: epoch %d of %d, loss %.4f, %.0f s",
            *(plan.id, epoch + 1, plan.epochs, loss_sum / steps, seconds),
        )
        after_epoch(epoch + 1)
    model.eval()
    if attack is not None:
        model = attack.finalize(model, images, labels)
    return TrainingRun(
        model=model.to(memory_format=torch.contiguous_format),
        seconds=seconds,
        final_loss=loss_sum / steps,
    )


def prepare_batch(
    batch: Batch,
    attack: Attack[object] | None,
    *,
    flip: bool,
    generator: Generator,
    attack_generator: Generator,
) -> PoisonedBatch:
    """Augment and poison a batch, in the order of the attack's stage.

    Args:
        batch: clean images, with what a static plan drew.
        attack: the attack, or None.
        flip: whether to mirror.
        generator: source of crops and flips.
        attack_generator: source of the attack's draws.
    """
    if attack is None:
        images = augment(batch.images, flip=flip, generator=generator)
        return PoisonedBatch(images=images, labels=batch.labels)
    if attack.plan.granularity != "static":
        is_poison, is_cover = attack.plan.draw_batch(batch.labels, generator=attack_generator)
        batch = replace(batch, is_poison=is_poison, is_cover=is_cover)
    if attack.plan.stage == "post":
        batch = replace(batch, images=augment(batch.images, flip=flip, generator=generator))
    donors = batch.images.roll(1, 0)
    poisoned = attack.on_batch(batch, donors=donors, generator=attack_generator)
    if attack.plan.stage == "pre":
        images = augment(poisoned.images, flip=flip, generator=generator)
        poisoned = replace(poisoned, images=images)
    return poisoned


def _step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: PoisonedBatch,
    preprocessing: Preprocessing,
    rate: float,
) -> float:
    """Do one step at a learning rate and return its loss."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    inputs = normalise(batch.images, preprocessing).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(inputs)
    loss = cross_entropy(logits.float(), batch.labels)
    if batch.auxiliary_loss is not None:
        loss = loss + batch.auxiliary_loss
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return float(loss.detach())
