"""Noise, pruning and pushes on neurons, and the BatchNorm modes, without touching a tensor.

Each edited layer gets its ``forward`` replaced on the instance for the length of a context.
Weights, buffers and classes stay as they are; autograd reaches the edits alone. For BatchNorm the
edit is exactly the scaling ``gamma*(1+delta)``, ``beta*(1+xi)`` of [BAN24] Eq. 3 as its code places
it; for other layers it is the same scaling of output and bias (methods/detectors.md §12.3).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from torch.utils.hooks import RemovableHandle


class BatchNormMode(StrEnum):
    """Which statistics BatchNorm layers normalise with (methods/detectors.md §12.4)."""

    #: the checkpoint's running statistics
    RUNNING = "running"
    #: each batch's own statistics; no buffer is updated
    BATCH = "batch"
    #: statistics re-estimated for the edited network inside `Edited.collecting`
    RECAL = "recal"
    #: each batch's own statistics, updating the module's buffers with its momentum as train mode
    #: does: what released code does by accident. Only inside a borrow, which restores the buffers
    TRAIN = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEdit:
    """An edit of one site's channels. Tensors have shape ``(D,)``, or ``(R, D)`` for R restarts.

    Attributes:
        weight_noise: delta; the layer's weight (gamma, or the output before its bias) times ``1 +
            delta``.
        bias_noise: xi; the bias (beta) times ``1 + xi``.
        push: added to the input of a BatchNorm layer, to the output of any other.
        keep: multiplies the output; 0 removes the neuron (gamma = beta = 0).
    """

    weight_noise: Tensor | None = None
    bias_noise: Tensor | None = None
    push: Tensor | None = None
    keep: Tensor | None = None

    def group(self, index: int) -> SiteEdit:
        """Return the edit of restart `index`."""

        def pick(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.dim() == 1 else t[index]

        return SiteEdit(
            weight_noise=pick(self.weight_noise),
            bias_noise=pick(self.bias_noise),
            push=pick(self.push),
            keep=pick(self.keep),
        )


_NO_EDIT = SiteEdit()


@dataclass(slots=True)
class _Statistics:
    """Re-estimated statistics of one BatchNorm layer for one restart: averages over batches."""

    mean: Tensor
    var: Tensor
    batches: int = 0


class Edited:
    """A running context of `edited`."""

    def __init__(self, mode: BatchNormMode, groups: int) -> None:
        self.mode = mode
        self.groups = groups
        self.is_collecting = False
        self.statistics: dict[tuple[nn.Module, int], _Statistics] = {}

    @contextmanager
    def collecting(self) -> Generator[None]:
        """While open, forward passes estimate the statistics that `recal` mode will use."""
        self.statistics.clear()
        self.is_collecting = True
        try:
            yield
        finally:
            self.is_collecting = False


def _broadcast(values: Tensor, like: Tensor, dim: int) -> Tensor:
    if dim == -1:
        return values
    return values.view([1, -1] + [1] * (like.dim() - 2))


def _affine(parameter: Tensor | None, noise: Tensor | None, like: Tensor) -> Tensor | None:
    if noise is None:
        return parameter
    base = torch.ones_like(noise) if parameter is None else parameter
    return (base * (1 + noise)).to(like.device)


def _batchnorm(module: _BatchNorm, edit: SiteEdit, state: Edited, group: int, x: Tensor) -> Tensor:
    if edit.push is not None:
        x = x + _broadcast(edit.push, x, 1).to(x.dtype)
    weight = _affine(module.weight, edit.weight_noise, x)
    bias = None
    if module.bias is not None:
        bias = _affine(module.bias, edit.bias_noise, x)
    mean, var = module.running_mean, module.running_var
    if state.is_collecting:
        stats = state.statistics.get((module, group))
        if stats is None:
            zeros = torch.zeros(module.num_features, device=x.device)
            stats = _Statistics(zeros, torch.ones_like(zeros))
            state.statistics[module, group] = stats
        stats.batches += 1
        out = F.batch_norm(
            x, stats.mean, stats.var, weight, bias, True, 1.0 / stats.batches, module.eps
        )
    elif state.mode is BatchNormMode.TRAIN:
        momentum = 0.1 if module.momentum is None else module.momentum
        out = F.batch_norm(x, mean, var, weight, bias, True, momentum, module.eps)
    elif state.mode is BatchNormMode.BATCH or mean is None:
        out = F.batch_norm(x, None, None, weight, bias, True, 0.0, module.eps)
    else:
        if state.mode is BatchNormMode.RECAL:
            stats = state.statistics[module, group]
            mean, var = stats.mean, stats.var
        out = F.batch_norm(x, mean, var, weight, bias, False, 0.0, module.eps)
    return out if edit.keep is None else out * _broadcast(edit.keep, out, 1).to(out.dtype)


def _other(
    module: nn.Module, forward: Callable[[Tensor], Tensor], dim: int, edit: SiteEdit, x: Tensor
) -> Tensor:
    out = forward(x)
    bias = getattr(module, "bias", None)
    shift = _broadcast(bias, out, dim) if bias is not None else None
    if edit.weight_noise is not None:
        scale = _broadcast(1 + edit.weight_noise, out, dim)
        out = out * scale if shift is None else (out - shift) * scale + shift
    if edit.bias_noise is not None and shift is not None:
        out = out + shift * _broadcast(edit.bias_noise, out, dim)
    if edit.push is not None:
        out = out + _broadcast(edit.push, out, dim)
    return out if edit.keep is None else out * _broadcast(edit.keep, out, dim)


def _grouped(run: Callable[[int, Tensor], Tensor], groups: int, x: Tensor) -> Tensor:
    """Apply `run` to each restart's slice of the batch: batch statistics never mix restarts."""
    if groups == 1:
        return run(0, x)
    return torch.cat([run(r, part) for r, part in enumerate(x.chunk(groups))])


