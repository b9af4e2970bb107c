"""Upper bound of how strongly one channel of a convolution with BatchNorm can respond (CLP)."""

from __future__ import annotations

import torch
from torch import Tensor

from modelaudit.errors import ShapeError
from modelaudit.functional._checks import require_floating


def channel_lipschitz(weight: Tensor, gamma: Tensor, running_var: Tensor, *, eps: float) -> Tensor:
    """Return each output channel's largest response to an input of unit norm at one position.

    [CLP22] as the code that accompanies [DDE22] has it (methods/repairs.md §11b): the largest
    singular value of the channel's filter as a ``(C_in, kernel)`` matrix, times ``|gamma| /
    sqrt(variance)``. Differs: the layer's eps is added to the variance, as the layer itself does,
    so that a dead channel gives no infinity. BatchNorm statistics that were re-parameterised at
    equal function leave the score as it is.

    Args:
        weight: filters. Shape ``(D, C_in)`` or ``(D, C_in, *kernel)``, floating, any device.
        gamma: BatchNorm weight, ``(D,)``, floating.
        running_var: BatchNorm running variance, ``(D,)``, not negative.
        eps: the layer's eps, positive.

    Returns:
        Shape ``(D,)``, float64, device of `weight`; not negative. NaN where an entry is not finite.

    Raises:
        ShapeError: the shapes do not belong together.
        DtypeError: an argument is not floating point.
    """
    arguments = (("weight", weight), ("gamma", gamma), ("running_var", running_var))
    for name, tensor in arguments:
        require_floating(name, tensor)
    channels = len(weight)
    if weight.dim() < 2 or gamma.shape != (channels,) or running_var.shape != (channels,):
        raise ShapeError(
            f"expected filters (D, C_in, ...) with gamma and variance (D,), got "
            f"{tuple(weight.shape)}, {tuple(gamma.shape)} and {tuple(running_var.shape)}"
        )
    filters, scale, variance = (tensor.detach().double() for _, tensor in arguments)
    filters = filters.flatten(2) if filters.dim() > 2 else filters.unsqueeze(-1)
    finite = filters.isfinite().all(-1).all(-1)
    # The decomposition does not take values that are not finite.
    norms = torch.linalg.matrix_norm(torch.where(finite.view(-1, 1, 1), filters, 0.0), ord=2)
    norms = torch.where(finite, norms, torch.full_like(norms, torch.nan))
    return norms * scale.abs() / (variance + eps).sqrt()
