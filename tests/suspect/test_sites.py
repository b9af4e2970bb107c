from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from modelaudit.architectures.cifar_densenet import CifarDenseNet
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.suspect import Site, SiteEdit, SiteKind
from modelaudit.suspect.sites import find_sites, layer_kind
from tests.helpers import models
from tests.helpers.models import images, initialised, suspect_of

if TYPE_CHECKING:
    from collections.abc import Callable


def sites_of(module: nn.Module, classifier: str | None = "head") -> dict[str, Site]:
    found = find_sites(module, lambda: module(images(2)), classifier)
    return {site.name: site for site in found}


def test_a_cifar_resnet18_has_4800_batchnorm_channels_in_20_layers() -> None:
    net = CifarResNet(depth=18, width=64).eval()
    with torch.no_grad():
        sites = find_sites(net, lambda: net(images(1, size=4)), "linear")
    assert len(sites) == 20
    assert sum(site.channels for site in sites) == 4_800
    assert all(site.kind is SiteKind.BATCHNORM and site.has_statistics for site in sites)


def test_sites_stand_in_the_order_of_execution() -> None:
    net = CifarResNet(depth=18, width=2).eval()
    names = list(sites_of(net, "linear"))
    assert names[:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    assert names[-2:] == ["layer4.1.bn1", "layer4.1.bn2"]
    shortcut = names.index("layer2.0.shortcut.1")
    assert names[shortcut - 1 : shortcut + 2] == [
        "layer2.0.bn2",
        "layer2.0.shortcut.1",
        "layer2.1.bn1",
    ]


def test_batchnorm_channels_alone_are_neurons_where_there_is_batchnorm() -> None:
    sites = sites_of(models.tiny_bn())
    assert list(sites) == ["norm1", "norm2"]
    assert [sites[n].channels for n in sites] == [8, 16]
    assert [sites[n].upstream for n in sites] == ["conv1", "conv2"]
    assert all(site.channel_dim == 1 for site in sites.values())


def test_without_a_norm_convolutions_are_neurons_and_the_classifier_never() -> None:
    sites = sites_of(models.tiny_plain())
    assert list(sites) == ["conv1", "conv2"]
    assert all(site.kind is SiteKind.CONV for site in sites.values())
    assert not any(site.has_statistics for site in sites.values())
    assert list(sites_of(models.tiny_plain(), None)) == ["conv1", "conv2", "head"]


def test_a_convolution_under_a_groupnorm_is_not_counted_twice() -> None:
    sites = sites_of(models.tiny_groupnorm())
    assert {n: s.kind for n, s in sites.items()} == {
        "norm1": SiteKind.GROUPNORM,
        "norm2": SiteKind.GROUPNORM,
    }
    assert sites["norm2"].upstream == "conv2"


def test_layernorm_and_linear_count_channels_last() -> None:
    sites = sites_of(models.tiny_tokens())
    assert {n: (s.kind, s.channel_dim) for n, s in sites.items()} == {
        "patches": (SiteKind.CONV, 1),
        "norm1": (SiteKind.LAYERNORM, -1),
        "hidden": (SiteKind.LINEAR, -1),
        "norm2": (SiteKind.LAYERNORM, -1),
    }


def test_a_densenets_norms_are_fed_by_one_convolution_only_where_they_are() -> None:
    sites = sites_of(models.tiny_densenet())
    assert {n: s.upstream for n, s in sites.items()} == {
        "norm1": "stem",
        "norm2": None,
        "norm3": "conv2",
        "norm4": None,
    }


def test_upstream_follows_the_tensors_of_a_real_densenet() -> None:
    net = CifarDenseNet(blocks=(2, 1, 1, 1), growth_rate=4, num_classes=4)
    module = initialised(net, 0)
    with torch.no_grad():
        sites = find_sites(module, lambda: module(images(2, size=32)), "linear")
    upstream = {site.name: site.upstream for site in sites}
    assert upstream["dense1.0.bn1"] == "conv1"
    assert upstream["dense1.0.bn2"] == "dense1.0.conv1"
    assert upstream["dense1.1.bn1"] is None
    assert upstream["bn"] is None


@pytest.mark.parametrize("is_inplace", [False, True])
def test_an_activation_between_convolution_and_norm_breaks_the_link(*, is_inplace: bool) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=is_inplace), nn.BatchNorm2d(4), nn.Flatten()
    )
    assert sites_of(net.eval())["2"].upstream is None


