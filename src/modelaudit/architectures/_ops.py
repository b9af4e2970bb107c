"""Layers without weights, as values: what stands between a file's keys, and what hints can say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.weights import Attribute, ModuleHint

#: Limits on what an untrusted hint may ask for; anything beyond is not believed.
MAX_KERNEL = 64
MAX_STRIDE = 16

#: Activations whose only arguments are optional numbers: class name to (argument, default) pairs.
_ACTIVATIONS: dict[str, tuple[Callable[..., nn.Module], tuple[tuple[str, float], ...]]] = {
    "ReLU": (nn.ReLU, ()),
    "ReLU6": (nn.ReLU6, ()),
    "LeakyReLU": (nn.LeakyReLU, (("negative_slope", 0.01),)),
    "ELU": (nn.ELU, (("alpha", 1.0),)),
    "CELU": (nn.CELU, (("alpha", 1.0),)),
    "SELU": (nn.SELU, ()),
    "GELU": (nn.GELU, ()),
    "GELUTanh": (partial(nn.GELU, approximate="tanh"), ()),
    "SiLU": (nn.SiLU, ()),
    "Mish": (nn.Mish, ()),
    "Tanh": (nn.Tanh, ()),
    "Sigmoid": (nn.Sigmoid, ()),
    "Hardswish": (nn.Hardswish, ()),
    "Hardsigmoid": (nn.Hardsigmoid, ()),
    "Hardtanh": (nn.Hardtanh, (("min_val", -1.0), ("max_val", 1.0))),
    "Softplus": (nn.Softplus, (("beta", 1.0), ("threshold", 20.0))),
    "Softsign": (nn.Softsign, ()),
}
#: Classes that do nothing in evaluation mode.
_IDENTITIES = frozenset(
    {"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"}
)
#: Outputs that turn logits into (log-)probabilities; dropped, because scanners read logits.
_SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})


@dataclass(frozen=True, slots=True)
class Op:
    """A layer without weights.

    Attributes:
        kind: class name in `torch.nn`.
        values: its arguments: numbers for an activation; kernel, stride, padding (pixels), ceil
            mode and whether padding is counted for a pooling; output size (pixels) for an adaptive
            one.
    """

    kind: str
    values: tuple[float, ...] = ()

    @property
    def is_activation(self) -> bool:
        """Whether it is a pointwise non-linearity."""
        return self.kind in _ACTIVATIONS

    @property
    def is_pool(self) -> bool:
        """Whether it changes the resolution."""
        return self.kind.endswith("Pool2d")

    def output_size(self, size: int) -> int:
        """Return the output's side for an input of side `size` (pixels); 0 where none is left."""
        if self.kind.startswith("Adaptive"):
            return int(self.values[0])
        if not self.is_pool:
            return size
        kernel, stride, padding, ceil_mode = (int(v) for v in self.values[:4])
        room = size + 2 * padding - kernel
        if room < 0 and not (ceil_mode and room + stride > 0):
            return 0
        if not ceil_mode:
            return room // stride + 1
        out = -(-room // stride) + 1
        # torch drops a last window that would start inside the right padding
        return out - 1 if (out - 1) * stride >= size + padding else out

    def build(self) -> nn.Module:
        """Return the module.

        Raises:
            ValueError: the kind is not understood.
        """
        if self.kind in _ACTIVATIONS:
            make, _ = _ACTIVATIONS[self.kind]
            return make(*self.values)
        if self.kind == "Flatten":
            return nn.Flatten()
        if self.kind == "AdaptiveAvgPool2d":
            return nn.AdaptiveAvgPool2d(int(self.values[0]))
        if self.kind == "AdaptiveMaxPool2d":
            return nn.AdaptiveMaxPool2d(int(self.values[0]))
        if self.kind == "MaxPool2d":
            kernel, stride, padding, ceil_mode = (int(v) for v in self.values[:4])
            return nn.MaxPool2d(kernel, stride, padding, ceil_mode=bool(ceil_mode))
        if self.kind == "AvgPool2d":
            kernel, stride, padding, ceil_mode, counted = (int(v) for v in self.values)
            return nn.AvgPool2d(
                kernel,
                stride,
                padding,
                ceil_mode=bool(ceil_mode),
                count_include_pad=bool(counted),
            )
        if self.kind == "Identity":
            return nn.Identity()
        raise ValueError(
            f"expected a layer without weights that is understood, found {self.kind!r}"
        )

    def __str__(self) -> str:
        arguments = ",".join(f"{v:g}" for v in self.values)
        return f"{self.kind}({arguments})" if arguments else self.kind


def max_pool(kernel: int, stride: int, padding: int = 0) -> Op:
    """Return a max pooling with floor mode (kernel, stride and padding in pixels)."""
    return Op("MaxPool2d", (kernel, stride, padding, 0))


def avg_pool(kernel: int, stride: int) -> Op:
    """Return an average pooling without padding, floor mode (kernel and stride in pixels)."""
    return Op("AvgPool2d", (kernel, stride, 0, 0, 1))


def square(value: Attribute, *, low: int, high: int) -> int | None:
    """Return the integer that a number or a tuple of equal numbers is, or None if out of range."""
    entries = value if isinstance(value, tuple) else (value,)
    first = entries[0] if entries else None
    if isinstance(first, bool) or not isinstance(first, int) or not low <= first <= high:
        return None
    return first if all(entry == first for entry in entries) else None


def short_name(class_name: str) -> str | None:
    """Return the name of a class of torch's, else None: a stranger's ReLU is unknown."""
    if class_name.startswith("torch.nn."):
        return class_name.rpartition(".")[2]
    return None


def is_sequential(hint: ModuleHint) -> bool:
    """Return whether a module runs its children one after the other, as they are registered."""
    return short_name(hint.class_name) == "Sequential"


def from_hint(hint: ModuleHint) -> Op | None:
    """Return the layer without weights that a pickled module said it was.

    Returns:
        The operation; an ``Identity`` for what does nothing in evaluation mode or only turns
        logits into probabilities; None where the class is not known or an attribute is not
        credible.
    """
    kind = short_name(hint.class_name)
    if kind is None:
        return None
    get = hint.attributes.get
    if kind in _IDENTITIES or kind in _SOFTMAXES:
        return Op("Identity")
    if kind == "Flatten":
        return Op("Flatten") if get("start_dim", 1) == 1 and get("end_dim", -1) == -1 else None
    if kind == "GELU":
        return Op("GELUTanh" if get("approximate") == "tanh" else "GELU")
    if kind in _ACTIVATIONS:
        values = tuple(get(name, default) for name, default in _ACTIVATIONS[kind][1])
        numbers = tuple(float(v) for v in values if isinstance(v, int | float))
        in_range = all(-1e3 <= v <= 1e3 for v in numbers)
        return Op(kind, numbers) if len(numbers) == len(values) and in_range else None
    if kind in {"AdaptiveAvgPool2d", "AdaptiveMaxPool2d"}:
        size = square(get("output_size"), low=1, high=MAX_KERNEL)
        return None if size is None else Op(kind, (size,))
    if kind in {"MaxPool2d", "AvgPool2d"}:
        return _pool_from_hint(kind, hint)
    return None


def _pool_from_hint(kind: str, hint: ModuleHint) -> Op | None:
    get = hint.attributes.get
    kernel = square(get("kernel_size"), low=1, high=MAX_KERNEL)
    if kernel is None:
        return None
    stride_value = get("stride")
    stride = square(kernel if stride_value is None else stride_value, low=1, high=MAX_KERNEL)
    padding = square(get("padding", 0), low=0, high=kernel // 2)
    is_plain = square(get("dilation", 1), low=1, high=1) == 1
    if stride is None or padding is None or not is_plain or get("divisor_override") is not None:
        return None
    ceil_mode = int(get("ceil_mode", False) is True)
    if kind == "MaxPool2d":
        return Op(kind, (kernel, stride, padding, ceil_mode))
    counted = int(get("count_include_pad", True) is True)
    return Op(kind, (kernel, stride, padding, ceil_mode, counted))
