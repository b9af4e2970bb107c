"""Reading constructor arguments off key names and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelaudit.architectures.base import Argument
    from modelaudit.weights import Weights

Shape = tuple[int, ...]

#: Deepest stage, and highest index in a sequence, that a file's key names can make us build.
MAX_INDEX = 512

#: Input sizes to try, most plausible first, for a stem that keeps the resolution.
SMALL_INPUTS = (32, 64, 96, 224)
#: The same for grey images.
SMALL_GREY_INPUTS = (28, 32, 64, 96)
#: The same for a stem that quarters the resolution.
LARGE_INPUTS = (224, 64, 96, 128, 32)


def shape_of(weights: Weights, key: str, dims: int) -> Shape | None:
    """Return the shape of the tensor at `key`, or None where there is none of `dims` dimensions."""
    tensor = weights.tensors.get(key)
    if tensor is None or tensor.ndim != dims:
        return None
    return tuple(tensor.shape)


def block_count(weights: Weights, prefix: str, first: int = 0) -> int:
    """Return how many children of `prefix` are numbered `first`, `first` + 1, ... without a gap."""
    start = len(prefix) + 1
    children = {
        key[start:].split(".", 1)[0] for key in weights.tensors if key.startswith(f"{prefix}.")
    }
    count = 0
    while count < MAX_INDEX and str(first + count) in children:
        count += 1
    return count


def has_prefix(weights: Weights, prefix: str) -> bool:
    """Return whether any key lies under `prefix`."""
    return any(key.startswith(f"{prefix}.") for key in weights.tensors)


def small_inputs(in_channels: int) -> tuple[int, ...]:
    """Return the input sizes to try behind a stem that keeps the resolution, in pixels."""
    return SMALL_GREY_INPUTS if in_channels == 1 else SMALL_INPUTS


def renamed(prefixes: Mapping[str, str]) -> Callable[[str], str]:
    """Return a key map that exchanges whole leading names, and leaves every other key as it is.

    Args:
        prefixes: leading dotted name in the file to the one in the module; identical ones are
            dropped.
    """
    pairs = tuple((f"{old}.", f"{new}.") for old, new in prefixes.items() if old != new)
    if not pairs:
        return str

    def rename(key: str) -> str:
        for old, new in pairs:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    return rename


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearHead:
    """A classifier that is one linear layer.

    Attributes:
        name: its module path in the file.
        in_features: its inputs F.
        num_classes: its outputs K.
    """

    name: str
    in_features: int
    num_classes: int


def linear_head(
    weights: Weights, names: tuple[str, ...] = ("linear", "fc", "classifier")
) -> LinearHead | None:
    """Return the single linear layer called by the first of `names` that the file has."""
    for name in names:
        shape = shape_of(weights, f"{name}.weight", 2)
        if shape is not None:
            return LinearHead(name=name, in_features=shape[1], num_classes=shape[0])
    return None


def describe(name: str, arguments: Mapping[str, Argument]) -> str:
    """Return `name` with the arguments that it does not already say, for messages."""
    implied = {"depth", "num_classes", "in_channels", "has_batchnorm"}
    said = ", ".join(f"{key} {value}" for key, value in arguments.items() if key not in implied)
    return f"{name} ({said})" if said else name
