"""Argument checks that the functional modules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.errors import DtypeError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


def require_floating(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not real floating point.

    Raises:
        DtypeError: `tensor` has an integer, boolean or complex dtype.
    """
    if not tensor.is_floating_point():
        raise DtypeError(f"{name} must be floating point, got {tensor.dtype}")


def require_float64(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose sums were not accumulated in double precision.

    Raises:
        DtypeError: `tensor` is not float64.
    """
    if tensor.dtype != torch.float64:
        raise DtypeError(
            f"{name} must be float64, got {tensor.dtype}; accumulate it in double precision"
        )


def require_integer(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that does not hold class indices or counts.

    Raises:
        DtypeError: `tensor` is floating point, complex or boolean.
    """
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise DtypeError(f"{name} must be an integer tensor, got {tensor.dtype}")


def require_dimensions(name: str, tensor: Tensor, dimensions: int) -> None:
    """Refuse a tensor with another number of dimensions.

    Raises:
        ShapeError: ``tensor.ndim`` is not `dimensions`.
    """
    if tensor.ndim != dimensions:
        raise ShapeError(
            f"{name} must have {dimensions} dimension(s), got shape {tuple(tensor.shape)!r}"
        )


def require_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors whose entries do not belong together.

    Raises:
        ShapeError: the shapes differ.
    """
    if tensor.shape != other.shape:
        raise ShapeError(
            f"{name} and {other_name} must have the same shape, got {tuple(tensor.shape)!r} and "
            f"{tuple(other.shape)!r}"
        )
