"""torchvision's ResNet, VGG, DenseNet and MobileNetV2, built by the library's own constructors.

Width, depth, groups, class count and the common edits for small images (a 3x3 stride-1 stem, no
stem pooling) are read off names and shapes; torchvision itself is imported when a module is built.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from modelaudit.architectures import _torchvision_build as tv
from modelaudit.architectures._heads import Head, read_head
from modelaudit.architectures._keys import (
    LARGE_INPUTS,
    MAX_INDEX,
    block_count,
    has_prefix,
    shape_of,
    small_inputs,
)
from modelaudit.architectures._ops import from_hint, square
from modelaudit.architectures.base import ArchitectureFamily, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from modelaudit.architectures.base import Argument
    from modelaudit.weights import ModuleHint, Weights

_STAGES = (1, 2, 3, 4)
#: stage lengths, bottleneck blocks, groups and width per group to the published name
_RESNETS: dict[tuple[tuple[int, ...], bool, int, int], str] = {
    ((2, 2, 2, 2), False, 1, 64): "resnet18",
    ((3, 4, 6, 3), False, 1, 64): "resnet34",
    ((3, 4, 6, 3), True, 1, 64): "resnet50",
    ((3, 4, 23, 3), True, 1, 64): "resnet101",
    ((3, 8, 36, 3), True, 1, 64): "resnet152",
    ((3, 4, 6, 3), True, 1, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 1, 128): "wide_resnet101_2",
    ((3, 4, 6, 3), True, 32, 4): "resnext50_32x4d",
    ((3, 4, 23, 3), True, 32, 8): "resnext101_32x8d",
    ((3, 4, 23, 3), True, 64, 4): "resnext101_64x4d",
}
#: stage lengths, growth rate and stem width to the published name
_DENSENETS: dict[tuple[tuple[int, ...], int, int], str] = {
    ((6, 12, 24, 16), 32, 64): "densenet121",
    ((6, 12, 36, 24), 48, 96): "densenet161",
    ((6, 12, 32, 32), 32, 64): "densenet169",
    ((6, 12, 48, 32), 32, 64): "densenet201",
}
#: number of convolutions to depth
_VGGS = {8: 11, 10: 13, 13: 16, 16: 19}
#: the stem of the library, and its two edits for small images, which key names cannot tell apart
_STEMS = {"": "library", "_small_stem": "small", "_small_stem_pool": "small_pool"}
_LARGE_STEM = 7
_RESNET_STEM_WIDTH = 64
#: pooled features of a VGG: 512 channels of 7x7
_VGG_FEATURES = 512 * 7 * 7
#: key form of DenseNet files older than torchvision 0.3: ``denselayer1.norm.1.weight``
_OLD_DENSE_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class TorchvisionFamily(ArchitectureFamily):
    """Recognises the networks of `torchvision.models` that backdoor studies use."""

    id: ClassVar[str] = "torchvision_models"
    summary: ClassVar[str] = (
        "torchvision's ResNet, VGG, DenseNet and MobileNetV2, also with a CIFAR stem"
    )
    reference: ClassVar[str] = "torchvision.models"

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield the library's form, or its edits for small images, as the stem allows."""
        if has_prefix(weights, "layer1"):
            yield from _resnets(weights)
        elif has_prefix(weights, "features.denseblock1"):
            yield from _densenets(weights)
        elif has_prefix(weights, "features.0.0"):
            yield from _mobilenets(weights)
        elif shape_of(weights, "features.0.weight", 4) is not None:
            yield from _vggs(weights)

    def names(self) -> Iterator[str]:
        """Yield the library's names after ``torchvision_``, with the suffixes of the stems."""
        with_stems = (
            *_RESNETS.values(),
            "resnet",
            *_DENSENETS.values(),
            "densenet",
            "mobilenet_v2",
        )
        for name in with_stems:
            yield from (f"torchvision_{name}{suffix}" for suffix in _STEMS)
        for depth in _VGGS.values():
            yield from (f"torchvision_vgg{depth}", f"torchvision_vgg{depth}_bn")


def _stem_suffixes(kernel: int, pool_hint: ModuleHint | None) -> tuple[str, ...]:
    if kernel == _LARGE_STEM:
        return ("",)
    pool = None if pool_hint is None else from_hint(pool_hint)
    if pool is None:
        return ("_small_stem", "_small_stem_pool")
    return ("_small_stem_pool",) if pool.is_pool else ("_small_stem",)


def _candidate(
    *,
    name: str,
    build: Callable[[], nn.Module],
    arguments: dict[str, Argument],
    inputs: tuple[int, int],
    input_sizes: tuple[int, ...],
    rename: Callable[[str], str] = str,
    notes: tuple[str, ...] = (),
) -> Candidate:
    num_classes, in_channels = inputs
    return Candidate(
        name=f"torchvision_{name}",
        family=TorchvisionFamily.id,
        arguments={**arguments, "num_classes": num_classes, "in_channels": in_channels},
        build=build,
        input_channels=in_channels,
        num_classes=num_classes,
        input_sizes=input_sizes,
        rename=rename,
        notes=notes,
    )


def _stem_note(suffix: str) -> tuple[str, ...]:
    return {
        "": (),
        "_small_stem": ("small stem: stride 1, stem pooling assumed removed",),
        "_small_stem_pool": ("small stem: stride 1, stem pooling assumed kept",),
    }[suffix]


def _stem_sizes(suffix: str, in_channels: int) -> tuple[int, ...]:
    return LARGE_INPUTS if not suffix else small_inputs(in_channels)


def _missing_head(*, is_bottleneck: bool) -> Head:
    """Return the published head, so that a refusal can name the missing key."""
    return Head(name="fc", indices=(), sizes=(2048 if is_bottleneck else 512, 1000), biases=(True,))


