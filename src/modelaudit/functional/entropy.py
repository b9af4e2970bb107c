"""Differential entropy of standardised pre-activations, one value per channel (DDE).

Each estimator takes one scalar per image and channel (the maximum over positions of a BatchNorm
layer's input), standardises every channel by its own mean and unbiased standard deviation, and is
therefore blind to scale and shift. A standard normal has ½ ln(2πe) = 1.4189 nats, the most that
unit variance allows; a mixture of two separated modes has less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modelaudit.errors import DegenerateStatisticError
from modelaudit.functional._checks import require_dimensions, require_floating

#: The grid of `histogram_entropy` covers this many standard deviations on either side.
GRID_EXTENT = 8.0

#: Smallest spacing that float32 activations resolve, in standard deviations.
_MIN_SPACING = 1e-6


def _standardised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the non-constant finite channels, standardised in float64, and which ones they are.

    Returns:
        ``(N, M)`` float64 and a boolean ``(D,)`` with M true entries.
    """
    require_dimensions("values", values, 2)
    require_floating("values", values)
    if values.shape[0] < 2:
        raise DegenerateStatisticError(
            f"an entropy needs at least two images, got {values.shape[0]}"
        )
    exact = values.detach().to(torch.float64)
    varies = exact.isfinite().all(0) & (exact.amax(0) > exact.amin(0))
    exact = exact[:, varies]
    centred = exact - exact.mean(0)
    spread = (centred.square().sum(0) / (exact.shape[0] - 1)).sqrt()
    return centred / spread, varies


def _scattered(entropy: Tensor, varies: Tensor) -> Tensor:
    out = entropy.new_full(varies.shape, torch.nan)
    out[varies] = entropy
    return out


def histogram_entropy(values: Tensor, *, width: float = 0.1) -> Tensor:
    """Estimate each channel's differential entropy from a histogram on a fixed grid.

    [DDE22] §4.2. Differs from the authors' code (`histogram_entropy_paper`): the grid is
    anchored at -8 for every channel, where theirs begins at the layer's minimum and shifts with any
    outlier; no value is dropped; the width is 0.1, which separates a 5 % mixture from a Gaussian by
    18 instead of 6 standard errors at N = 500; and ln(width) is added, so that the result is on the
    continuous scale.

    Args:
        values: pre-activations. Shape ``(N, D)``, floating, any device, N at least 2.
        width: bin width in standard deviations. Values beyond 8 standard deviations count in the
            outermost bin.

    Returns:
        Shape ``(D,)``, float64, device of `values`; nats. NaN for constant channels and those with
        a NaN or infinite value. Biased low at small N, alike for all channels.

    Raises:
        DegenerateStatisticError: fewer than two images.
        ShapeError: `values` is not 2-D.
        DtypeError: `values` is not floating point.
        ValueError: `width` is outside (0, 16].
    """
    if not 0.0 < width <= 2.0 * GRID_EXTENT:
        raise ValueError(f"width must be in (0, {2.0 * GRID_EXTENT}], got {width!r}")
    standard, varies = _standardised(values)
    images, channels = standard.shape
    bins = math.ceil(2.0 * GRID_EXTENT / width)
    index = ((standard + GRID_EXTENT) / width).floor().to(torch.int64).clamp_(0, bins - 1)
    index += bins * torch.arange(channels, device=index.device)
    counts = torch.bincount(index.flatten(), minlength=bins * channels).view(channels, bins)
    shares = counts.to(torch.float64) / images
    return _scattered(torch.special.entr(shares).sum(1) + math.log(width), varies)


def histogram_entropy_paper(values: Tensor, *, width: float = 0.01) -> Tensor:
    """Estimate each channel's discrete entropy as the authors' released code does.

    [DDE22] code: ⌊range / width⌋ bins from the minimum over all channels of the layer; both edges
    of a bin are strict, so the minimum and any value on an edge are dropped, as is what lies beyond
    the last bin; H = -Σ p ln p with p a share of all images, without ln(width). For reproduction
    only.

    Args:
        values: pre-activations of one layer. Shape ``(N, D)``, floating, any device, N at least 2.
        width: bin width in standard deviations.

    Returns:
        Shape ``(D,)``, float64, device of `values`; nats, discrete scale (h ≈ H + ln width). NaN
        for constant channels and those with a NaN or infinite value.

    Raises:
        DegenerateStatisticError: fewer than two images.
        ShapeError: `values` is not 2-D.
        DtypeError: `values` is not floating point.
        ValueError: `width` is not positive.
    """
    if not width > 0.0:
        raise ValueError(f"width must be positive, got {width!r}")
    standard, varies = _standardised(values)
    images, channels = standard.shape
    if channels == 0:
        return _scattered(standard.new_empty(0), varies)
    lowest = standard.min()
    bins = int((standard.max() - lowest) / width)
    edges = lowest + width * torch.arange(bins + 1, dtype=torch.float64, device=values.device)
    index = torch.bucketize(standard, edges, right=True) - 1
    inside = (index < bins) & (standard > edges[index])
    # Counting the occupied bins alone keeps memory at N·D, however fine the grid.
    channel = torch.arange(channels, device=index.device).expand_as(index)
    cells = (index + bins * channel)[inside].sort().values
    ends = torch.cat([cells.diff() != 0, cells.new_ones(1, dtype=torch.bool)])[: cells.numel()]
    last = ends.nonzero().flatten()
    counts = last.diff(prepend=last.new_full((1,), -1))
    terms = torch.special.entr(counts.to(torch.float64) / images)
    entropy = standard.new_zeros(channels).index_add_(0, cells[last] // max(bins, 1), terms)
    return _scattered(entropy, varies)


def vasicek_entropy(values: Tensor) -> Tensor:
    """Estimate each channel's differential entropy from the spacings of its sorted values.

    [VASICEK76]: mean over i of ln(N / (2m) · (x_(i+m) - x_(i-m))), order statistics
    beyond the ends being the extremes, with m = ⌊√N⌋. Differs: a spacing below 1e-6 standard
    deviations (values that float32 cannot tell apart) counts as 1e-6, so that ties do not give
    minus infinity.

    Args:
        values: pre-activations. Shape ``(N, D)``, floating, any device, N at least 2.

    Returns:
        Shape ``(D,)``, float64, device of `values`; nats. NaN for constant channels and those with
        a NaN or infinite value.

    Raises:
        DegenerateStatisticError: fewer than two images.
        ShapeError: `values` is not 2-D.
        DtypeError: `values` is not floating point.
    """
    standard, varies = _standardised(values)
    images = standard.shape[0]
    m = math.isqrt(images)
    ordered = standard.sort(dim=0).values
    position = torch.arange(images, device=ordered.device)
    above = ordered[(position + m).clamp_max(images - 1)]
    below = ordered[(position - m).clamp_min(0)]
    spacing = (above - below).clamp_min(_MIN_SPACING)
    return _scattered(torch.log(spacing * (images / (2 * m))).mean(0), varies)
