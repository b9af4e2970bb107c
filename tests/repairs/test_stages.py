"""Feature maps at the end of each stage, found by following a pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.errors import RepairError
from modelaudit.repairs._stages import find_stages, recorded
from tests.helpers.models import (
    images,
    initialised,
    suspect_of,
    tiny_bn,
    tiny_densenet,
    tiny_tokens,
)


def test_a_resnet_gives_its_last_three_stages() -> None:
    net = initialised(CifarResNet(depth=18, width=4, num_classes=4, in_channels=3), 0)
    stages = find_stages(suspect_of(net, size=32))
    assert [stage.shape for stage in stages] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    # The output of a whole stage, which no single layer returns: a sum and its ReLU.
    groups = dict(net.named_children())
    for stage in stages:
        assert stage.name in groups
        assert not isinstance(groups[stage.name], nn.Conv2d | nn.BatchNorm2d)


def test_a_network_with_fewer_sizes_gives_fewer() -> None:
    assert [s.shape for s in find_stages(suspect_of(tiny_bn()))] == [(8, 8, 8), (16, 4, 4)]
    assert [s.shape for s in find_stages(suspect_of(tiny_densenet()))] == [(16, 8, 8)]
    assert [s.shape for s in find_stages(suspect_of(tiny_bn()), count=1)] == [(16, 4, 4)]


class _Pooled(nn.Module):
    """Ends with a container that ends with a pooling to 2x2, as some nets' features do."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.features = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), self.act, nn.AvgPool2d(2)
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(self.act(self.stem(x))).flatten(1))
        return out


def test_what_pooling_returns_is_no_stage() -> None:
    stages = find_stages(suspect_of(_Pooled().eval()))
    assert [(s.name, s.call, s.shape) for s in stages] == [
        ("act", 0, (4, 8, 8)),
        ("act", 1, (6, 4, 4)),
    ]


def test_networks_without_maps_are_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(x.flatten(1))
            return out

    with pytest.raises(RepairError, match="feature maps"):
        find_stages(suspect_of(Flat().eval()))


def test_tokens_give_the_maps_that_they_are_cut_from() -> None:
    assert [s.shape for s in find_stages(suspect_of(tiny_tokens()))] == [(6, 2, 2)]


def test_the_maps_of_the_latest_pass_are_kept() -> None:
    net = _Pooled().eval()
    suspect = suspect_of(net)
    stages = find_stages(suspect)
    with torch.no_grad(), recorded(net, stages) as maps:
        suspect.logits(images(3))
        suspect.logits(images(5))
        first, second = maps()
        x = (images(5) - 0.5) / 0.5
        expected = torch.relu(net.stem(x))
        torch.testing.assert_close(first, expected)
        torch.testing.assert_close(second, torch.relu(net.features[0](expected)))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())
