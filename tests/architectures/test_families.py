from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from modelaudit.architectures import identify, load
from modelaudit.architectures._heads import Head
from modelaudit.architectures.cifar_densenet import CifarDenseNet
from modelaudit.architectures.cifar_mobilenet_v2 import CifarMobileNetV2
from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNet
from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.architectures.cifar_vgg import CifarVgg
from modelaudit.architectures.wide_resnet import WideResNet
from modelaudit.errors import UnknownArchitectureError
from modelaudit.weights import Weights
from tests.helpers.architectures import (
    agrees,
    families,
    identify_all,
    images,
    logits,
    seeded,
    weights_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NARROW_MOBILENET = tuple(
    (expansion, max(8, width // 4), stride)
    for expansion, width, stride in (
        (1, 16, 1),
        *((6, 24, 1),) * 2,
        (6, 32, 2),
        *((6, 32, 1),) * 2,
        (6, 64, 2),
        *((6, 64, 1),) * 3,
        *((6, 96, 1),) * 3,
        (6, 160, 2),
        *((6, 160, 1),) * 2,
        (6, 320, 1),
    )
)

CASES: list[tuple[str, Callable[[], nn.Module]]] = [
    *(
        (f"cifar_resnet{d}", lambda d=d, w=w: CifarResNet(depth=d, width=w, num_classes=7))
        for d, w in ((18, 4), (18, 16), (34, 4), (50, 4), (101, 2), (152, 2))
    ),
    ("cifar_resnet18", lambda: CifarResNet(width=4, in_channels=1)),
    ("cifar_resnet18", lambda: CifarResNet(width=4, stage_widths=(4, 8, 12, 16))),
    ("cifar_resnet50", lambda: CifarResNet(depth=50, width=8, stage_widths=(4, 8, 12, 16))),
    ("cifar_resnet18", lambda: CifarResNet(width=4, stem_kernel=7)),
    *(
        (f"cifar_preact_resnet{d}", lambda d=d: CifarPreActResNet(depth=d, width=4))
        for d in (18, 34, 50)
    ),
    ("cifar_preact_resnet18", lambda: CifarPreActResNet(width=4, stage_widths=(4, 8, 12, 16))),
    (
        "cifar_preact_resnet18_final_bn",
        lambda: CifarPreActResNet(width=4, has_final_norm=True, in_channels=1),
    ),
    *(
        (f"cifar_vgg{d}{'_bn' if bn else ''}", lambda d=d, bn=bn: _vgg(d, has_batchnorm=bn))
        for d in (11, 13, 16, 19)
        for bn in (False, True)
    ),
    ("cifar_densenet121", lambda: CifarDenseNet(growth_rate=4)),
    ("cifar_densenet169", lambda: CifarDenseNet(growth_rate=2, blocks=(6, 12, 32, 32))),
    (
        "cifar_densenet",
        lambda: CifarDenseNet(
            growth_rate=6,
            blocks=(2, 3, 2, 1),
            stem_width=10,
            transitions=(9, 11, 8),
            bottleneck=12,
            in_channels=1,
        ),
    ),
    ("cifar_mobilenet_v2", lambda: CifarMobileNetV2(num_classes=43)),
    (
        "cifar_mobilenet_v2",
        lambda: CifarMobileNetV2(plan=NARROW_MOBILENET, stem_width=8, last_width=64),
    ),
    ("cifar_mobilenet_v2", lambda: CifarMobileNetV2(plan=((2, 8, 1), (2, 8, 1)), last_width=16)),
    ("wide_resnet", lambda: WideResNet(depth=16, widths=(16, 32, 64))),
    ("wide_resnet", lambda: WideResNet(depth=28, widths=(16, 32, 64), in_channels=1)),
    ("wide_resnet", lambda: WideResNet(depth=10, widths=(32, 64, 128), stem_width=8)),
]


def _vgg(depth: int, *, has_batchnorm: bool) -> nn.Module:
    return CifarVgg(depth=depth, width=4, num_classes=5, has_batchnorm=has_batchnorm)


def _in_channels(module: nn.Module) -> int:
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    return first.in_channels


@pytest.mark.parametrize(("name", "build"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_every_family_member_is_identified_and_computes_the_same_logits(
    name: str, build: Callable[[], nn.Module]
) -> None:
    module = seeded(build)
    weights = weights_of(module)
    candidate = identify_all(weights)[0]
    batch = images((1, _in_channels(module), 32, 32))
    assert candidate.name == name
    assert candidate.input_channels == _in_channels(module)
    assert candidate.num_classes == logits(module, batch).shape[1]
    assert agrees(candidate, weights, module, batch)
    torch.testing.assert_close(logits(load(candidate, weights), batch), logits(module, batch))


def test_every_candidate_name_is_one_that_its_family_announces() -> None:
    announced = {known for family in families() for known in family.names()}
    for _, build in CASES[::4]:
        for candidate in identify_all(weights_of(build())):
            assert candidate.name in announced


def test_family_ids_are_the_entry_points_names() -> None:
    assert [family.id for family in families()] == [
        "cifar_densenet",
        "cifar_mobilenet_v2",
        "cifar_preact_resnet",
        "cifar_resnet",
        "cifar_vgg",
        "plain_sequence",
        "torchvision_models",
        "wide_resnet",
    ]
    assert all(family.summary and family.reference for family in families())


def test_arguments_say_what_was_read_off_the_shapes() -> None:
    module = CifarResNet(depth=34, width=8, num_classes=43, in_channels=1)
    candidate = identify_all(weights_of(module))[0]
    assert candidate.arguments == {
        "depth": 34,
        "width": 8,
        "num_classes": 43,
        "in_channels": 1,
    }
    assert candidate.family == "cifar_resnet"
    assert candidate.input_sizes[0] == 28


def test_a_7x7_stem_asks_for_large_images_and_says_what_it_assumes() -> None:
    candidate = identify_all(weights_of(CifarResNet(width=4, stem_kernel=7)))[0]
    assert candidate.input_sizes[0] == 224
    assert "max pooling" in candidate.notes[0]
    assert identify_all(weights_of(CifarResNet(width=4)))[0].input_sizes[0] == 32


@pytest.mark.parametrize(
    "renamed",
    [
        {"linear.": "fc."},
        {"linear.": "classifier."},
        {".shortcut.": ".downsample."},
        {".shortcut.": ".downsample.", "linear.": "fc."},
    ],
)
def test_other_names_of_the_resnet_head_and_projection_are_read_by_renaming(
    renamed: dict[str, str],
) -> None:
    module = seeded(lambda: CifarResNet(width=4))
    weights = weights_of(module, renamed=renamed)
    (candidate,) = identify_all(weights)
    assert candidate.name == "cifar_resnet18"
    assert agrees(candidate, weights, module, images((2, 3, 32, 32)))


@pytest.mark.parametrize(
    ("build", "renamed"),
    [
        (lambda: CifarPreActResNet(width=4), {"linear.": "fc."}),
        (lambda: CifarVgg(depth=11, width=4), {"classifier.": "linear."}),
        (lambda: CifarDenseNet(growth_rate=2, blocks=(1, 1, 1, 1)), {"linear.": "fc."}),
        (lambda: CifarMobileNetV2(plan=((2, 8, 1), (2, 12, 2))), {"linear.": "classifier."}),
        (lambda: WideResNet(depth=10, widths=(4, 8, 16)), {"fc.": "linear."}),
    ],
)
def test_other_names_of_the_other_heads_are_read_by_renaming(
    build: Callable[[], nn.Module], renamed: dict[str, str]
) -> None:
    module = seeded(build)
    weights = weights_of(module, renamed=renamed)
    assert agrees(identify_all(weights)[0], weights, module, images((2, 3, 32, 32)))


def test_a_final_relu_that_no_toolkit_has_is_offered_only_by_name() -> None:
    module = seeded(lambda: CifarPreActResNet(width=4))
    with_relu = seeded(lambda: CifarPreActResNet(width=4, has_final_relu=True))
    weights = weights_of(module)
    batch = images((2, 3, 32, 32))
    (usual,) = identify_all(weights)
    (same,) = identify_all(weights, "cifar_preact_resnet")
    (other,) = identify_all(weights, "cifar_preact_resnet18_final_relu")
    assert usual.name == same.name == "cifar_preact_resnet18"
    assert agrees(usual, weights, module, batch)
    assert not agrees(other, weights, module, batch)
    assert agrees(other, weights, with_relu, batch)
    assert "unlike the toolkits" in other.notes[0]


class MlpHeadVgg(nn.Module):
    """VGG-11 with dropout and three linear layers, numbered as one of the toolkits numbers them."""

    def __init__(self, inputs: int = 32) -> None:
        super().__init__()
        self.features = CifarVgg(depth=11, width=4).features
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(inputs, 24),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(24, 16),
            nn.ReLU(),
            nn.Linear(16, 6),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.classifier(self.features(x).flatten(1))
        assert isinstance(out, torch.Tensor)
        return out


def test_a_vgg_with_a_head_of_several_layers_is_identified() -> None:
    module = seeded(MlpHeadVgg)
    weights = weights_of(module)
    (candidate,) = identify_all(weights)
    assert candidate.name == "cifar_vgg11_bn"
    assert candidate.arguments["hidden"] == (24, 16)
    assert agrees(candidate, weights, module, images((2, 3, 32, 32)))


def test_the_inputs_of_a_vgg_head_tell_the_image_size() -> None:
    module = seeded(lambda: MlpHeadVgg(inputs=32 * 2 * 2))
    weights = weights_of(module)
    (candidate,) = identify_all(weights)
    assert candidate.input_sizes[0] == 64
    assert candidate.arguments["pool_size"] == 2
    assert agrees(candidate, weights, module, images((2, 3, 64, 64)))


@pytest.mark.parametrize("missing", ["layers.0.conv3.weight", "conv2.weight"])
def test_an_incomplete_mobilenet_is_refused(missing: str) -> None:
    tensors = dict(CifarMobileNetV2(plan=((2, 8, 1),)).state_dict())
    del tensors[missing]
    with pytest.raises(UnknownArchitectureError):
        identify_all(Weights(tensors=tensors))


def test_adjacent_linear_layers_of_a_head_have_no_relu_between() -> None:
    head = Head(
        name="classifier", indices=(0, 1, 3), sizes=(4, 5, 6, 7), biases=(True, False, True)
    )
    module = head.build()
    assert [type(part) for part in module.children()] == [
        nn.Linear,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert head.hidden == (5, 6)


def test_a_hinted_stride_and_eps_change_the_built_module() -> None:
    module = seeded(lambda: CifarResNet(width=4))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-3
    stem = module.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (2, 2)
    batch = images((2, 3, 32, 32))
    plain, hinted = weights_of(module), weights_of(module, with_hints=True)
    assert not agrees(identify_all(plain)[0], plain, module, batch)
    (candidate,) = identify(hinted, families=families())
    assert agrees(candidate, hinted, module, batch)
    assert "as pickled" in candidate.notes[-1]
