"""Divergence between a BatchNorm layer's statistics and those of clean images (MBNS).

x is a BatchNorm layer's input; its statistics run over images and positions. Sample statistics come
from sums that one pass over the images accumulates, so nothing here depends on the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelaudit.errors import DegenerateStatisticError, ShapeError
from modelaudit.functional._checks import (
    require_dimensions,
    require_float64,
    require_floating,
    require_same_shape,
)

#: Below this variance a channel is dead and its divergence undefined (methods/detectors.md §2.6).
MIN_VARIANCE = 1e-10


def gaussian_kl(mean_sample: Tensor, var_sample: Tensor, mean_bn: Tensor, var_bn: Tensor) -> Tensor:
    """Return KL(N(mean_sample, var_sample) ‖ N(mean_bn, var_bn)) of each channel.

    [DDE22] Eq. (5): ln(σ̃/σ̄) + (σ̄² + (μ̄ - μ̃)²) / (2σ̃²) - ½, with μ̄, σ̄² of the clean images
    and μ̃, σ̃² of the BatchNorm layer. The first argument of the divergence is the sample.

    Args:
        mean_sample: Shape ``(D,)`` (or any), floating, any device.
        var_sample: as `mean_sample`, unbiased variance.
        mean_bn: as `mean_sample`; the layer's running mean.
        var_bn: as `mean_sample`; the layer's running variance, without its eps.

    Returns:
        Shape and device of `mean_sample`, float64; nats, not negative. NaN where either variance is
        below 1e-10 (a dead channel) or an argument is NaN.

    Raises:
        ShapeError: the shapes differ.
        DtypeError: an argument is not floating point.
    """
    arguments = (
        ("mean_sample", mean_sample),
        ("var_sample", var_sample),
        ("mean_bn", mean_bn),
        ("var_bn", var_bn),
    )
    for name, tensor in arguments:
        require_floating(name, tensor)
        require_same_shape(name, tensor, "mean_sample", mean_sample)
    mean, var, bn_mean, bn_var = (tensor.detach().to(torch.float64) for _, tensor in arguments)
    alive = (var >= MIN_VARIANCE) & (bn_var >= MIN_VARIANCE)
    divergence = _kl(mean, var, bn_mean, bn_var)
    return torch.where(alive, divergence, torch.full_like(divergence, torch.nan))


def _kl(mean: Tensor, var: Tensor, bn_mean: Tensor, bn_var: Tensor) -> Tensor:
    # With r = σ̄²/σ̃² the variance part is ½(r - 1 - ln r); for nearly equal variances log1p keeps
    # the digits that the difference would lose. Rounding may still leave -1e-17, and a divergence
    # is not negative.
    excess = (var - bn_var) / bn_var
    shift = (mean - bn_mean).square() / bn_var
    return (0.5 * (excess - torch.log1p(excess) + shift)).clamp_min(0.0)


def pooled_moments(sums: Tensor, squares: Tensor, count: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance from a sum and a sum of squares, weighted or not.

    Args:
        sums: Σx of each channel. Shape ``(..., D)``, float64, any device.
        squares: Σx² of each channel, same shape, float64.
        count: number of values that were summed, or the sum of their weights, at least 2; a tensor
            that broadcasts against `sums` where rows differ.

    Returns:
        Mean and variance (divisor `count` - 1, clamped at zero against rounding), shape and device
        of `sums`, float64.

    Raises:
        DegenerateStatisticError: fewer than two values.
        ShapeError: the shapes differ.
        DtypeError: a sum is not float64: in single precision the variance of a channel far from
            zero is lost.
    """
    require_float64("sums", sums)
    require_float64("squares", squares)
    require_same_shape("squares", squares, "sums", sums)
    least = float(torch.as_tensor(count).min())
    if least < 2:
        raise DegenerateStatisticError(f"a variance needs at least two values, got {least:g}")
    mean = sums / count
    variance = (squares - sums * mean) / (count - 1)
    return mean, variance.clamp_min(0.0)


