"""What a checkpoint file amounts to once read: named tensors, and hints about their module."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

#: A plain attribute of a pickled module, such as ``stride`` or ``eps``.
Attribute = bool | int | float | str | None | tuple["Attribute", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleHint:
    """What a pickled module said about itself; nothing of it was imported or called.

    Attributes:
        class_name: qualified name of the module's class, such as
            ``"torch.nn.modules.conv.Conv2d"``.
        attributes: plain attributes (stride, padding, groups, eps, kernel_size, ...) by name.
        children: names of the registered submodules, in the order of registration.
    """

    class_name: str
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))
    children: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Named tensors of one model, as they stood in the file.

    Attributes:
        tensors: state-dict key to dense, finite CPU tensor, in the file's order and dtype, known
            wrapper prefixes removed.
        hints: module path (``""`` is the root) to what a pickled whole module said of itself; empty
            for a plain state dict.
        metadata: plain strings that the file carried beside the weights (a safetensors header's
            ``__metadata__``, an ``arch`` entry, ...). Untrusted text.
    """

    tensors: Mapping[str, Tensor]
    hints: Mapping[str, ModuleHint] = field(default_factory=lambda: MappingProxyType({}))
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
