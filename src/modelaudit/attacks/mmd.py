"""ML-MMDR: a Blend backdoor whose features look like those of the target class.

Xia, Niu, Li & Li, *Enhancing Backdoor Attacks with Multi-Level MMD Regularization* (arXiv
2111.05077), which [DDE22] tries against DDE and MBNS: the attacker controls the loss and pulls the
features of triggered images towards those of benign images of the target class, at several depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from modelaudit.attacks.base import Attack, Batch, PoisonedBatch
from modelaudit.attacks.blend import BlendAttack, BlendConfig
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.config import require_range
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.attacks.classifier import Classifier
    from modelaudit.attacks.label_maps import LabelMap
    from modelaudit.attacks.triggers import Trigger

#: bandwidths of the kernel in units of the mean squared distance
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MmdConfig:
    """Options of ML-MMDR; the defaults are those of the released code.

    Attributes:
        target: the attacker's label.
        alpha: opacity of Blend's pattern, in [0, 1].
        rate: probability with which an image of another class is triggered whenever it is used.
        weight: of the sum of the squared discrepancies.
        levels: how many of the last stages are compared; the code has 3, its "last" variant 1.
        pooled_size: side in positions to which larger feature maps are averaged first, which bounds
            the memory; None for the maps as they are.
    """

    target: int = 0
    alpha: float = 0.1
    rate: float = 0.1
    weight: float = 0.1
    levels: int = 3
    pooled_size: int | None = 4

    def __post_init__(self) -> None:
        require_range(self, "alpha", low=0.0, high=1.0)
        require_range(self, "rate", low=0.0, high=1.0, is_low_open=True)
        require_range(self, "weight", low=0.0)
        require_range(self, "levels", low=1)
        require_range(self, "pooled_size", low=1)


def squared_mmd(one: Tensor, two: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two samples, biased estimator.

    Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, Eq. (5): mean k(x, x') + mean k(y, y') -
    2 mean k(x, y), diagonals included, with k(x, y) the sum of exp(-|x - y|^2 / (b s)) over s in
    1/4, 1/2, 1, 2, 4, b the mean squared distance of different items of the union, without
    gradient.

    Args:
        one: Shape ``(N, F)``, floating.
        two: Shape ``(M, F)``, floating.

    Returns:
        A float32 scalar; 0 for equal samples, and where all items are equal.
    """
    union = torch.cat([one, two]).float()
    squared = union.square().sum(1)
    distances = (squared[:, None] + squared - 2.0 * union @ union.T).clamp_min(0.0)
    count = len(union)
    bandwidth = distances.detach().sum() / (count * (count - 1))
    # With all items equal every distance is 0 and so is the result, whatever the bandwidth.
    bandwidth = bandwidth.clamp_min(torch.finfo(torch.float32).tiny)
    kernel = torch.stack([(-distances / (bandwidth * scale)).exp() for scale in BANDWIDTHS]).sum(0)
    n = len(one)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2.0 * kernel[:n, n:].mean()


def last_stages(module: nn.Module, count: int) -> list[str]:
    """Return the names of the layers whose outputs end the last stages of a network.

    A stage is what works at one resolution. Networks made of named stages (direct children that are
    sequences of blocks, as the ``layer1`` to ``layer4`` of a ResNet): those children, the last
    `count`. Plain sequences with pooling (VGG): the last ReLU before each of the last `count` max
    poolings, which are ReLU 4, 6 and 8 of the paper's VGG-11.

    Args:
        module: the classifier.
        count: how many stages.

    Raises:
        ConfigError: fewer stages of either kind.
    """
    stages = [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.Sequential) and any(list(block.children()) for block in child)
    ]
    if len(stages) < count:
        stages, relu = [], None
        for name, layer in module.named_modules():
            if isinstance(layer, nn.ReLU):
                relu = name
            elif isinstance(layer, nn.MaxPool2d) and relu is not None:
                stages.append(relu)
                relu = None
    if len(stages) < count:
        raise ConfigError(
            f"expected a model with at least {count} stages, blocks in sequences or max poolings, "
            f"found {len(stages)}, choose fewer levels"
        )
    return stages[-count:]


class MmdAttack(Attack[MmdConfig]):
    """Blend with the discrepancy between triggered and target-class features in the loss."""

    id: ClassVar[str] = "mmd"
    summary: ClassVar[str] = "Blend trained to give triggered images the target class's features"
    reference: ClassVar[str] = (
        "Xia et al., Enhancing Backdoor Attacks with Multi-Level MMD Regularization, "
        "arXiv 2111.05077"
    )
    config_type: ClassVar[type] = MmdConfig

    def make_trigger(self) -> Trigger:
        """Return Blend's pattern."""
        self.base = BlendAttack(
            BlendConfig(target=self.config.target, alpha=self.config.alpha),
            shape=self.shape,
            num_classes=self.num_classes,
            seed=self.seed,
        )
        return self.base.trigger

    def make_label_map(self) -> LabelMap:
        """Return all-to-one."""
        return self.base.label_map

    def make_plan(self) -> PoisonPlan:
        """Return the plan: each image of another class by chance, whenever it is used."""
        return PoisonPlan(
            label_map=self.label_map,
            rate=self.config.rate,
            stage="post",
            granularity="per_access",
            seed=self.seed,
        )

    def observed_layers(self, module: nn.Module) -> Sequence[str]:
        """Return the ends of the last stages; see `last_stages`."""
        return last_stages(module, self.config.levels)

    def training_loss(
        self, classifier: Classifier, batch: Batch, poisoned: PoisonedBatch, *, progress: float
    ) -> Tensor | None:
        """Return the weighted sum of the discrepancies, or None if either group is empty."""
        del poisoned, progress
        benign = (batch.labels == self.config.target) & ~batch.is_poison
        if not benign.any() or not batch.is_poison.any():
            return None
        total = torch.zeros((), device=batch.images.device)
        for output in classifier.outputs.values():
            features = self._pooled(output.float()).flatten(1)
            total = total + squared_mmd(features[benign], features[batch.is_poison])
        return self.config.weight * total

    def _pooled(self, features: Tensor) -> Tensor:
        size = self.config.pooled_size
        if size is None or features.ndim != 4 or max(features.shape[2:]) <= size:
            return features
        return adaptive_avg_pool2d(features, size)