@contextmanager
def edited(
    module: nn.Module,
    edits: Mapping[str, SiteEdit],
    *,
    mode: BatchNormMode = BatchNormMode.RUNNING,
    groups: int = 1,
    channel_dims: Mapping[str, int],
) -> Generator[Edited]:
    """Run `module` with `edits` for the length of the context.

    Args:
        module: the suspect's module, in eval mode.
        edits: site name to edit.
        mode: statistics for every BatchNorm layer, edited or not.
        groups: number R of restarts whose images stand one after another in each batch.
        channel_dims: site name to the channel dimension of its output.

    Contexts may be nested: an inner one adds to the edits of other layers, replaces those of the
    same BatchNorm layer, and takes its own away at its end.

    Yields:
        The context's state, whose `collecting` prepares `recal` mode.
    """
    state = Edited(mode, groups)
    replaced: list[tuple[nn.Module, object]] = []
    handles: list[RemovableHandle] = []
    modules = dict(module.named_modules())
    # Its fused kernel computes with the layers' weights and never calls them, unless one is hooked.
    is_fused = any(isinstance(child, nn.TransformerEncoderLayer) for child in modules.values())
    try:
        for name, child in modules.items():
            edit = edits.get(name)
            if isinstance(child, _BatchNorm):
                if edit is None and mode is BatchNormMode.RUNNING:
                    continue
                forward = _batchnorm_forward(child, edit or _NO_EDIT, state, groups)
            elif edit is not None:
                forward = _other_forward(child, edit, channel_dims[name], groups)
            else:
                continue
            replaced.append((child, child.__dict__.get("forward")))
            child.__dict__["forward"] = forward
            if is_fused:
                handles.append(child.register_forward_pre_hook(_no_hook))
        yield state
    finally:
        for handle in handles:
            handle.remove()
        for child, earlier in replaced:
            child.__dict__.pop("forward", None)
            if earlier is not None:
                child.__dict__["forward"] = earlier


def _no_hook(_module: nn.Module, _inputs: object) -> None:
    """Do nothing."""


def _batchnorm_forward(
    child: _BatchNorm, edit: SiteEdit, state: Edited, groups: int
) -> Callable[[Tensor], Tensor]:
    parts = [edit.group(r) for r in range(groups)]

    def run(r: int, x: Tensor) -> Tensor:
        return _batchnorm(child, parts[r], state, r, x)

    return partial(_grouped, run, groups)


def _other_forward(
    child: nn.Module, edit: SiteEdit, dim: int, groups: int
) -> Callable[[Tensor], Tensor]:
    parts = [edit.group(r) for r in range(groups)]
    forward = child.forward

    def run(r: int, x: Tensor) -> Tensor:
        return _other(child, forward, dim, parts[r], x)

    return partial(_grouped, run, groups)
