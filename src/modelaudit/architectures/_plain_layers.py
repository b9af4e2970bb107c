"""A plain network's layers, in the order in which they run, as far as a file's keys tell.

Order: numbered children by number, others as they stand in the file; where that order does not
chain (the file's keys were sorted by name), convolutions come before linear layers, and each
normalisation after the layer that bears its number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from modelaudit.architectures._ops import is_sequential

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelaudit.weights import ModuleHint, Weights

Kind = Literal["conv", "linear", "norm", "prelu"]

_PARTS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
_NUMBER = re.compile(r"(\d+)")
#: more weighted layers than this are no plain sequence
_MAX_LAYERS = 128
_MAX_DIGITS = 9
_CONV_DIMS, _LINEAR_DIMS = 4, 2
_IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer with weights.

    Attributes:
        path: module path in the file.
        kind: what the shapes make it.
        shape: the weight's shape; ``(C,)`` for a normalisation and a PReLU.
        has_bias: whether it has a bias.
        has_affine: whether a normalisation has a weight.
        has_running: whether a normalisation has running statistics.
        groups: a convolution's groups; known once the order is.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    has_bias: bool = False
    has_affine: bool = False
    has_running: bool = False
    groups: int = 1

    @property
    def container(self) -> str:
        """Path of the module that holds it."""
        return self.path.rpartition(".")[0]

    @property
    def index(self) -> int | None:
        """Its number in its container, or None where it has a name."""
        return number(self.path.rpartition(".")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Layers whose channels follow from each other.

    Attributes:
        layers: in running order, the convolutions' groups filled in.
        in_channels: channels of the first convolution; 0 where the first layer is linear.
        num_classes: outputs K.
        side: side, in pixels, of the maps that the first linear layer takes after a convolution;
            None where there is no such layer.
    """

    layers: tuple[Layer, ...]
    in_channels: int
    num_classes: int
    side: int | None


def number(name: str) -> int | None:
    """Return the number that a name is, or None; absurdly long ones are names."""
    return int(name) if name.isdecimal() and len(name) <= _MAX_DIGITS else None


def _layer(path: str, parts: dict[str, tuple[int, ...]]) -> Layer | None:
    weight = parts.get("weight")
    if weight is None:
        mean = parts.get("running_mean")
        return None if mean is None else Layer(path=path, kind="norm", shape=mean, has_running=True)
    has_bias = "bias" in parts
    if len(weight) == _CONV_DIMS and weight[2] == weight[3]:
        return Layer(path=path, kind="conv", shape=weight, has_bias=has_bias)
    if len(weight) == _LINEAR_DIMS:
        return Layer(path=path, kind="linear", shape=weight, has_bias=has_bias)
    if len(weight) != 1:
        return None
    if not has_bias:
        return Layer(path=path, kind="prelu", shape=weight)
    has_running = "running_mean" in parts
    return Layer(
        path=path,
        kind="norm",
        shape=weight,
        has_bias=True,
        has_affine=True,
        has_running=has_running,
    )


def read_layers(weights: Weights) -> list[Layer] | None:
    """Return the layers in file order, or None where a key belongs to none that we know."""
    by_path: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in weights.tensors.items():
        path, _, part = key.rpartition(".")
        if part not in _PARTS or not path:
            return None
        by_path.setdefault(path, {})[part] = tuple(tensor.shape)
    if len(by_path) > _MAX_LAYERS:
        return None
    layers = [_layer(path, parts) for path, parts in by_path.items()]
    known = [layer for layer in layers if layer is not None]
    return known if len(known) == len(layers) else None


def _numbered(layers: Sequence[Layer]) -> list[Layer]:
    """Sort numbered siblings by number, at every level; leave named ones as they stand."""
    place: dict[tuple[str, str], int] = {}
    for layer in layers:
        names = layer.path.split(".")
        for depth, name in enumerate(names):
            place.setdefault((".".join(names[:depth]), name), len(place))

    def key(layer: Layer) -> list[tuple[int, int]]:
        names = layer.path.split(".")
        numbers = [
            (number(name), ".".join(names[:depth]), name) for depth, name in enumerate(names)
        ]
        return [(1, place[at, name]) if n is None else (0, n) for n, at, name in numbers]

    return sorted(layers, key=key)


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = [(number(part), part) for part in _NUMBER.split(path) if part]
    return [(1, 0, part) if n is None else (0, n, "") for n, part in parts]


def _numbers(path: str) -> tuple[str, ...]:
    return tuple(_NUMBER.findall(path))


