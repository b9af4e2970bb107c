from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.architectures._torchvision_build import width_multiplier
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.errors import PluginError, UnknownArchitectureError
from modelaudit.weights import Weights
from tests.helpers.architectures import agrees, identify_all, images, seeded, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable


def _tv(name: str, **arguments: object) -> nn.Module:
    import torchvision.models

    module = torchvision.models.get_model(name, weights=None, **arguments)
    assert isinstance(module, nn.Module)
    return module


def _vgg(name: str) -> nn.Module:
    """Return a VGG whose head has the library's layout and narrow layers, to save time."""
    with torch.device("meta"):
        module = _tv(name, num_classes=6, init_weights=False)
        module.classifier = None
    module = module.to_empty(device="cpu")
    module.classifier = nn.Sequential(
        nn.Linear(25088, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 6),
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    return module


def _small_stem(name: str, *, has_pool: bool, in_channels: int = 3) -> nn.Module:
    module = _tv(name, num_classes=6)
    module.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    if not has_pool:
        module.maxpool = nn.Identity()
    return module


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg11",
        "mobilenet_v2",
    ],
)
def test_torchvision_models_are_identified_and_compute_the_same_logits(name: str) -> None:
    module = seeded(lambda: _vgg(name) if name.startswith("vgg") else _tv(name, num_classes=6))
    weights = weights_of(module)
    candidate = identify_all(weights)[0]
    assert candidate.name == f"torchvision_{name}"
    assert candidate.num_classes == 6
    assert candidate.input_sizes[0] == 224
    assert agrees(candidate, weights, module, images((1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("has_pool", "suffix"), [(False, "_small_stem"), (True, "_small_stem_pool")]
)
def test_a_cifar_stem_is_two_candidates_of_which_one_computes_the_same(
    has_pool: bool, suffix: str
) -> None:
    module = seeded(lambda: _small_stem("resnet18", has_pool=has_pool))
    weights = weights_of(module)
    candidates = identify_all(weights)
    assert [c.name.removeprefix("torchvision_resnet18") for c in candidates] == [
        "_small_stem",
        "_small_stem_pool",
    ]
    batch = images((1, 3, 32, 32))
    right = [c.name for c in candidates if agrees(c, weights, module, batch)]
    assert right == [f"torchvision_resnet18{suffix}"]
    assert candidates[0].input_sizes[0] == 32


@pytest.mark.parametrize("has_pool", [False, True])
def test_a_pickled_stem_pool_decides_between_the_stems(has_pool: bool) -> None:
    module = seeded(lambda: _small_stem("resnet18", has_pool=has_pool, in_channels=1))
    weights = weights_of(module, with_hints=True)
    (candidate,) = identify_all(weights)
    assert candidate.input_channels == 1
    assert agrees(candidate, weights, module, images((2, 1, 32, 32)))


def test_a_pickled_maxpool_that_was_removed_behind_a_large_stem_is_removed() -> None:
    def build() -> nn.Module:
        module = _tv("resnet18", num_classes=6)
        module.maxpool = nn.Identity()
        return module

    module = seeded(build)
    weights = weights_of(module, with_hints=True)
    (candidate,) = identify_all(weights)
    assert "maxpool" in candidate.notes[-1]
    assert agrees(candidate, weights, module, images((1, 3, 64, 64)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_pickled_stem_stride_decides_for_mobilenet(stride: int) -> None:
    def build() -> nn.Module:
        module = _tv("mobilenet_v2", num_classes=6, width_mult=0.5)
        stem = module.get_submodule("features.0")
        assert isinstance(stem, nn.Sequential)
        stem[0] = nn.Conv2d(3, 16, 3, stride=stride, padding=1, bias=False)
        return module

    module = seeded(build)
    unsaid, said = weights_of(module), weights_of(module, with_hints=True)
    assert len(identify_all(unsaid)) == 2
    (candidate,) = identify_all(said)
    assert candidate.arguments["width_mult"] == 0.5
    assert agrees(candidate, said, module, images((2, 3, 32, 32)))


def test_densenet_with_a_small_stem_and_its_old_key_names_is_identified() -> None:
    def build() -> nn.Module:
        import torchvision.models.densenet

        module: nn.Module = torchvision.models.densenet.DenseNet(
            growth_rate=4, block_config=(2, 2, 2, 2), num_init_features=8, num_classes=6
        )
        features = module.get_submodule("features")
        features.conv0 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        features.pool0 = nn.Identity()
        return module

    module = seeded(build)
    old = {f".{layer}{i}.": f".{layer}.{i}." for layer in ("norm", "conv") for i in (1, 2)}
    weights = weights_of(module, renamed=old)
    assert "features.denseblock1.denselayer1.norm.1.weight" in weights.tensors
    candidates = identify_all(weights)
    assert [c.name for c in candidates] == [
        "torchvision_densenet_small_stem",
        "torchvision_densenet_small_stem_pool",
    ]
    assert agrees(candidates[0], weights, module, images((2, 3, 32, 32)))


def test_another_head_of_several_layers_is_identified() -> None:
    def build() -> nn.Module:
        module = _tv("resnet18")
        module.fc = nn.Sequential(nn.Dropout(), nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 6))
        return module

    module = seeded(build)
    weights = weights_of(module)
    (candidate,) = identify_all(weights)
    assert candidate.num_classes == 6
    assert agrees(candidate, weights, module, images((1, 3, 64, 64)))


def test_unpublished_lengths_are_a_resnet_with_arguments() -> None:
    import torchvision.models.resnet as library

    module = seeded(lambda: library.ResNet(library.BasicBlock, [1, 1, 1, 1], num_classes=6))
    weights = weights_of(module)
    (candidate,) = identify_all(weights)
    assert candidate.name == "torchvision_resnet"
    assert candidate.arguments["blocks"] == (1, 1, 1, 1)
    assert agrees(candidate, weights, module, images((1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("stem", "block", "last", "multiplier"),
    [(32, 320, 1280, 1.0), (16, 160, 1280, 0.5), (48, 448, 1792, 1.4), (8, 32, 1280, 0.1)],
)
def test_the_width_multiplier_is_read_off_three_channels(
    stem: int, block: int, last: int, multiplier: float
) -> None:
    assert width_multiplier(stem, block, last) == multiplier


@pytest.mark.parametrize(
    "build",
    [lambda: CifarResNet(width=64, depth=18), lambda: CifarVgg(depth=11, width=64)],
)
def test_the_toolkits_own_files_never_import_torchvision(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert identify_all(weights_of(build()))


def test_a_missing_torchvision_is_one_clear_plugin_error(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(_tv("resnet18", num_classes=6))
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(PluginError, match=r"torchvision cannot be imported .*; install the"):
        identify_all(weights)


@pytest.mark.parametrize(
    "missing",
    ["fc.", "conv1.", "layer1.0.conv2."],
)
def test_an_incomplete_torchvision_resnet_is_refused(missing: str) -> None:
    tensors = {
        key: tensor
        for key, tensor in weights_of(_tv("resnet18")).tensors.items()
        if not key.startswith(missing)
    }
    with pytest.raises(UnknownArchitectureError) as caught:
        identify_all(Weights(tensors=tensors))
    assert caught.value.closest


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "vgg11"])
def test_incomplete_torchvision_models_without_a_head_are_refused(name: str) -> None:
    with torch.device("meta"):
        module = _tv(name)
    tensors = {
        key: tensor
        for key, tensor in weights_of(module).tensors.items()
        if not key.startswith("classifier.")
    }
    with pytest.raises(UnknownArchitectureError):
        identify_all(Weights(tensors=tensors))


@pytest.mark.parametrize(
    "name",
    [
        "vgg13_bn",
        "vgg16",
        "vgg19",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "vgg11_bn",
        "densenet121",
    ],
)
def test_the_librarys_full_size_is_identified_by_shapes_alone(name: str) -> None:
    with torch.device("meta"):
        module = _tv(name)
    (candidate,) = identify_all(weights_of(module))
    assert candidate.name == f"torchvision_{name}"
    assert candidate.num_classes == 1000
