"""What a pickled module said of its layers, carried over to the module that we built ourselves.

Shapes fix nearly everything; stride, padding, ``eps`` and the layers without weights leave no
trace in them. A hint is untrusted: an attribute is believed only inside a narrow range, and the
result must still have exactly the file's keys and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from modelaudit.architectures._ops import MAX_KERNEL, MAX_STRIDE, from_hint
from modelaudit.weights import ModuleHint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelaudit.weights import Attribute

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
_PADDING_MODES: dict[str, PaddingMode] = {
    "zeros": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What a hint says of a convolution; None where it says nothing credible. Pixels."""

    stride: tuple[int, int] | None
    padding: tuple[int, int] | str | None
    dilation: tuple[int, int] | None
    padding_mode: PaddingMode | None


def pair(value: Attribute, *, low: int, high: int) -> tuple[int, int] | None:
    """Return a number or pair of numbers as a pair, or None where one is outside the range."""
    entries = value if isinstance(value, tuple) else (value, value)
    numbers = tuple(
        v for v in entries if isinstance(v, int) and not isinstance(v, bool) and low <= v <= high
    )
    return (numbers[0], numbers[1]) if len(numbers) == len(entries) == 2 else None


def eps_of(hint: ModuleHint) -> float | None:
    """Return a normalisation's ``eps`` where it is credible (above 0, at most 1; dimensionless)."""
    eps = hint.attributes.get("eps")
    return float(eps) if isinstance(eps, int | float) and 0 < eps <= 1 else None


def convolution(hint: ModuleHint) -> Geometry:
    """Return a convolution's stride, padding, dilation and padding mode, where credible."""
    get = hint.attributes.get
    said, mode = get("padding"), get("padding_mode")
    stride = pair(get("stride"), low=1, high=MAX_STRIDE)
    # torch refuses "same" beside a stride
    is_word = said == "valid" or (said == "same" and stride == (1, 1))
    return Geometry(
        stride=stride,
        padding=str(said) if is_word else pair(said, low=0, high=MAX_KERNEL),
        dilation=pair(get("dilation"), low=1, high=MAX_STRIDE),
        padding_mode=_PADDING_MODES.get(mode) if isinstance(mode, str) else None,
    )


def _set_convolution(module: nn.Conv2d, hint: ModuleHint) -> nn.Conv2d | None:
    """Return a convolution with the hint's geometry, or None where `module` has it already."""
    said = convolution(hint)
    own = (module.stride, module.padding, module.dilation, module.padding_mode)
    wanted = (
        said.stride or module.stride,
        module.padding if said.padding is None else said.padding,
        said.dilation or module.dilation,
        said.padding_mode or module.padding_mode,
    )
    if wanted == own:
        return None
    stride, padding, dilation, padding_mode = wanted
    kernel_height, kernel_width = module.kernel_size
    return nn.Conv2d(
        module.in_channels,
        module.out_channels,
        (kernel_height, kernel_width),
        stride=(stride[0], stride[1]),
        padding=padding if isinstance(padding, str) else (padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=module.groups,
        bias=module.bias is not None,
        padding_mode=padding_mode,
        device=module.weight.device,
    )


def _replacement(module: nn.Module, hint: ModuleHint) -> nn.Module | None:
    """Return the module that does what the hint says, or None where `module` may stay."""
    if isinstance(module, nn.Conv2d):
        return _set_convolution(module, hint)
    if isinstance(module, _NORMS):
        eps = eps_of(hint)
        if eps is not None:
            module.eps = eps
        return None
    op, own = from_hint(hint), from_hint(_said_by(module))
    return None if op is None or own is None or op == own else op.build()


def _said_by(module: nn.Module) -> ModuleHint:
    kind = type(module)
    return ModuleHint(class_name=f"{kind.__module__}.{kind.__qualname__}", attributes=vars(module))


def apply_hints(
    module: nn.Module, hints: Mapping[str, ModuleHint], rename: Callable[[str], str]
) -> tuple[str, ...]:
    """Give the leaf layers of a freshly built module the attributes that the file's module had.

    Only leaves that both sides have are touched: convolutions (stride, padding, dilation, padding
    mode), normalisations (``eps``), and activations, poolings and placeholders without weights.

    Args:
        module: the module to change, in place; any device.
        hints: what the pickled module said, by module path in the file.
        rename: the candidate's key map; maps ``path + "."`` too.

    Returns:
        The paths, in the module, of the layers that changed.
    """
    by_path = {rename(f"{path}.").removesuffix("."): hint for path, hint in hints.items() if path}
    changed: list[str] = []
    leaves = [
        (p, m) for p, m in module.named_modules() if p and not any(True for _ in m.children())
    ]
    for path, leaf in leaves:
        hint = by_path.get(path)
        if hint is None or hint.children:
            continue
        eps_before = getattr(leaf, "eps", None)
        new = _replacement(leaf, hint)
        if new is not None:
            parent_path, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent_path), name, new)
        if new is not None or getattr(leaf, "eps", None) != eps_before:
            changed.append(path)
    return tuple(changed)