def bootstrap_effective_size(
    image_sums: Tensor,
    image_squares: Tensor,
    positions: int,
    *,
    image_weights: Tensor | None = None,
    resamples: int = 200,
    generator: torch.Generator,
) -> Tensor:
    """Return how many independent values each channel's statistics are worth.

    [O] methods/detectors.md §2.2: the divergence of n independent values from their own
    distribution is 1/n on average, but neighbouring positions are alike. Images are resampled with
    replacement, the divergence of each resample from the full sample is averaged, and n_eff is its
    inverse. A weight goes with its image, so that uneven weights lower n_eff. No forward pass.

    Args:
        image_sums: Σx over the positions of each image. Shape ``(N, D)``, float64, any device.
        image_squares: Σx² likewise.
        positions: H·W, positions per image.
        image_weights: of the images, ``(N,)`` float64, mean 1; None for equal ones.
        resamples: number of bootstrap resamples; at 200 the relative error of n_eff is about a
            tenth.
        generator: CPU generator that draws the resamples.

    Returns:
        Shape ``(D,)``, float64, device of `image_sums`; number of values, between about N and
        N·H·W. NaN for dead channels (variance below 1e-10); 0 for a channel so sparse that a
        resample was constant: its statistics say nothing.

    Raises:
        DegenerateStatisticError: fewer than two images.
        ShapeError: the shapes differ or are not ``(N, D)``.
        DtypeError: a sum is not float64.
        ValueError: `positions` or `resamples` is not positive.
    """
    require_dimensions("image_sums", image_sums, 2)
    require_float64("image_sums", image_sums)
    require_float64("image_squares", image_squares)
    require_same_shape("image_squares", image_squares, "image_sums", image_sums)
    if positions < 1 or resamples < 1:
        raise ValueError(
            f"positions and resamples must be positive, got {positions!r} and {resamples!r}"
        )
    images = image_sums.shape[0]
    if images < 2:
        raise DegenerateStatisticError(f"a bootstrap needs at least two images, got {images}")
    each = torch.ones(images, dtype=torch.float64) if image_weights is None else image_weights.cpu()
    drawn = torch.randint(images, (resamples, images), generator=generator)
    weights = torch.zeros(resamples, images, dtype=torch.float64)
    weights.scatter_add_(1, drawn, each[drawn])
    weights, each = weights.to(image_sums.device), each.to(image_sums.device)
    mean, variance = pooled_moments(
        each @ image_sums, each @ image_squares, float(each.sum()) * positions
    )
    means, variances = pooled_moments(
        weights @ image_sums, weights @ image_squares, weights.sum(1, keepdim=True) * positions
    )
    divergence = _kl(means, variances, mean, variance).mean(0)
    # Resamples of a channel that varies only within each image agree to the last digit, which would
    # be worth endlessly many values; twice as many as there are leaves room for the bootstrap's own
    # error.
    size = divergence.reciprocal().clamp_max(2.0 * images * positions)
    return torch.where(variance >= MIN_VARIANCE, size, torch.full_like(size, torch.nan))


def layer_outliers(divergence: Tensor, *, u: float) -> Tensor:
    """Return the channels of one layer whose divergence exceeds mean + u · sd.

    [DDE22] §4.4, as their code has it: the paper's sign is a typing error, backdoor channels have a
    *large* divergence. sd has divisor D - 1.

    Args:
        divergence: Shape ``(D,)``, floating, any device; NaN entries are left out.
        u: the method's one parameter; 3 for CIFAR-10, 4 for Tiny-ImageNet.

    Returns:
        Ascending channel indices, shape ``(M,)``, int64, device of `divergence`; empty when fewer
        than two channels are numbers.

    Raises:
        ShapeError: `divergence` is not 1-D.
        DtypeError: `divergence` is not floating point.
    """
    require_dimensions("divergence", divergence, 1)
    require_floating("divergence", divergence)
    values = divergence.detach().to(torch.float64)
    valid = values[~values.isnan()]
    if valid.numel() < 2:
        return torch.empty(0, dtype=torch.int64, device=divergence.device)
    return (values > valid.mean() + u * valid.std()).nonzero().flatten()


def reparameterised_batchnorm(
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    new_mean: Tensor,
    new_var: Tensor,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return the affine parameters with which other running statistics give the same function.

    The adaptive attack of [DDE22] against MBNS, corrected (methods/detectors.md §2.4):
    γ = γ̃σ/σ̃ and β = β̃ + γ̃(μ - μ̃)/σ̃ with σ = √(var + eps); the printed formula drops γ̃.

    Args:
        weight: γ̃. Shape ``(D,)``, floating, any device.
        bias: β̃, same shape.
        running_mean: μ̃, same shape.
        running_var: σ̃², same shape.
        new_mean: μ that is to replace the running mean, same shape.
        new_var: σ² that is to replace the running variance, same shape.
        eps: the layer's eps.

    Returns:
        New weight and bias, shape, dtype and device of `weight`; computed in float64.

    Raises:
        ShapeError: the shapes differ.
    """
    others = {
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "new_mean": new_mean,
        "new_var": new_var,
    }
    if any(tensor.shape != weight.shape for tensor in others.values()):
        shapes = {name: tuple(tensor.shape) for name, tensor in others.items()}
        raise ShapeError(
            f"all parameters must have the shape {tuple(weight.shape)!r}, got {shapes!r}"
        )
    gamma, beta, old_mean, old_var, mean, var = (
        tensor.detach().to(torch.float64) for tensor in (weight, *others.values())
    )
    scale = gamma / (old_var + eps).sqrt()
    new_weight = scale * (var + eps).sqrt()
    new_bias = beta + scale * (mean - old_mean)
    return new_weight.to(weight.dtype), new_bias.to(weight.dtype)
