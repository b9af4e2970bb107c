"""Plain sequences: convolutions, normalisations, poolings and linear layers, one after the other.

No published layout is assumed. The keys give the layers and their order; what leaves no key
(activation, pooling, padding, stride) is inferred by rules, or taken from the attributes of a
pickled module, and every reading that ends at the first linear layer's inputs is a candidate. The
clean set decides among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from modelaudit.architectures._hints import eps_of
from modelaudit.architectures._ops import Op, short_name
from modelaudit.architectures._plain_layers import read_chain
from modelaudit.architectures._plain_search import (
    MAX_CANDIDATES,
    Convolution,
    Structure,
    replace_act,
    structures,
)
from modelaudit.architectures._plain_slots import FLATTEN, HintTree, read_slots
from modelaudit.architectures.base import ArchitectureFamily, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from modelaudit.architectures._plain_layers import Chain, Layer
    from modelaudit.architectures._plain_search import Part
    from modelaudit.weights import ModuleHint, Weights

#: activations to try where nothing names one, with their cost
_ACTS = ((0.0, Op("ReLU")), (4.0, Op("Tanh")))
#: GroupNorm's groups by how usual they are; the other divisors up to `_MAX_GROUPS` follow
_USUAL_GROUPS = (32, 8, 16, 4, 2, 1)
_MAX_GROUPS = 32
#: stands for batch statistics where a normalisation has no running ones
_BATCH = 0
_GROUP_COST = 0.1
_IMAGE_CHANNELS = (1, 3)


class PlainSequence(nn.Module):
    """Runs its parts one after the other, each registered at a dotted path.

    Args:
        steps: dotted path and module, in running order.
    """

    def __init__(self, steps: Sequence[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.order = tuple(path for path, _ in steps)
        for path, module in steps:
            parent: nn.Module = self
            *containers, name = path.split(".")
            for container in containers:
                if container not in parent._modules:
                    parent.add_module(container, nn.Module())
                parent = parent.get_submodule(container)
            parent.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, K)``."""
        for path in self.order:
            x = self.get_submodule(path)(x)
        return x


@dataclass(frozen=True, slots=True)
class _Norms:
    """How normalisations without running statistics work: groups, or `_BATCH`, and the cost."""

    cost: float
    groups: int


def _norm_styles(chain: Chain, hints: Mapping[str, ModuleHint]) -> tuple[_Norms, ...]:
    unknown = [
        layer
        for layer in chain.layers
        if layer.kind == "norm" and not layer.has_running and _hinted_groups(layer, hints) is None
    ]
    if not unknown:
        return (_Norms(0.0, _BATCH),)
    rest = tuple(g for g in range(_MAX_GROUPS, 0, -1) if g not in _USUAL_GROUPS)
    allowed = [
        groups
        for groups in (*_USUAL_GROUPS, _BATCH, *rest)
        if groups == _BATCH or all(layer.shape[0] % groups == 0 for layer in unknown)
    ]
    return tuple(_Norms(_GROUP_COST * i, groups) for i, groups in enumerate(allowed))


def _hinted_groups(layer: Layer, hints: Mapping[str, ModuleHint]) -> int | None:
    """Return the groups that a pickled norm had, `_BATCH` for batch statistics, None if unsaid."""
    hint = hints.get(layer.path)
    if hint is None:
        return None
    kind, channels = short_name(hint.class_name), layer.shape[0]
    if kind == "GroupNorm":
        groups = hint.attributes.get("num_groups")
        is_possible = isinstance(groups, int) and 0 < groups <= channels and channels % groups == 0
        return int(groups) if is_possible and isinstance(groups, int) else None
    known = {
        "InstanceNorm2d": channels,
        "LayerNorm": 1,
        "BatchNorm1d": _BATCH,
        "BatchNorm2d": _BATCH,
    }
    return known.get(kind or "")


def _norm(layer: Layer, hint: ModuleHint | None, groups: int, *, is_flat: bool) -> nn.Module:
    eps = (None if hint is None else eps_of(hint)) or 1e-5
    channels = layer.shape[0]
    if not layer.has_running and groups != _BATCH:
        return nn.GroupNorm(groups, channels, eps=eps)
    make = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
    return make(channels, eps=eps, affine=layer.has_affine, track_running_stats=layer.has_running)