@pytest.mark.parametrize("is_inplace", [False, True])
def test_a_convolution_is_a_neuron_when_its_norm_follows_an_activation(*, is_inplace: bool) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=is_inplace), nn.GroupNorm(2, 4), nn.Flatten()
    )
    assert list(sites_of(net.eval())) == ["0", "2"]


def test_an_inplace_activation_behind_the_norm_breaks_no_link() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)
    )
    assert sites_of(net.eval())["1"].upstream == "0"


def test_layers_that_never_run_are_no_sites() -> None:
    module = models.tiny_bn()
    module.unused = nn.BatchNorm2d(3)
    assert list(sites_of(module)) == ["norm1", "norm2"]


def test_a_layer_that_is_called_by_keyword_is_no_site() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(input=self.conv(x))
            return out

    assert list(sites_of(ByKeyword().eval())) == ["conv"]


def test_a_layer_called_twice_is_one_site() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.conv(self.norm(self.conv(x))))
            return out

    assert list(sites_of(Twice().eval())) == ["norm"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm2d(3), (SiteKind.BATCHNORM, 3, 1)),
        (nn.BatchNorm1d(3, affine=False), (SiteKind.BATCHNORM, 3, 1)),
        (nn.GroupNorm(1, 4), (SiteKind.GROUPNORM, 4, 1)),
        (nn.GroupNorm(1, 4, affine=False), None),
        (nn.LayerNorm(5), (SiteKind.LAYERNORM, 5, -1)),
        (nn.LayerNorm(5, elementwise_affine=False), None),
        (nn.Conv1d(1, 2, 1), (SiteKind.CONV, 2, 1)),
        (nn.Conv3d(1, 2, 1), (SiteKind.CONV, 2, 1)),
        (nn.Linear(1, 7), (SiteKind.LINEAR, 7, -1)),
        (nn.ReLU(), None),
        (nn.InstanceNorm2d(3), None),
    ],
    ids=str,
)
def test_which_layers_have_neurons(
    layer: nn.Module, expected: tuple[SiteKind, int, int] | None
) -> None:
    assert layer_kind(layer) == expected


@pytest.mark.parametrize(
    ("build", "has_batchnorm", "has_statistics"),
    [
        (models.tiny_bn, True, True),
        (models.tiny_batch_statistics, True, False),
        (models.tiny_groupnorm, False, False),
        (models.tiny_plain, False, False),
    ],
)
def test_a_suspect_knows_whether_it_has_statistics(
    build: Callable[[], nn.Module], has_batchnorm: bool, has_statistics: bool
) -> None:
    suspect = suspect_of(build())
    assert suspect.has_batchnorm is has_batchnorm
    assert suspect.has_batchnorm_statistics is has_statistics


def test_finding_sites_leaves_no_hook_even_when_the_pass_fails() -> None:
    module = models.tiny_bn()

    def fail() -> None:
        module(images(2))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        find_sites(module, fail, None)
    assert not any(child._forward_hooks for child in module.modules())


def test_a_layernorm_over_the_channels_of_maps_counts_them_where_they_are() -> None:
    from torchvision.models.convnext import LayerNorm2d

    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), LayerNorm2d(6), nn.Flatten(), nn.Linear(6 * 64, 4)
    )
    suspect = suspect_of(net.eval())
    (site,) = [site for site in suspect.sites if site.name == "1"]
    assert (site.kind, site.channels, site.channel_dim) == (SiteKind.LAYERNORM, 6, 1)
    with suspect.borrowed(), suspect.edited({"1": SiteEdit(keep=torch.zeros(6))}), torch.no_grad():
        torch.testing.assert_close(suspect.logits(images(2)), net[3].bias.expand(2, -1))
