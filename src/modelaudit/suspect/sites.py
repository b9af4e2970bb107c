"""The neurons of a module: output channels of its BatchNorm layers, or of what it has instead."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.hooks import RemovableHandle


class SiteKind(StrEnum):
    """What kind of layer a site is."""

    BATCHNORM = "bn"
    GROUPNORM = "gn"
    LAYERNORM = "ln"
    CONV = "conv"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer whose output channels are neurons.

    Attributes:
        name: the layer's qualified module name.
        kind: what the layer is.
        channels: number of neurons D.
        channel_dim: dimension of the layer's output that counts channels (1, or -1 for
            LayerNorm/Linear).
        has_statistics: whether it carries running mean and variance.
        upstream: name of the convolution or linear layer whose output is exactly this layer's
            input, found by following the tensor, not the names; null if there is none.
    """

    name: str
    kind: SiteKind
    channels: int
    channel_dim: int
    has_statistics: bool
    upstream: str | None


def layer_kind(module: nn.Module) -> tuple[SiteKind, int, int] | None:
    """Return kind, channels and channel dimension, or None for a module without neurons."""
    if isinstance(module, _BatchNorm):
        return SiteKind.BATCHNORM, module.num_features, 1
    if isinstance(module, nn.GroupNorm):
        return (SiteKind.GROUPNORM, module.num_channels, 1) if module.affine else None
    if isinstance(module, nn.LayerNorm):
        return (
            (SiteKind.LAYERNORM, module.normalized_shape[-1], -1)
            if module.elementwise_affine
            else None
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return SiteKind.CONV, module.out_channels, 1
    if isinstance(module, nn.Linear):
        return SiteKind.LINEAR, module.out_features, -1
    return None


_LINEAR_MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a layer: what went in and out, and how often either had been written to."""

    name: str
    child: nn.Module
    source: Tensor
    output: Tensor
    source_version: int
    output_version: int

    @property
    def source_key(self) -> tuple[int, int]:
        return id(self.source), self.source_version


def find_sites(
    module: nn.Module, run: Callable[[], object], classifier: str | None
) -> tuple[Site, ...]:
    """List the sites of `module` in execution order.

    With BatchNorm present the neurons are BatchNorm channels, as in the papers' released code.
    Otherwise they are the affine channels of GroupNorm/LayerNorm and the outputs of those
    Conv/Linear layers that no such norm follows directly; the classifier is never a site.

    Args:
        module: the module, in eval mode.
        run: performs one forward pass on a small batch.
        classifier: name of the layer that makes the logits, if known.

    Returns:
        Sites in the order of their first call.
    """
    calls: list[_Call] = []
    handles: list[RemovableHandle] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(child: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.append(_Call(name, child, args[0], output, args[0]._version, output._version))

        return hook

    try:
        for name, child in module.named_modules():
            if layer_kind(child) is not None:
                handles.append(child.register_forward_hook(record(name)))
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()

    # `calls` keeps the tensors alive, so object identity follows the data flow; the version tells
    # whether an in-place operation stood between.
    producer = {
        (id(call.output), call.output_version): call.name
        for call in calls
        if isinstance(call.child, _LINEAR_MAPS)
    }
    normed = {
        producer[call.source_key]
        for call in calls
        if not isinstance(call.child, _LINEAR_MAPS) and call.source_key in producer
    }
    has_batchnorm = any(isinstance(call.child, _BatchNorm) for call in calls)
    sites: dict[str, Site] = {}
    for call in calls:
        name, child = call.name, call.child
        described = layer_kind(child)
        if described is None or name in sites or name == classifier:
            continue
        kind, channels, dim = described
        # torchvision's LayerNorm2d normalises the last dimension of a permuted view of its input.
        if type(child) is not nn.LayerNorm and kind is SiteKind.LAYERNORM:
            dim = 1 if call.output.dim() == 4 and call.output.shape[1] == channels else dim
        if has_batchnorm and kind is not SiteKind.BATCHNORM:
            continue
        if kind in {SiteKind.CONV, SiteKind.LINEAR} and name in normed:
            continue
        sites[name] = Site(
            name=name,
            kind=kind,
            channels=channels,
            channel_dim=dim,
            has_statistics=isinstance(child, _BatchNorm) and child.running_mean is not None,
            upstream=producer.get(call.source_key),
        )
    return tuple(sites.values())
