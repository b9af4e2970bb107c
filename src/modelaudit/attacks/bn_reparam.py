"""BatchNorm re-parameterisation: a finished backdoor is hidden from BatchNorm statistics.

The adaptive attacker of [DDE22] against MBNS: every BatchNorm layer gets the mean and variance of
clean images as its running statistics, and affine parameters that keep the function. Nothing is
trained by it; it edits what another attack left, or a model that is already trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from modelaudit.attacks.base import Attack, Batch, ExtraOptimiser, PoisonedBatch
from modelaudit.config import require_range
from modelaudit.errors import ConfigError
from modelaudit.functional.divergence import (
    MIN_VARIANCE,
    pooled_moments,
    reparameterised_batchnorm,
)
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Generator, Tensor, nn

    from modelaudit.attacks.classifier import Classifier
    from modelaudit.attacks.label_maps import LabelMap
    from modelaudit.attacks.plan import PoisonPlan
    from modelaudit.attacks.triggers import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class BnReparamConfig:
    """Options of the re-parameterisation.

    Attributes:
        base: id of the attack whose backdoor is hidden. One with a learned trigger must be trained
            under this attack: a model that is started from brings no trigger.
        base_config: fields of its config that differ from its defaults; a card holds all of them.
        batch_size: images per forward pass when statistics are collected; changes no result.
    """

    base: str = "badnets"
    base_config: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    batch_size: int = 500

    def __post_init__(self) -> None:
        require_range(self, "batch_size", low=1)
        if self.base == BnReparamAttack.id:
            raise ConfigError(f"base must be another attack than {self.base!r}, name one")
        # A plain dict, because a model card holds these fields as JSON.
        object.__setattr__(self, "base_config", dict(self.base_config))


class BnReparamAttack(Attack[BnReparamConfig]):
    """Trains as its base attack does and then rewrites every BatchNorm layer."""

    id: ClassVar[str] = "bn_reparam"
    summary: ClassVar[str] = "another attack's model with the BatchNorm statistics of clean images"
    reference: ClassVar[str] = (
        "Zheng et al., Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022"
    )
    config_type: ClassVar[type] = BnReparamConfig

    @classmethod
    def complete(cls, config: BnReparamConfig, shape: tuple[int, int, int]) -> BnReparamConfig:
        """Write out every option of the base attack.

        Raises:
            ConfigError: the base attack does not take its options.
        """
        base: type[Attack[object]] = Registry("attacks").load(config.base)
        # What is a tuple in Python is a list in plans and on cards.
        given = {n: tuple(v) if isinstance(v, list) else v for n, v in config.base_config.items()}
        try:
            whole = base.complete(base.config_type(**given), shape)
        except TypeError as err:
            raise ConfigError(
                f"base_config must hold options of the attack {config.base!r}, got "
                f"{config.base_config!r}"
            ) from err
        written = {f.name: getattr(whole, f.name) for f in fields(base.config_type)}
        return replace(config, base_config=written)

    def make_trigger(self) -> Trigger:
        """Return the base attack's trigger."""
        base: type[Attack[object]] = Registry("attacks").load(self.config.base)
        self.base = base(
            base.config_type(**self.config.base_config),
            shape=self.shape,
            num_classes=self.num_classes,
            seed=self.seed,
        )
        return self.base.trigger

    def make_label_map(self) -> LabelMap:
        """Return the base attack's."""
        return self.base.label_map

    def make_plan(self) -> PoisonPlan:
        """Return the base attack's."""
        return self.base.plan

    @property
    def has_cover(self) -> bool:
        """As the base attack."""
        return self.base.has_cover

    def counts_per_epoch(self, labels: Tensor, *, batch_size: int) -> tuple[int, int]:
        """Return the base attack's."""
        return self.base.counts_per_epoch(labels, batch_size=batch_size)

    def to(self, device: torch.device) -> None:
        """Move what the base attack trains."""
        self.base.to(device)

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        """Prepare the base attack."""
        self.base.prepare(images, labels, surrogate=surrogate, generator=generator)

    def choose_images(self, indices: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        """Choose as the base attack."""
        return self.base.choose_images(indices, labels, generator=generator)

    def stored_images(self, batch: Batch) -> Tensor:
        """Return the base attack's."""
        return self.base.stored_images(batch)

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Poison as the base attack."""
        return self.base.on_batch(batch, donors=donors, generator=generator)

    def extra_parameters(self) -> Sequence[Mapping[str, object]]:
        """Return the base attack's."""
        return self.base.extra_parameters()

    def extra_optimisers(self) -> Mapping[str, ExtraOptimiser]:
        """Return the base attack's."""
        return self.base.extra_optimisers()

    def observed_layers(self, module: nn.Module) -> Sequence[str]:
        """Return the base attack's."""
        return self.base.observed_layers(module)

    def training_loss(
        self, classifier: Classifier, batch: Batch, poisoned: PoisonedBatch, *, progress: float
    ) -> Tensor | None:
        """Return the base attack's."""
        return self.base.training_loss(classifier, batch, poisoned, progress=progress)

    def gradient_limit(self) -> float | None:
        """Return the base attack's."""
        return self.base.gradient_limit()

    def finalize(self, classifier: Classifier, images: Tensor, labels: Tensor) -> nn.Module:
        """Finish the base attack, then rewrite every BatchNorm layer; see `Attack.finalize`."""
        classifier.module = self.base.finalize(classifier, images, labels)
        reparameterise(classifier, images, batch_size=self.config.batch_size)
        return classifier.module


def reparameterise(classifier: Classifier, images: Tensor, *, batch_size: int = 500) -> None:
    """Give every BatchNorm layer the statistics of clean images, the function unchanged.

    gamma := gamma s/s~ and beta := beta + gamma (mu - mu~)/s~ with mu, s of the layer's input on
    the images; the printed formula drops gamma from the second term
    (`functional.divergence.reparameterised_batchnorm`). One pass serves all layers, because no
    layer's input changes. Channels whose variance is below 1e-10, before or after, are left as they
    are.

    Args:
        classifier: in evaluation mode; its module is changed in place.
        images: ``(N, C, H, W)`` uint8.
        batch_size: images per forward pass; changes no result but by rounding.

    Raises:
        ConfigError: the module has no BatchNorm layer with running statistics.
    """
    layers = {
        name: layer
        for name, layer in classifier.module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.affine
    }
    if not layers:
        raise ConfigError("the model has no BatchNorm layer with running statistics to hide")
    sums = {name: torch.zeros(()) for name in layers}
    squares = dict(sums)
    counts = dict.fromkeys(layers, 0)

    def collect(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1).double()
            sums[name] = sums[name].to(values) + values.sum(1)
            squares[name] = squares[name].to(values) + values.square().sum(1)
            counts[name] += values.shape[1]

        return hook

    handles = [layer.register_forward_pre_hook(collect(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                classifier(images[start : start + batch_size].float() / 255.0)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if counts[name]:
            _rewrite(layer, *pooled_moments(sums[name], squares[name], counts[name]))


def _rewrite(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    running_mean, running_var = layer.running_mean, layer.running_var
    assert running_mean is not None
    assert running_var is not None
    alive = (variance >= MIN_VARIANCE) & (running_var >= MIN_VARIANCE)
    # The affine parameters belong to the statistics as the layer stores them, in its own precision.
    new_mean = torch.where(alive, mean.to(running_mean), running_mean)
    new_var = torch.where(alive, variance.to(running_var), running_var)
    weight, bias = reparameterised_batchnorm(
        layer.weight, layer.bias, running_mean, running_var, new_mean, new_var, eps=layer.eps
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        running_mean.copy_(new_mean)
        running_var.copy_(new_var)
