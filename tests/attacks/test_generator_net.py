from __future__ import annotations

import pytest
import torch
from torch import nn

from modelaudit.attacks.generator_net import GeneratorNet, require_divisible
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def make(*, seed: int = 0, widths: tuple[int, ...] = (32, 64, 128)) -> GeneratorNet:
    return GeneratorNet(
        in_channels=3,
        out_channels=1,
        widths=widths,
        generator=torch.Generator().manual_seed(seed),
    )


def test_layers_are_the_papers() -> None:
    convolutions = [layer for layer in make().layers if isinstance(layer, nn.Conv2d)]
    channels = [layer.out_channels for layer in convolutions]
    assert channels == [32, 32, 64, 64, 128, 128, 128, 128, 64, 64, 32, 32, 1]
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in make().layers) == 3
    assert sum(isinstance(layer, nn.Upsample) for layer in make().layers) == 3
    assert isinstance(make().layers[-1], nn.BatchNorm2d)
    norms = [layer for layer in make().layers if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.momentum for layer in norms} == {0.05}


@pytest.mark.parametrize("size", [16, 32])
def test_map_has_the_images_size_and_lies_in_the_unit_interval(size: int) -> None:
    out = make(widths=(4, 6)).eval()(random_images(3, size=size)).detach()
    assert out.shape == (3, 1, size, size)
    assert 0.0 < float(out.min()) < float(out.max()) < 1.0


def test_initial_weights_follow_the_generator_alone() -> None:
    one, same, other = (make(seed=seed, widths=(4,)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.parametrize("widths", [(), (4, 0)])
def test_widths_without_channels_raise(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="widths must be positive"):
        require_divisible((32, 32), widths)


def test_size_that_cannot_be_halved_raises() -> None:
    require_divisible((32, 40), (4, 4, 4))
    with pytest.raises(ConfigError, match="cannot be halved 3 times"):
        require_divisible((32, 36), (4, 4, 4))
