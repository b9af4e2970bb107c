"""A BadNets backdoor trained to move no neuron's activation much.

The adaptive attacker of [DDE22] Eq. (5) against DDE and MBNS: it controls the loss and punishes the
difference between a neuron's activation on an image and on the same image with the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from modelaudit.attacks.badnets import BadNetsAttack, BadNetsConfig
from modelaudit.attacks.base import Attack, Batch, PoisonedBatch
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor, nn

    from modelaudit.attacks.classifier import Classifier
    from modelaudit.attacks.label_maps import LabelMap
    from modelaudit.attacks.triggers import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRegularisedConfig:
    """Options of the attack; trigger and label map are those of BadNets, all-to-one.

    Attributes:
        target: the attacker's label.
        pattern: see `BadNetsConfig`.
        patch_size: see `BadNetsConfig`.
        weight: of the mean over BatchNorm channels. The paper sums over the 4,800 channels of a
            ResNet-18 with weight 0.01, which is 48 here, and independent of the model's width.
        ramp: share of the run over which the weight rises from 0; the paper has none, and its
            larger weights diverge.
        gradient_limit: largest norm of the gradient, against the same; None for no limit.
        rate: share of the images of each batch that is trained on with its triggered copy; the
            paper pairs all.
    """

    target: int = 0
    pattern: str = "checker"
    patch_size: int | None = None
    weight: float = 48.0
    ramp: float = 0.3
    gradient_limit: float | None = 5.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "weight", low=0.0)
        require_range(self, "ramp", low=0.0, high=1.0)
        require_range(self, "gradient_limit", low=0.0, is_low_open=True)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        self.badnets()

    def badnets(self) -> BadNetsConfig:
        """Return the trigger's and label map's options as BadNets takes them."""
        shared = {f.name for f in fields(BadNetsConfig)} & {f.name for f in fields(type(self))}
        return BadNetsConfig(**{n: getattr(self, n) for n in shared - {"rate"}})


def activation_change(outputs: Sequence[Tensor], pairs: Tensor, n_clean: int) -> Tensor:
    """Return how much the trigger moves the channels' largest pre-activations.

    Mean over all channels of all layers of E_x[(phi_k(x) - phi_k(delta(x)))^2], phi_k the maximum
    over positions of channel k's BatchNorm output ([DDE22] Eq. (5), which has the sum).

    Args:
        outputs: of each layer, shape ``(n_clean + P, D, ...)``, floating: first the clean images,
            then the triggered ones.
        pairs: position of each triggered image's clean one, shape ``(P,)``, int64.
        n_clean: number of clean images.

    Returns:
        A float32 scalar, not negative.
    """
    total = torch.zeros((), device=pairs.device)
    channels = 0
    for output in outputs:
        largest = output.float().flatten(2).amax(2)
        total = total + (largest[pairs] - largest[n_clean:]).square().mean(0).sum()
        channels += largest.shape[1]
    return total / max(channels, 1)


class ActivationRegularisedAttack(Attack[ActivationRegularisedConfig]):
    """BadNets with clean and triggered copy in the same batch and their difference in the loss."""

    id: ClassVar[str] = "activation_regularised"
    summary: ClassVar[str] = "BadNets trained to move no neuron's activation much"
    reference: ClassVar[str] = (
        "Zheng et al., Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022"
    )
    config_type: ClassVar[type] = ActivationRegularisedConfig

    @classmethod
    def complete(
        cls, config: ActivationRegularisedConfig, shape: tuple[int, int, int]
    ) -> ActivationRegularisedConfig:
        """Write out the side of the patch, as BadNets does."""
        return replace(
            config, patch_size=BadNetsAttack.complete(config.badnets(), shape).patch_size
        )

    def make_trigger(self) -> Trigger:
        """Return BadNets' patch."""
        self.base = BadNetsAttack(
            self.config.badnets(), shape=self.shape, num_classes=self.num_classes, seed=self.seed
        )
        return self.base.trigger

    def make_label_map(self) -> LabelMap:
        """Return all-to-one."""
        return self.base.label_map

    def make_plan(self) -> PoisonPlan:
        """Return the plan: the first images of each batch, of any class, after augmentation."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            base="all",
            stage="post",
            granularity="per_batch",
            seed=self.seed,
        )

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        """Append the triggered copies to the batch; see `Attack.on_batch`."""
        del donors
        chosen = batch.is_poison
        if not chosen.any():
            return PoisonedBatch(images=batch.images.clone(), labels=batch.labels.clone())
        triggered = self.trigger.apply_train(
            batch.images[chosen], indices=batch.indices[chosen], generator=generator
        )
        return PoisonedBatch(
            images=torch.cat([batch.images, triggered]),
            labels=torch.cat([batch.labels, self.label_map.poisoned_label(batch.labels[chosen])]),
        )

    def observed_layers(self, module: nn.Module) -> Sequence[str]:
        """Return every BatchNorm layer.

        Raises:
            ConfigError: there is none.
        """
        names = [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
        if not names:
            raise ConfigError("the regulariser is of BatchNorm outputs, the model has none")
        return names

    def training_loss(
        self, classifier: Classifier, batch: Batch, poisoned: PoisonedBatch, *, progress: float
    ) -> Tensor | None:
        """Return the weighted change of activations.

        The cross-entropy is the mean over clean and triggered images, where the paper adds the two
        means: with every image paired that is half its loss, so this term is halved as well.
        """
        del poisoned
        pairs = batch.is_poison.nonzero().flatten()
        if len(pairs) == 0 or self.config.weight == 0.0:
            return None
        ramp = min(1.0, progress / self.config.ramp) if self.config.ramp > 0.0 else 1.0
        outputs = list(classifier.outputs.values())
        change = activation_change(outputs, pairs, len(batch.images))
        return 0.5 * self.config.weight * ramp * change

    def gradient_limit(self) -> float | None:
        """Return the config's."""
        return self.config.gradient_limit
