"""How far each channel's running statistics are from clean images, in sampling floors.

What MBNS and the repairs that prune by it share. The clean images are weighted so that, mixed as
the training images were, they explain as much as they can (`matching_weights`): class shares,
lighting and duplicates differ between any two samples, and move every channel a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.divergence import (
    bootstrap_effective_size,
    gaussian_kl,
    pooled_moments,
)
from modelaudit.functional.reweighting import matching_weights
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.scanners._channels import Neuron
    from modelaudit.suspect import Profile, Suspect
    from modelaudit.suspect.profile import SiteProfile

#: variance below which a running deviation is taken as this, so that nothing divides by zero
_LEAST_VARIANCE = 1e-10
_UPPER_QUARTILE = 0.75
#: of the square of a normal variable, 1.3233 / 0.4549; a divergence is a sum of two such squares
_UPPER_TO_MEDIAN = 2.909


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """K of every channel of every BatchNorm layer, flattened in execution order.

    Attributes:
        neurons: (layer, channel).
        divergence: K in nats, ``(D_total,)`` float64; NaN for dead channels.
        floor_ratio: K · n_eff, 1 on average where only sampling separates the two; 0 where K is
            NaN.
        unweighted_ratio: the same with all images alike, ``(D_total,)``.
        shift: (running mean - sample mean) in running standard deviations, ``(D_total,)``.
        deviation: running standard deviation, ``(D_total,)``.
        image_weights: of the clean images, ``(N,)`` float64, mean 1.
    """

    neurons: tuple[Neuron, ...]
    divergence: Tensor
    floor_ratio: Tensor
    unweighted_ratio: Tensor
    shift: Tensor
    deviation: Tensor
    image_weights: Tensor

    @property
    def alive(self) -> Tensor:
        """Which channels say anything, ``(D_total,)`` bool."""
        return self.divergence.isfinite() & (self.floor_ratio > 0)

    def scores(self) -> Tensor:
        """Return each channel's floor ratio in units of its layer's, ``(D_total,)`` float64.

        [O] The unit is the upper quartile of the layer's live channels, at least 1: what is left of
        a mismatch that no mixture of the images explains (a generalisation gap, another domain)
        lies on a layer as a whole, while a trigger moves few channels of some layer. Where a
        trigger moves more than a quarter of them, what the median says of that quartile is less,
        and is taken instead.
        """
        scores = self.floor_ratio.clone()
        for rows in self._layers():
            scores[rows] /= self._unit(rows)
        return scores

    def traces(self) -> Tensor:
        """Return floor ratios in units of the median channel's, at least 1, ``(D_total,)``.

        Half of all channels hold no trace of a trigger: their median says how well the images
        match. Unlike scores these compare channels of different layers.
        """
        return self.floor_ratio / max(1.0, float(self.floor_ratio[self.alive].median()))

    def traced(self, least: float, *, suspicious: float) -> Tensor:
        """Return which channels carry a trace, ``(D_total,)`` bool.

        By the floor alone: an early trace and what later layers make of it act together.

        Args:
            least: of `traces`.
            suspicious: of `scores`; what raised the alarm carries a trace in any case.
        """
        return (self.traces() >= least) | (self.scores() >= suspicious)

    def unnoticed(self, score: float) -> float:
        """Return the divergence in nats that just reaches `score`, in the median layer.

        What a trigger has to leave behind to be seen: it grows where images are few, and where they
        do not match what the statistics were collected on.
        """
        least = []
        for rows in self._layers():
            live = rows[self.alive[rows]]
            if len(live):
                size = (self.floor_ratio[live] / self.divergence[live]).median()
                least.append(score * self._unit(rows) / float(size))
        return float(torch.tensor(least, dtype=torch.float64).median())

    def _layers(self) -> list[Tensor]:
        """Return the rows of each layer's channels."""
        rows: dict[str, list[int]] = {}
        for row, (layer, _) in enumerate(self.neurons):
            rows.setdefault(layer, []).append(row)
        return [torch.tensor(r) for r in rows.values()]

    def _unit(self, rows: Tensor) -> float:
        live = self.floor_ratio[rows[self.alive[rows]]]
        if not len(live):
            return 1.0
        upper = float(live.quantile(_UPPER_QUARTILE, interpolation="lower"))
        return max(1.0, min(upper, _UPPER_TO_MEDIAN * float(live.median())))


