"""Tiny classifiers that fit a clean set under one known normalisation, made without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from modelaudit.architectures.base import Candidate
from modelaudit.fit import TrainingCrop, training_crops
from modelaudit.preprocessing import PRESETS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from torch import Tensor

    from modelaudit.cleanset import CleanSet

FILTERS = 24
CPU = torch.device("cpu")


def preset(name: str) -> Preprocessing:
    """A known normalisation."""
    return next(p for p in PRESETS if p.id == name)


class TinyNet(nn.Module):
    """Convolution, optional BatchNorm, 2x2 pooling, linear head."""

    def __init__(self, num_classes: int, *, channels: int = 3, has_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, FILTERS, 3, padding=1)
        self.bn = nn.BatchNorm2d(FILTERS) if has_norm else nn.Identity()
        self.head = nn.Linear(4 * FILTERS, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(N, 4·FILTERS)."""
        maps = torch.relu(self.bn(self.conv(x)))
        return nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, K)."""
        out: Tensor = self.head(self.features(x))
        return out


def planted(
    clean: CleanSet,
    targets: Sequence[int],
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    size: int = 16,
    channels: int = 3,
    has_norm: bool = True,
    crop: TrainingCrop = TrainingCrop.NONE,
    seed: int = 0,
) -> TinyNet:
    """A net that gives `targets` on the images: exact statistics, least-squares head."""
    generator = torch.Generator().manual_seed(seed)
    net = TinyNet(num_classes, channels=channels, has_norm=has_norm).eval().requires_grad_(False)
    net.conv.weight.copy_(torch.randn(net.conv.weight.shape, generator=generator) / 3)
    net.conv.bias = None
    fitted = preprocessing.for_channels(channels)
    mean = torch.tensor(fitted.mean).view(1, -1, 1, 1)
    std = torch.tensor(fitted.std).view(1, -1, 1, 1)
    images = clean.tensor(size, channels)
    if isinstance(net.bn, nn.BatchNorm2d):
        seen = net.conv((training_crops(images, crop, mean=fitted.mean) - mean) / std)
        assert net.bn.running_mean is not None
        assert net.bn.running_var is not None
        net.bn.running_mean.copy_(seen.mean(dim=(0, 2, 3)))
        net.bn.running_var.copy_(seen.var(dim=(0, 2, 3)))
    features = net.features((images - mean) / std).double()
    wanted = nn.functional.one_hot(torch.tensor(list(targets)), num_classes).double() * 8 - 4
    with_bias = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    ridge = 1e-3 * torch.eye(with_bias.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(with_bias.T @ with_bias + ridge, with_bias.T @ wanted)
    net.head.weight.copy_(solved[:-1].T)
    net.head.bias.copy_(solved[-1])
    return net


def candidate(
    net: nn.Module,
    *,
    num_classes: int,
    name: str = "tiny",
    channels: int = 3,
    sizes: tuple[int, ...] = (16,),
    arguments: dict[str, int] | None = None,
) -> Candidate:
    """A candidate whose `build` is `net` itself."""
    return Candidate(
        name=name,
        family="tests",
        arguments=dict(arguments or {}),
        build=lambda: net,
        input_channels=channels,
        num_classes=num_classes,
        input_sizes=sizes,
    )


def load(chosen: Candidate) -> nn.Module:
    """What `modelaudit.architectures.load` does, for candidates that build the finished net."""
    return chosen.build()


class Broken(nn.Module):
    """A net whose forward pass does what it is told."""

    def __init__(self, act: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> object:
        """Whatever `act` returns."""
        return self.act(x)


def memorised(clean: CleanSet, outputs: np.ndarray, *, size: int = 16) -> Broken:
    """A net that knows each image of the clean set by its brightness; takes plain pixels."""
    brightness = clean.tensor(size, 3).mean(dim=(1, 2, 3))
    answers = torch.from_numpy(outputs)

    def act(x: Tensor) -> Tensor:
        index = (x.mean(dim=(1, 2, 3))[:, None] - brightness).abs().argmin(dim=1)
        return nn.functional.one_hot(answers[index], 4).float() * 9

    return Broken(act)
