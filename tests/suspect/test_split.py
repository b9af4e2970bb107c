from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelaudit.architectures.cifar_densenet import CifarDenseNet
from modelaudit.architectures.cifar_mobilenet_v2 import CifarMobileNetV2
from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNet
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.architectures.wide_resnet import WideResNet
from modelaudit.suspect.split import Split, _by_graph, _by_injection, find_split
from tests.helpers import models
from tests.helpers.models import images, initialised, suspect_of

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: CifarResNet(depth=18, width=4, num_classes=4),
    "resnet50": lambda: CifarResNet(depth=50, width=2, num_classes=4),
    "resnet18_stem7": lambda: CifarResNet(depth=18, width=4, num_classes=4, stem_kernel=7),
    "preact_resnet18": lambda: CifarPreActResNet(depth=18, width=4, num_classes=4),
    "preact_resnet50": lambda: CifarPreActResNet(depth=50, width=2, num_classes=4),
    "preact_final_bn": lambda: CifarPreActResNet(width=4, num_classes=4, has_final_norm=True),
    "vgg11": lambda: CifarVgg(depth=11, width=2, num_classes=4, has_batchnorm=False),
    "vgg16_bn": lambda: CifarVgg(depth=16, width=2, num_classes=4),
    "densenet": lambda: CifarDenseNet(blocks=(2, 2, 2, 2), growth_rate=4, num_classes=4),
    "mobilenet_v2": lambda: CifarMobileNetV2(
        plan=((1, 8, 1), (2, 8, 2), (2, 8, 1)), stem_width=8, last_width=16, num_classes=4
    ),
    "wide_resnet": lambda: WideResNet(depth=10, widths=(8, 16, 32), num_classes=4, stem_width=4),
    "sequence": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 16 * 16, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(8, 4),
    ),
}

#: Where the papers mask: the last maps before pooling, of how many channels, side in pixels.
FEATURES = {
    "resnet18": (32, 4, 4),
    "resnet50": (64, 4, 4),
    "resnet18_stem7": (32, 1, 1),
    "preact_resnet18": (32, 4, 4),
    "preact_resnet50": (64, 4, 4),
    "preact_final_bn": (32, 4, 4),
    "vgg11": (16, 1, 1),
    "vgg16_bn": (16, 1, 1),
    "mobilenet_v2": (16, 16, 16),
    "wide_resnet": (32, 8, 8),
    "sequence": (4, 16, 16),
}


def batches(size: int = 32, channels: int = 3) -> list[Tensor]:
    return [images(n, size=size, channels=channels, seed=n) for n in (2, 3)]


def exactness(module: nn.Module, split: Split, batch: Tensor) -> float:
    """Largest difference of the logits, in units of the largest logit."""
    with torch.no_grad():
        logits = module(batch)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return float((split.head(split.features(batch)) - logits).abs().max() / logits.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_cut_exactly_where_the_papers_mask(name: str) -> None:
    module = initialised(FAMILIES[name](), 0)
    split = find_split(module, batches())
    assert split is not None
    assert split.method == "graph"
    assert split.feature_shape == FEATURES.get(name, split.feature_shape)
    assert len(split.feature_shape) == 3
    batch = images(7, size=32, seed=9)
    assert exactness(module, split, batch) < 1e-6
    assert split.features(batch).shape == (7, *split.feature_shape)
    assert isinstance(module.get_submodule(str(split.classifier)), nn.Linear)


@pytest.mark.parametrize("name", ["preact_final_bn", "vgg11", "densenet", "sequence"])
def test_graph_and_injection_give_the_same_logits(name: str) -> None:
    module = initialised(FAMILIES[name](), 0)
    batch = images(5, size=32, seed=4)
    with torch.no_grad():
        graph, injection = _by_graph(module, batch), _by_injection(module, batch)
        assert graph is not None
        assert injection is not None
        assert (graph.method, injection.method) == ("graph", "injection")
        assert graph.classifier == injection.classifier
        logits = module(batch)
        for split in (graph, injection):
            again = split.head(split.features(batch))
            torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-6)