def _resnets(weights: Weights) -> Iterator[Candidate]:
    stem = shape_of(weights, "conv1.weight", 4)
    middle = shape_of(weights, "layer1.0.conv2.weight", 4)
    # asked before building, so that the library is not imported for the toolkits' own files
    if stem is None or middle is None or stem[0] != _RESNET_STEM_WIDTH:
        return
    if any(".shortcut." in key for key in weights.tensors):
        return
    blocks = tuple(block_count(weights, f"layer{stage}") for stage in _STAGES)
    is_bottleneck = has_prefix(weights, "layer1.0.conv3")
    head = read_head(weights, ("fc",)) or _missing_head(is_bottleneck=is_bottleneck)
    groups = max(middle[0] // middle[1], 1)
    width_per_group = middle[0] // groups if is_bottleneck else 64
    spec = tv.ResNetSpec(
        blocks=blocks,
        is_bottleneck=is_bottleneck,
        groups=groups if is_bottleneck else 1,
        width_per_group=width_per_group,
        in_channels=stem[1],
    )
    key = (blocks, is_bottleneck, spec.groups, width_per_group)
    name = _RESNETS.get(key, "resnet")
    arguments: dict[str, Argument] = {}
    if name == "resnet":
        arguments = {"blocks": blocks, "groups": spec.groups, "width_per_group": width_per_group}
    for suffix in _stem_suffixes(stem[2], weights.hints.get("maxpool")):
        yield _candidate(
            name=f"{name}{suffix}",
            build=tv.resnet(spec, head, _STEMS[suffix]),
            arguments=arguments,
            inputs=(head.num_classes, stem[1]),
            input_sizes=_stem_sizes(suffix, stem[1]),
            notes=_stem_note(suffix),
        )


def _vggs(weights: Weights) -> Iterator[Candidate]:
    shapes = [shape_of(weights, f"features.{i}.weight", 4) for i in range(MAX_INDEX)]
    convolutions = [shape for shape in shapes if shape is not None]
    head = read_head(weights, ("classifier",))
    if head is None or head.in_features != _VGG_FEATURES:
        return
    depth = _VGGS[min(_VGGS, key=lambda count: abs(count - len(convolutions)))]
    name = f"vgg{depth}{'_bn' if has_prefix(weights, 'features.1') else ''}"
    in_channels = convolutions[0][1]
    yield _candidate(
        name=name,
        build=tv.vgg(name, head, in_channels),
        arguments={},
        inputs=(head.num_classes, in_channels),
        input_sizes=(224, 32, 64),
    )


def _new_dense_key(key: str) -> str:
    return _OLD_DENSE_KEY.sub(r"\1\2", key)


def _densenets(weights: Weights) -> Iterator[Candidate]:
    by_key = {_new_dense_key(key): tensor for key, tensor in weights.tensors.items()}
    stem = shape_of(weights, "features.conv0.weight", 4)
    first = "features.denseblock1.denselayer1"
    head = read_head(weights, ("classifier",))
    narrow, wide = by_key.get(f"{first}.conv2.weight"), by_key.get(f"{first}.conv1.weight")
    if stem is None or narrow is None or wide is None or head is None:
        return
    blocks = tuple(_dense_layers(weights, f"features.denseblock{stage}") for stage in _STAGES)
    growth_rate = int(narrow.shape[0])
    name = _DENSENETS.get((blocks, growth_rate, stem[0]), "densenet")
    spec = tv.DenseNetSpec(
        blocks=blocks,
        growth_rate=growth_rate,
        stem_width=stem[0],
        bottleneck=max(int(wide.shape[0]) // growth_rate, 1),
        in_channels=stem[1],
    )
    arguments: dict[str, Argument] = {}
    if name == "densenet":
        arguments = {"blocks": blocks, "growth_rate": growth_rate}
    for suffix in _stem_suffixes(stem[2], weights.hints.get("features.pool0")):
        yield _candidate(
            name=f"{name}{suffix}",
            build=tv.densenet(spec, head, _STEMS[suffix]),
            arguments=arguments,
            inputs=(head.num_classes, stem[1]),
            input_sizes=_stem_sizes(suffix, stem[1]),
            rename=_new_dense_key,
            notes=_stem_note(suffix),
        )


def _dense_layers(weights: Weights, block: str) -> int:
    count = 0
    while count < MAX_INDEX and has_prefix(weights, f"{block}.denselayer{count + 1}"):
        count += 1
    return count


def _mobilenets(weights: Weights) -> Iterator[Candidate]:
    stem = shape_of(weights, "features.0.0.weight", 4)
    last = shape_of(weights, "features.18.0.weight", 4)
    block = shape_of(weights, "features.17.conv.2.weight", 4)
    head = read_head(weights, ("classifier",))
    if stem is None or last is None or block is None or head is None:
        return
    multiplier = tv.width_multiplier(stem[0], block[0], last[0])
    arguments: dict[str, Argument] = {} if multiplier == 1 else {"width_mult": multiplier}
    hint = weights.hints.get("features.0.0")
    stride = None if hint is None else square(hint.attributes.get("stride"), low=1, high=2)
    suffixes = {None: ("", "_small_stem"), 1: ("_small_stem",), 2: ("",)}[stride]
    for suffix in suffixes:
        yield _candidate(
            name=f"mobilenet_v2{suffix}",
            build=tv.mobilenet_v2(multiplier, head, stem[1], _STEMS[suffix]),
            arguments=arguments,
            inputs=(head.num_classes, stem[1]),
            input_sizes=_stem_sizes(suffix, stem[1]),
            notes=(f"stem stride assumed {2 if not suffix else 1}",),
        )
