"""Steps of the adversarial search over neuron noise (BAN).

Noise multiplies the affine parameters of a neuron: γ(1 + δ), β(1 + ξ). δ and ξ are treated alike
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.functional._checks import require_floating, require_same_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def random_start(shape: Sequence[int], epsilon: float, generator: torch.Generator) -> Tensor:
    """Draw noise uniformly from [-epsilon, epsilon].

    [BAN24] §4, start of the search of Eq. (4).

    Args:
        shape: of the noise, such as ``(D,)`` or ``(R, D)``.
        epsilon: largest relative change, dimensionless, not negative.
        generator: CPU generator, so that CPU and GPU runs start alike.

    Returns:
        Shape `shape`, float32, on the CPU.

    Raises:
        ValueError: `epsilon` is negative or NaN.
    """
    _check_epsilon(epsilon)
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
    return (2.0 * uniform - 1.0) * epsilon


def sign_step(noise: Tensor, gradient: Tensor, step: float, *, epsilon: float | None) -> Tensor:
    """Return the noise after one step of sign-gradient ascent.

    [BAN24] Eq. (4): noise + step · sign(gradient), clipped to the ε-ball. Their code does not
    clip, so that its noise ranges over [-2ε, 2ε]; `epsilon` = None reproduces that.

    Args:
        noise: Any shape, floating, any device.
        gradient: of the loss that is to grow, same shape.
        step: step size, dimensionless; negative to descend.
        epsilon: largest absolute value kept, or None for no limit.

    Returns:
        A new tensor, shape, dtype and device of `noise`, detached. Where the gradient is zero the
        noise stays; where it is NaN the noise becomes NaN.

    Raises:
        ShapeError: the shapes differ.
        DtypeError: `noise` is not floating point.
        ValueError: `epsilon` is negative or NaN.
    """
    require_floating("noise", noise)
    require_same_shape("gradient", gradient, "noise", noise)
    slope = gradient.detach().to(noise.dtype)
    # torch takes the sign of NaN for zero, and a broken search would look like one at rest.
    direction = torch.where(slope.isnan(), slope, slope.sign())
    moved = noise.detach() + step * direction
    if epsilon is None:
        return moved
    _check_epsilon(epsilon)
    return moved.clamp_(-epsilon, epsilon)


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must not be negative, got {epsilon!r}")