def torchvision_vgg() -> nn.Module:
    from torchvision.models.vgg import VGG

    with torch.device("meta"):
        net = VGG(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(True)), num_classes=4)
    # The published classifier has a hundred million weights; its layers are kept, narrower.
    net.classifier = nn.Sequential(
        nn.Linear(4 * 7 * 7, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 4)
    )
    return net.to_empty(device="cpu")


def torchvision_densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=4)


def torchvision_mobilenet() -> nn.Module:
    from torchvision.models.mobilenetv2 import MobileNetV2

    return MobileNetV2(
        num_classes=4, inverted_residual_setting=[[1, 8, 1, 1], [2, 8, 2, 2]], round_nearest=4
    )


def torchvision_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)


@pytest.mark.parametrize(
    ("build", "spatial"),
    [
        (torchvision_vgg, (4, 32, 32)),
        (torchvision_densenet, (16, 4, 4)),
        (torchvision_mobilenet, (1280, 8, 8)),
        (torchvision_resnet, (512, 1, 1)),
    ],
    ids=["vgg", "densenet", "mobilenet_v2", "resnet"],
)
def test_torchvisions_models_are_cut_exactly(
    build: Callable[[], nn.Module], spatial: tuple[int, ...]
) -> None:
    module = initialised(build(), 0)
    split = find_split(module, batches())
    assert split is not None
    assert split.method == "graph"
    assert split.feature_shape == spatial
    assert exactness(module, split, images(5, size=32, seed=9)) < 1e-6


def test_a_net_that_cannot_be_traced_is_cut_by_injection() -> None:
    module = models.tiny_untraceable()
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert (split.method, split.point, split.classifier) == ("injection", "norm2", "head")
    assert exactness(module, split, images(5)) < 1e-6


class UntraceableResNet(CifarResNet):
    """Its last maps are a sum, which no layer returns."""

    def forward(self, x: Tensor) -> Tensor:
        float(x.detach().sum())
        return super().forward(x)


def test_a_residual_net_that_cannot_be_traced_has_no_cut() -> None:
    module = initialised(UntraceableResNet(width=4, num_classes=4), 0)
    with torch.no_grad():
        inexact = _by_injection(module, images(2, size=32))
    assert inexact is not None
    assert exactness(module, inexact, images(2, size=32)) > 0.1
    assert find_split(module, batches()) is None


def test_an_injected_heads_gradient_reaches_the_features() -> None:
    module = models.tiny_untraceable()
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    features = split.features(images(3)).detach().requires_grad_()
    split.head(features).sum().backward()
    assert features.grad is not None
    assert bool(features.grad.abs().sum() > 0)


def test_injection_leaves_no_hook() -> None:
    module = models.tiny_untraceable()
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    split.head(split.features(images(3)))
    assert not any(child._forward_hooks for child in module.modules())


@pytest.mark.parametrize("arguments", [{}, {"size": 16}])
def test_a_net_with_a_tuple_as_output_is_cut(arguments: dict[str, int]) -> None:
    module = models.tiny_tuple()
    split = find_split(module, batches(**({"size": models.SIZE} | arguments)))
    assert split is not None
    assert split.feature_shape[0] == 16
    assert exactness(module, split, images(5, **arguments)) < 1e-6


def test_a_net_without_a_classifier_has_no_cut() -> None:
    assert find_split(models.tiny_without_split(), batches(models.SIZE)) is None


def test_a_linear_net_without_maps_is_cut_before_its_last_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))
    module = initialised(net, 0)
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert (split.feature_shape, split.classifier) == ((5,), "3")
    assert exactness(module, split, images(5)) < 1e-6


def test_one_linear_layer_on_the_pixels_is_cut_before_it() -> None:
    module = initialised(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 0)
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert split.feature_shape == (192,)
    assert exactness(module, split, images(5)) < 1e-6


def test_a_convolution_of_one_pixel_is_a_classifier_too() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    module = initialised(net, 0)
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert (split.classifier, split.feature_shape) == ("3", (6, 8, 8))
    assert exactness(module, split, images(5)) < 1e-6


