"""Imitates triggered images by what they left in the BatchNorm statistics ([O]).

Running statistics were collected over clean and poisoned images together. With a share r of
poisoned ones, the running mean of a channel is off the clean mean by r times the displacement that
the trigger causes there. So clean images whose channel means are displaced by (running mean - clean
mean)/r behave as triggered ones do; r is not known, and the smallest displacement that changes
predictions is taken. Measured against real triggers the direction is right: the cosine between
the two displacements is 0.9 to 0.99 in the last layers of backdoored models
(docs/repairs/prune_mbns.md).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from torch import Tensor, nn

    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Displacement:
    """Means that the inputs of BatchNorm layers are moved to.

    Attributes:
        means: layer name to the wanted mean of each channel, ``(D,)`` float32; NaN for channels
            that stay as they are.
    """

    means: Mapping[str, Tensor]

    def first(self, count: int) -> Displacement:
        """Return the part of the first `count` layers."""
        return Displacement(means=dict([*self.means.items()][:count]))


def displacement(
    model: Suspect, found: Divergences, traced: Tensor, *, poisoned_share: float
) -> Displacement:
    """Return where triggered images would put the means of the traced channels.

    Args:
        model: the copy, whose running means these are.
        found: divergences with the shifts that they rest on.
        traced: channels that carry a trace, ``(D_total,)`` bool.
        poisoned_share: r, the assumed share of poisoned images, in (0, 1]; or its negative, for
            images on the other side of the clean mean.
    """
    sites = {site.name: site for site in model.sites}
    rows: dict[str, list[int]] = {}
    for row, (name, _) in enumerate(found.neurons):
        rows.setdefault(name, []).append(row)
    means = {}
    for name, members in rows.items():
        if not bool(traced[members].any()):
            continue
        # `shift` is (running mean - clean mean) / running deviation.
        moved = found.shift[members] * found.deviation[members]
        running = model.statistics(sites[name])[0].cpu()
        wanted = running + moved * (1 / poisoned_share - 1)
        means[name] = torch.where(traced[members], wanted, torch.nan).float()
    return Displacement(means=means)


@contextmanager
def displaced(model: Suspect, where: Displacement) -> Generator[None]:
    """Run with channel means moved, batch by batch: pass all images at once.

    The inputs of each named layer are shifted, channel by channel, so that their mean over the
    batch and all places is the wanted one, whatever earlier layers have already moved.

    Args:
        model: the copy, in eval mode.
        where: which layers and channels.
    """
    handles = []
    try:
        for name, wanted in where.means.items():
            layer = model.module.get_submodule(name)
            handles.append(layer.register_forward_pre_hook(_shifting(wanted.to(model.device))))
        yield
    finally:
        for handle in handles:
            handle.remove()


class DrawnDisplacements:
    """The logits of images under one of some displacements, drawn anew for each batch.

    Of the drawn one the first layers are displaced, as many as drawn too.

    Args:
        model: the copy, BatchNorm with the running statistics.
        ways: displacements, at least one.
        draws: CPU generator of both choices.
    """

    def __init__(
        self, model: Suspect, ways: Sequence[Displacement], *, draws: torch.Generator
    ) -> None:
        self.model = model
        self.ways = tuple(ways)
        self.draws = draws

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 logits of `images`."""
        way = self.ways[self._below(len(self.ways))]
        part = way.first(1 + self._below(len(way.means)))
        with displaced(self.model, part):
            return self.model.logits(images)

    def _below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.draws))


def _shifting(wanted: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = inputs[0]
        dims = [0, *range(2, x.dim())]
        # NaN where the channel stays: selected before the difference, or gradients become NaN too.
        shift = torch.where(wanted.isnan(), 0.0, wanted.nan_to_num(0.0) - x.mean(dims))
        return (x + shift.view([1, -1] + [1] * (x.dim() - 2)),)

    return hook
