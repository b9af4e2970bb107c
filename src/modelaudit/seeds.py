"""Seeds derived by hashing, so that adding a component changes no other component's draws."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for the component that `parts` name.

    Example:
        >>> derive_seed(0, "ban") == derive_seed(0, "ban")
        True
    """
    text = "\x1f".join([str(run_seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, *parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed`; its draws are the same on every device."""
    import torch

    return torch.Generator().manual_seed(derive_seed(run_seed, *parts))
