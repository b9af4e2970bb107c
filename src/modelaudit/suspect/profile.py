"""One forward pass over the clean set that every scanner shares."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelaudit.suspect.sites import Site, SiteKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.suspect.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProfile:
    """Pre-activation statistics of one site: a BatchNorm layer's input, any other layer's output.

    Attributes:
        site: the layer.
        sums: sum over positions of each image and channel, ``(N, D)`` float64, CPU.
        squares: sum of squares, ``(N, D)`` float64, CPU.
        peaks: maximum over positions, phi of [DDE22] §3.1, ``(N, D)`` float32, CPU.
        positions: values per image and channel (H·W; of all calls, where one pass makes several).
    """

    site: Site
    sums: Tensor
    squares: Tensor
    peaks: Tensor
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one pass over N images yields.

    Attributes:
        logits: ``(N, K)`` float32, CPU.
        features: g(x), ``(N, *feature_shape)`` float32 on the suspect's device; None without a
            split.
        sites: one record per site, in the order of `Suspect.sites`.
        seconds_per_image: measured forward time without the bookkeeping, from which the engine
            estimates what follows.
    """

    logits: Tensor
    features: Tensor | None
    sites: tuple[SiteProfile, ...]
    seconds_per_image: float

    @property
    def predictions(self) -> Tensor:
        """Predicted classes ``(N,)`` int64."""
        return self.logits.argmax(1)


class _Rows:
    """Rows that come batch by batch, written where they stay.

    A list of batches would be in memory twice while it is joined.
    """

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.count = 0
        self.held: Tensor | None = None

    def append(self, part: Tensor) -> None:
        total = self.count + len(part)
        # A layer that folds positions into the batch brings more rows than there are images.
        if self.held is None or total > len(self.held):
            room = part.new_empty(max(total, self.expected), *part.shape[1:])
            if self.held is not None:
                room[: self.count] = self.held[: self.count]
            self.held = room
        self.held[self.count : total] = part
        self.count = total

    def result(self) -> Tensor:
        assert self.held is not None, "no batch came"
        return self.held[: self.count]


class _Collector:
    def __init__(self, site: Site, images: int) -> None:
        self.site = site
        #: sums, squares and peaks
        self.rows = tuple(_Rows(images) for _ in range(3))
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.call_positions: list[int] = []
        self.positions = 1
        self.seconds = 0.0

    def add(self, values: Tensor) -> None:
        start = time.perf_counter()
        values = values.detach().float()
        if self.site.channel_dim == -1:
            values = values.movedim(-1, 1)
        values = values.flatten(2) if values.dim() > 2 else values.unsqueeze(-1)
        self.call_positions.append(values.shape[-1])
        # float64 sums: the divergence subtracts nearly equal numbers, whatever the batch size.
        wide = values.double()
        part = (wide.sum(-1), wide.square().sum(-1), values.amax(-1))
        self.calls.append((part[0].cpu(), part[1].cpu(), part[2].cpu()))
        self.seconds += time.perf_counter() - start

    def end_batch(self) -> None:
        """Count what a layer saw in several calls of one pass as positions of the same images."""
        sums, squares, peaks = (torch.stack(list(p)) for p in zip(*self.calls, strict=True))
        parts = sums.sum(0), squares.sum(0), peaks.amax(0)
        for rows, part in zip(self.rows, parts, strict=True):
            rows.append(part)
        self.positions = sum(self.call_positions)
        self.calls.clear()
        self.call_positions.clear()

    def result(self) -> SiteProfile:
        sums, squares, peaks = (rows.result() for rows in self.rows)
        return SiteProfile(
            site=self.site, sums=sums, squares=squares, peaks=peaks, positions=self.positions
        )


def _hook(collector: _Collector, *, takes_input: bool) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        collector.add(args[0] if takes_input else output)

    return hook


def profile(suspect: Suspect, images: Tensor, *, batch_size: int = 128) -> Profile:
    """Run `images` through the suspect once and collect what scanners share.

    Args:
        suspect: in a borrow.
        images: ``(N, C, H, W)`` float in [0, 1].
        batch_size: bounds memory; changes no statistic beyond rounding.

    Returns:
        The profile; N forward passes are counted.
    """
    collectors = [_Collector(site, len(images)) for site in suspect.sites]
    handles = [
        suspect.module.get_submodule(c.site.name).register_forward_hook(
            _hook(c, takes_input=c.site.kind is SiteKind.BATCHNORM)
        )
        for c in collectors
    ]
    logits: list[Tensor] = []
    features: list[Tensor] = []
    start = time.perf_counter()
    has_cheap_head = suspect.split is not None and suspect.split.method == "graph"
    try:
        with torch.no_grad():
            for batch in images.split(batch_size):
                if has_cheap_head:
                    h = suspect.features(batch)
                    features.append(h)
                    logits.append(suspect.head(h).cpu())
                else:
                    logits.append(suspect.logits(batch).cpu())
                for collector in collectors:
                    collector.end_batch()
    finally:
        for handle in handles:
            handle.remove()
    seconds = time.perf_counter() - start - sum(c.seconds for c in collectors)
    return Profile(
        logits=torch.cat(logits),
        features=torch.cat(features) if features else None,
        sites=tuple(c.result() for c in collectors),
        seconds_per_image=seconds / max(1, len(images)),
    )
