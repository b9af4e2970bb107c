"""Spatial attention of feature maps and its distance between two networks (NAD)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.errors import ShapeError
from modelaudit.functional._checks import require_dimensions, require_floating, require_same_shape

if TYPE_CHECKING:
    from torch import Tensor

#: Added to the norm, so that a map that is zero everywhere stays zero; as the authors' code has it.
_EPS = 1e-6


def attention_map(features: Tensor, *, power: float = 2.0) -> Tensor:
    """Return where in the image the channels are active: sum over c of |F_c|^p, at unit norm.

    [NAD21] Eq. (1) with the operator A_sum^p, normalised as Eq. (2) does. The scale of the features
    plays no part.

    Args:
        features: F. Shape ``(N, C, H, W)`` with more than one place, floating, any device.
        power: p, positive; the paper's is 2.

    Returns:
        Shape ``(N, H, W)``, float32 or float64 where `features` are, not negative, each map's
        Frobenius norm at most 1; differentiable. Features that are zero give a map of zeros.

    Raises:
        ShapeError: `features` are not 4-D, or have a single place: its map is the constant 1, which
            teaches nothing.
        DtypeError: `features` are not floating point.
    """
    require_floating("features", features)
    require_dimensions("features", features, 4)
    if features.shape[2] * features.shape[3] < 2:
        raise ShapeError(
            f"features must have more than one place, got shape {tuple(features.shape)!r}; take "
            "them before the pooling"
        )
    wide = features if features.dtype.itemsize == 8 else features.float()
    energy = wide.abs().pow(power).sum(1)
    norm: Tensor = energy.flatten(1).norm(dim=1).view(-1, 1, 1)
    return energy / (norm + _EPS)


def attention_distance(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Return the mean squared difference of two networks' attention maps.

    [NAD21] Eq. (2); their code takes the mean over images and places where the paper has a norm.

    Args:
        student: features of one stage. Shape ``(N, C, H, W)``, floating, any device.
        teacher: those of the other network, same images, same size of map; C may differ.
        power: p of `attention_map`.

    Returns:
        Scalar, dtype as `attention_map`'s, not negative, dimensionless; differentiable.

    Raises:
        ShapeError: the maps' shapes differ, or `attention_map` refuses them.
        DtypeError: features that are not floating point.
    """
    one = attention_map(student, power=power)
    other = attention_map(teacher, power=power)
    require_same_shape("the student's map", one, "the teacher's map", other)
    return (one - other).square().mean()
