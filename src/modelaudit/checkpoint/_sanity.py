"""Refuse weights that no verdict can be based on: not finite, or with negative variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.errors import CorruptCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Require finite weights and BatchNorm variances of at least zero.

    Args:
        tensors: state-dict key to tensor, any shape and dtype, CPU.

    Raises:
        CorruptCheckpointError: a tensor holds NaN or an infinity, or a ``running_var`` is negative.
    """
    bad = [key for key, t in tensors.items() if t.is_floating_point() and not _is_finite(t)]
    if bad:
        kind = "NaN" if any(bool(tensors[key].isnan().any()) for key in bad) else "infinities"
        raise CorruptCheckpointError(
            f"{len(bad)} of {len(tensors)} tensors hold {kind} "
            f"(first: {escape_untrusted(bad[0])}); a verdict would be meaningless"
        )
    for key, tensor in tensors.items():
        if key.rpartition(".")[2] == "running_var" and bool((tensor < 0).any()):
            raise CorruptCheckpointError(
                f"tensor '{escape_untrusted(key)}' is a variance and holds negative values; "
                "a verdict would be meaningless"
            )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