def _by_role(layers: Sequence[Layer]) -> list[Layer]:
    """Order convolutions, then linear layers; norms and PReLUs after the layer of their number."""
    ordered = sorted(layers, key=lambda layer: _natural(layer.path))
    spine = [layer for layer in ordered if layer.kind == "conv"]
    spine += [layer for layer in ordered if layer.kind == "linear"]
    followers: dict[str, list[Layer]] = {layer.path: [] for layer in spine}
    for layer in ordered:
        if layer.kind in {"conv", "linear"}:
            continue
        same_size = [host for host in spine if host.shape[0] == layer.shape[0]]
        same_number = [host for host in same_size if _numbers(host.path) == _numbers(layer.path)]
        free = [host for host in same_size if not followers[host.path]]
        for hosts in (same_number, free):
            if hosts:
                followers[hosts[0].path].append(layer)
                break
    return [part for host in spine for part in (host, *followers[host.path])]


def _containers_by_role(layers: Sequence[Layer]) -> list[Layer]:
    """Put the containers with convolutions first; a sorted file has ``classifier`` first."""
    spatial = {layer.path.split(".")[0] for layer in layers if layer.kind == "conv"}
    return sorted(layers, key=lambda layer: layer.path.split(".")[0] not in spatial)


def _groups(layer: Layer, channels: int) -> int | None:
    """Return the groups with which a convolution takes `channels`: 1, or one per channel."""
    out_channels, inner = layer.shape[:2]
    if inner == channels:
        return 1
    return channels if inner == 1 and out_channels % channels == 0 else None


def _chain(layers: Sequence[Layer]) -> Chain | None:
    """Follow the channels through; None where a layer does not take what the one before gives."""
    if not layers or layers[0].kind not in {"conv", "linear"} or not _is_classifier(layers[-1]):
        return None
    first = layers[0]
    is_conv = first.kind == "conv"
    if is_conv and first.shape[1] not in _IMAGE_CHANNELS:
        return None
    channels, side, is_flat = first.shape[1], None, not is_conv
    done: list[Layer] = []
    for layer in layers:
        if layer.kind == "conv":
            groups = None if is_flat else _groups(layer, channels)
            if groups is None:
                return None
            layer = _with_groups(layer, groups)
            channels = layer.shape[0]
        elif layer.kind == "linear":
            maps = layer.shape[1] // channels
            if not is_flat:
                side, is_flat = math.isqrt(maps), True
                channels *= side * side
            if layer.shape[1] != channels:
                return None
            channels = layer.shape[0]
        elif layer.shape[0] != channels and not (layer.kind == "prelu" and layer.shape[0] == 1):
            return None
        done.append(layer)
    return Chain(
        layers=tuple(done),
        in_channels=first.shape[1] if is_conv else 0,
        num_classes=channels,
        side=side,
    )


def _is_classifier(layer: Layer) -> bool:
    """Return whether a layer can give logits; a larger convolution at the end is a lost head."""
    return layer.kind == "linear" or (layer.kind == "conv" and layer.shape[2] == 1)


def _with_groups(layer: Layer, groups: int) -> Layer:
    return Layer(
        path=layer.path,
        kind=layer.kind,
        shape=layer.shape,
        has_bias=layer.has_bias,
        groups=groups,
    )


def _orders(layers: Sequence[Layer], *, is_sorted: bool) -> Iterator[list[Layer]]:
    """Yield the orders to try; in a file sorted by name, the order of the names means nothing."""
    if not is_sorted:
        numbered = _numbered(layers)
        yield from (numbered, _containers_by_role(numbered), _by_role(layers))
        return
    numbered = _numbered(sorted(layers, key=lambda layer: _natural(layer.path)))
    by_number = [numbered, _containers_by_role(numbered)]
    has_names = any(layer.index is None for layer in layers)
    yield from [_by_role(layers), *by_number] if has_names else [*by_number, _by_role(layers)]


def _is_shallow(layers: Sequence[Layer], hints: Mapping[str, ModuleHint]) -> bool:
    """Return whether the layers sit in at most one container each, below what holds them all.

    Layers deeper down belong to blocks, which as a rule have shortcuts that leave no key; only a
    pickled module can say that they are plain sequences.
    """
    containers = [layer.container.split(".") if layer.container else [] for layer in layers]
    levels = takewhile(lambda names: len(set(names)) == 1, zip(*containers, strict=False))
    shared = sum(1 for _ in levels)
    deep = {
        ".".join(names[: depth + 1])
        for names in containers
        for depth in range(shared + 1, len(names))
    }
    return all(path in hints and is_sequential(hints[path]) for path in deep)


def read_chain(weights: Weights) -> Chain | None:
    """Return the layers in the first order that chains, or None where none does."""
    layers = read_layers(weights)
    if layers is None or not _is_shallow(layers, weights.hints):
        return None
    keys = [key for key in weights.tensors if key.endswith(".weight")]
    for order in _orders(layers, is_sorted=keys == sorted(keys)):
        chain = _chain(order) if len(order) == len(layers) else None
        if chain is not None:
            return chain
    return None