class PoolingNet(nn.Module):
    """Averages in one of the ways that people write it, then a linear layer."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.pool = pool
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(torch.relu(self.conv(x))).flatten(1))
        return out


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(8),
        nn.AdaptiveAvgPool2d(1),
        lambda x: functional.avg_pool2d(x, 8),
        lambda x: functional.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: torch.mean(x, (2, 3), True),
    ],
)
def test_the_features_stand_before_any_kind_of_average(pool: Callable[[Tensor], Tensor]) -> None:
    split = find_split(initialised(PoolingNet(pool), 0), batches(models.SIZE))
    assert split is not None
    assert split.feature_shape == (6, 8, 8)


class ResidualHead(nn.Module):
    """The pixels bypass every cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6 + 192, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x)).mean((2, 3))
        out: Tensor = self.head(torch.cat([maps, x.flatten(1)], dim=1))
        return out


def test_a_bypass_moves_the_cut_behind_it() -> None:
    module = initialised(ResidualHead(), 0)
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert split.feature_shape == (198,)
    assert exactness(module, split, images(5)) < 1e-6


class EarlySizeNet(nn.Module):
    """Reads the batch size off its input and uses it behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(6 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        out: Tensor = self.head(self.act(self.conv(x)).view(count, -1))
        return out


def test_a_number_that_bypasses_the_cut_leaves_injection() -> None:
    module = initialised(EarlySizeNet(), 0)
    with torch.no_grad():
        assert _by_graph(module, images(2)) is None
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert (split.method, split.point) == ("injection", "act")
    assert exactness(module, split, images(5)) < 1e-6


def test_injection_says_when_the_features_are_never_computed() -> None:
    module = models.tiny_bn()
    with torch.no_grad():
        split = _by_injection(module, images(2))
    assert split is not None
    module.norm2 = nn.Identity()
    with pytest.raises(RuntimeError, match="the feature module was not called"):
        split.features(images(2))


class BranchNet(nn.Module):
    """Two linear branches are added after the classifier that stands last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Linear(6, 4)
        self.two = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x)).mean((2, 3))
        out: Tensor = self.one(maps) + self.two(maps)
        return out


def test_a_sum_of_two_heads_has_no_cut() -> None:
    assert find_split(initialised(BranchNet(), 0), batches(models.SIZE)) is None


class BatchBoundNet(nn.Module):
    """Writes the batch size of its first call into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x)).mean((2, 3))
        out: Tensor = self.head(maps * torch.ones(2, 6) if len(self._seen(x)) == 2 else maps)
        return out

    @staticmethod
    def _seen(x: Tensor) -> range:
        # A traced value has no length that is a number: the graph keeps what 2 images take.
        return range(2) if isinstance(x, torch.fx.Proxy) else range(len(x))


def test_a_cut_that_holds_for_one_batch_size_only_is_refused() -> None:
    module = initialised(BatchBoundNet(), 0)
    with torch.no_grad():
        graph = _by_graph(module, images(2))
    assert graph is not None
    assert exactness(module, graph, images(2)) < 1e-6
    split = find_split(module, batches(models.SIZE))
    assert split is not None
    assert split.method == "injection"


class ShapelessNet(nn.Module):
    """Its head gives one row for each image in eager mode and a flat vector when traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return out.flatten() if isinstance(x, torch.fx.Proxy) else out


def test_a_cut_with_logits_of_another_shape_is_refused() -> None:
    split = find_split(initialised(ShapelessNet(), 0), batches(models.SIZE))
    assert split is not None
    assert split.method == "injection"


class NoisyBatchNorm(nn.BatchNorm2d):
    """Somebody's own BatchNorm class, as robustness code has them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("layer", [NoisyBatchNorm, nn.BatchNorm2d])
def test_edits_reach_the_features_whatever_class_a_layer_has(layer: type[nn.Module]) -> None:
    suspect = suspect_of(initialised(models.ConvNet(layer), 0))
    assert suspect.split is not None
    assert suspect.split.method == "graph"
    edits = {"norm1": models.scaled(suspect, "norm1", 0.5)}
    batch = images(4)
    with suspect.borrowed(), torch.no_grad():
        plain = suspect.features(batch)
        with suspect.edited(edits):
            noisy, logits = suspect.features(batch), suspect.logits(batch)
            torch.testing.assert_close(suspect.head(noisy), logits)
        assert bool((noisy - plain).abs().max() > 1e-3)
