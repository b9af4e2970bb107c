"""Gradients with respect to removing each neuron, image by image."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from torch import nn

    from modelaudit.suspect import Site, Suspect


@contextmanager
def gates(
    model: Suspect, count: int, *, sites: Sequence[Site] | None = None
) -> Generator[list[Tensor]]:
    """Multiply every neuron's output by a gate of its own for each image of a batch.

    Args:
        model: the copy, in eval mode.
        count: images in the batch that is to be run.
        sites: where gates are wanted; all sites if omitted.

    Yields:
        One tensor of ones ``(count, D)`` per site, in their order, that records gradients.
    """
    gated = model.sites if sites is None else sites
    made = [torch.ones(count, s.channels, device=model.device) for s in gated]
    handles = []
    try:
        for site, gate in zip(gated, made, strict=True):
            gate.requires_grad_(True)
            layer = model.module.get_submodule(site.name)
            handles.append(layer.register_forward_hook(_gated(site, gate)))
        yield made
    finally:
        for handle in handles:
            handle.remove()


def _gated(site: Site, gate: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        places = [1] * (output.dim() - 2)
        shape = [len(gate), *places, -1] if site.channel_dim == -1 else [len(gate), -1, *places]
        return output * gate.view(shape).to(output.dtype)

    return hook


def gate_gradients(
    model: Suspect,
    images: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int,
    sites: Sequence[Site] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean over images of each gate's gradient, and of its square.

    Args:
        model: the copy, in eval mode. One forward and backward pass per image is counted.
        images: ``(N, C, H, W)``, N at least 1.
        objective: logits ``(n, K)`` and the rows ``(n,)`` of `images` that they belong to, to one
            value per image.
        batch_size: images computed together; in eval mode no image changes another's gradient.
        sites: some of the model's, in their order, at least one; the gradients of others are not
            asked for, and are 0. All sites if omitted.

    Returns:
        Two tensors ``(D_total,)`` float64, CPU, the sites one after another.
    """
    wanted = {site.name for site in (model.sites if sites is None else sites)}
    asked = torch.cat([torch.full((s.channels,), s.name in wanted) for s in model.sites])
    total = torch.zeros(len(asked), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows in torch.arange(len(images)).split(batch_size):
        with torch.enable_grad(), gates(model, len(rows), sites=sites) as made:
            values = objective(model.logits(images[rows]), rows)
            gradients: Sequence[Tensor] = torch.autograd.grad(values.sum(), made)
        joined = torch.cat(list(gradients), 1).double().cpu()
        total[asked] += joined.sum(0)
        squares[asked] += joined.square().sum(0)
    return total / len(images), squares / len(images)
