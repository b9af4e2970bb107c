"""Classifier heads: one linear layer, or a numbered sequence of several with ReLU between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import nn

from modelaudit.architectures._keys import MAX_INDEX, shape_of

if TYPE_CHECKING:
    from modelaudit.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The linear layers under one name.

    Attributes:
        name: module path in the file.
        indices: their numbers in the sequence, ascending; empty where `name` itself is the layer.
        sizes: inputs of the first, then the outputs of each.
        biases: whether each has a bias.
    """

    name: str
    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    biases: tuple[bool, ...]

    @property
    def is_single(self) -> bool:
        """Whether `name` itself is the one linear layer."""
        return not self.indices

    @property
    def in_features(self) -> int:
        """Inputs F of the first layer."""
        return self.sizes[0]

    @property
    def num_classes(self) -> int:
        """Outputs K of the last layer."""
        return self.sizes[-1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Outputs of the layers before the last."""
        return self.sizes[1:-1]

    def pool_size(self, channels: int) -> int:
        """Return the side, in pixels, of `channels` maps that fill the inputs; 1 if none does."""
        side = math.isqrt(self.in_features // channels)
        return side if side * side * channels == self.in_features else 1

    def build(self) -> nn.Module:
        """Return the module; the first missing number after a layer is a ReLU, others nothing."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], self.biases, strict=True)
        linears = [nn.Linear(i, o, bias=has_bias) for i, o, has_bias in pairs]
        if self.is_single:
            return linears[0]
        layers: list[nn.Module] = [nn.Identity() for _ in range(self.indices[-1] + 1)]
        for index, linear in zip(self.indices, linears, strict=True):
            layers[index] = linear
        for before, after in pairwise(self.indices):
            if after - before > 1:
                layers[before + 1] = nn.ReLU()
        return nn.Sequential(*layers)


def read_head(weights: Weights, names: tuple[str, ...]) -> Head | None:
    """Return the head called by the first of `names` that the file has linear layers for."""
    for name in names:
        single = shape_of(weights, f"{name}.weight", 2)
        if single is not None:
            has_bias = f"{name}.bias" in weights.tensors
            return Head(name=name, indices=(), sizes=(single[1], single[0]), biases=(has_bias,))
        found = [(i, shape_of(weights, f"{name}.{i}.weight", 2)) for i in range(MAX_INDEX)]
        shapes = [(i, shape) for i, shape in found if shape is not None]
        chains = all(before[0] == after[1] for (_, before), (_, after) in pairwise(shapes))
        if shapes and chains:
            return Head(
                name=name,
                indices=tuple(i for i, _ in shapes),
                sizes=(shapes[0][1][1], *(shape[0] for _, shape in shapes)),
                biases=tuple(f"{name}.{i}.bias" in weights.tensors for i, _ in shapes),
            )
    return None