def divergences(
    suspect: Suspect, profile: Profile, *, resamples: int, seed: int, ridge: float | None = None
) -> Divergences:
    """Compute K and its sampling floor for every channel from one shared pass.

    [DDE22] §4.4 Eq. (4) in nats, first distribution the clean sample, second the layer's.

    Args:
        suspect: in a borrow.
        profile: of the clean images.
        resamples: bootstrap resamples for the sampling floor.
        seed: of the run.
        ridge: see `matching_weights`; None weighs all images alike.
    """
    recorded = [r for r in profile.sites if r.site.has_statistics]
    statistics = [tuple(t.cpu() for t in suspect.statistics(r.site)) for r in recorded]
    weights = torch.ones(len(profile.logits), dtype=torch.float64)
    if ridge is not None and recorded:
        weights = matching_weights(_deviations(recorded, statistics), ridge=ridge)
    neurons: list[Neuron] = []
    columns: list[tuple[Tensor, ...]] = []
    for r, (bn_mean, bn_var) in zip(recorded, statistics, strict=True):
        count = len(weights) * r.positions
        plain = pooled_moments(r.sums.sum(0), r.squares.sum(0), count)
        mean, var = pooled_moments(weights @ r.sums, weights @ r.squares, count)
        k = gaussian_kl(mean, var, bn_mean, bn_var)
        n_eff = bootstrap_effective_size(
            r.sums,
            r.squares,
            r.positions,
            image_weights=weights,
            resamples=resamples,
            generator=generator(seed, "mbns", "bootstrap", r.site.name),
        )
        deviation = bn_var.clamp_min(_LEAST_VARIANCE).sqrt()
        ratios = (n_eff * d for d in (k, gaussian_kl(*plain, bn_mean, bn_var)))
        columns.append(
            (
                k,
                *(ratio.nan_to_num(0.0, posinf=0.0) for ratio in ratios),
                (bn_mean - mean) / deviation,
                deviation,
            )
        )
        neurons.extend((r.site.name, i) for i in range(r.site.channels))
    joined = [torch.cat(list(parts)) for parts in zip(*columns, strict=True)]
    return Divergences(
        neurons=tuple(neurons),
        divergence=joined[0],
        floor_ratio=joined[1],
        unweighted_ratio=joined[2],
        shift=joined[3],
        deviation=joined[4],
        image_weights=weights,
    )


def _deviations(recorded: list[SiteProfile], statistics: list[tuple[Tensor, ...]]) -> Tensor:
    """Return each image's deviations from the running means and variances, ``(N, 2 D_total)``.

    The mean over the training images of x - mean and of (x - mean)² - var is zero: linear in the
    images, so that weights can bring it there. In running deviations and variances; float64.
    """
    widths = [r.site.channels for r in recorded for _ in range(2)]
    deviations = torch.empty(len(recorded[0].sums), sum(widths), dtype=torch.float64)
    # Written layer by layer: with thousands of images and channels one copy of this is a gigabyte.
    columns = iter(deviations.split(widths, 1))
    for r, (bn_mean, bn_var) in zip(recorded, statistics, strict=True):
        mean, var = bn_mean.double(), bn_var.double().clamp_min(_LEAST_VARIANCE)
        first = r.sums / r.positions
        next(columns).copy_((first - mean) / var.sqrt())
        second = r.squares / r.positions - 2 * mean * first + mean.square()
        next(columns).copy_(second / var - 1)
    return deviations