def _module(
    layer: Layer,
    geometry: Convolution | None,
    hints: Mapping[str, ModuleHint],
    norms: _Norms,
    *,
    is_flat: bool,
) -> nn.Module:
    if geometry is not None:
        out_channels, inner, kernel = layer.shape[:3]
        return nn.Conv2d(
            inner * layer.groups,
            out_channels,
            kernel,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            groups=layer.groups,
            bias=layer.has_bias,
            padding_mode=geometry.padding_mode,
        )
    if layer.kind == "linear":
        return nn.Linear(layer.shape[1], layer.shape[0], bias=layer.has_bias)
    if layer.kind == "prelu":
        return nn.PReLU(layer.shape[0])
    hinted = _hinted_groups(layer, hints)
    groups = norms.groups if hinted is None else hinted
    return _norm(layer, hints.get(layer.path), groups, is_flat=is_flat)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One complete reading of the file."""

    chain: Chain
    fillings: tuple[tuple[Part, ...], ...]
    norms: _Norms
    hints: Mapping[str, ModuleHint]

    def build(self) -> nn.Module:
        """Return the network with its own random weights."""
        steps: list[tuple[str, nn.Module]] = []
        is_flat = self.chain.layers[0].kind == "linear"
        if is_flat:
            steps.append(("op_0", nn.Flatten()))
        for layer, parts in zip(self.chain.layers, self.fillings, strict=True):
            geometry = next((part for part in parts if isinstance(part, Convolution)), None)
            module = _module(layer, geometry, self.hints, self.norms, is_flat=is_flat)
            steps.append((layer.path, module))
            for part in parts:
                if isinstance(part, Op):
                    steps.append((f"op_{len(steps)}", part.build()))
                    is_flat = is_flat or part == FLATTEN
        return PlainSequence(steps)

    @property
    def layout(self) -> str:
        """The layers in words, for reports and to tell readings apart."""
        words: list[str] = []
        for layer, parts in zip(self.chain.layers, self.fillings, strict=True):
            if layer.kind != "conv":
                words.append(layer.kind)
            words.extend(str(part) for part in parts if part != Op("Identity"))
        if self.norms.cost or self.norms.groups:
            words.append(f"groups{self.norms.groups}" if self.norms.groups else "batch statistics")
        return "-".join(words)


def _acts(hints: Mapping[str, ModuleHint]) -> tuple[tuple[float, Op], ...]:
    registered = dict.fromkeys(op for op in HintTree(hints).ops if op.is_activation)
    return tuple((0.5 * i, op) for i, op in enumerate(registered)) or _ACTS


def _flat_structure(chain: Chain, hints: Mapping[str, ModuleHint]) -> Structure:
    """Return the one way to connect linear layers."""
    slots = read_slots(chain, hints)
    return Structure(cost=0.0, fillings=tuple(options[0].ops for options in slots), sizes=())


def _readings(chain: Chain, hints: Mapping[str, ModuleHint]) -> list[tuple[_Reading, Structure]]:
    """Return at most `MAX_CANDIDATES` different readings, most plausible first."""
    found = [_flat_structure(chain, hints)] if chain.in_channels == 0 else structures(chain, hints)
    ranked: list[tuple[float, _Reading, Structure]] = []
    for structure in found:
        for act_cost, act in _acts(hints):
            fillings = tuple(replace_act(parts, act) for parts in structure.fillings)
            for norms in _norm_styles(chain, hints):
                cost = structure.cost + act_cost + norms.cost
                ranked.append((cost, _Reading(chain, fillings, norms, hints), structure))
    distinct: dict[str, tuple[_Reading, Structure]] = {}
    for _, reading, structure in sorted(ranked, key=lambda entry: entry[0]):
        distinct.setdefault(reading.layout, (reading, structure))
    return list(distinct.values())[:MAX_CANDIDATES]


def _flat_inputs(features: int) -> Iterator[tuple[int, int]]:
    """Yield the channels and the side, in pixels, of square images with so many values."""
    for channels in _IMAGE_CHANNELS:
        side = math.isqrt(features // channels)
        if side > 1 and side * side * channels == features:
            yield channels, side


class PlainSequenceFamily(ArchitectureFamily):
    """Reads CNNs and MLPs without branches off their keys."""

    id: ClassVar[str] = "plain_sequence"
    summary: ClassVar[str] = "plain CNNs and MLPs, read off key numbers and shapes"
    reference: ClassVar[str] = "docs/architectures.md"
    is_fallback: ClassVar[bool] = True

    def propose(self, weights: Weights) -> Iterator[Candidate]:
        """Yield every reading of the keys that fits together, at most 64 per image shape."""
        chain = read_chain(weights)
        if chain is None:
            return
        for reading, structure in _readings(chain, weights.hints):
            if chain.in_channels:
                yield _candidate("plain_cnn", reading, chain.in_channels, structure.sizes)
            else:
                for channels, side in _flat_inputs(chain.layers[0].shape[1]):
                    yield _candidate("plain_mlp", reading, channels, (side,))

    def names(self) -> Iterator[str]:
        """Yield the two names."""
        yield from ("plain_cnn", "plain_mlp")


def _candidate(name: str, reading: _Reading, in_channels: int, sizes: tuple[int, ...]) -> Candidate:
    build: Callable[[], nn.Module] = reading.build
    source = "as pickled where it was said" if reading.hints else "inferred from numbers and shapes"
    return Candidate(
        name=name,
        family=PlainSequenceFamily.id,
        arguments={"layout": reading.layout},
        build=build,
        input_channels=in_channels,
        num_classes=reading.chain.num_classes,
        input_sizes=sizes,
        notes=(f"activation, pooling, stride and padding {source}: {reading.layout}",),
    )
