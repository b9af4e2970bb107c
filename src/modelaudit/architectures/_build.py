"""Building a candidate, on ``meta`` to look at it and on the CPU to run it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from modelaudit.errors import UnknownArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from modelaudit.architectures.base import Candidate
    from modelaudit.weights import Weights

_LOG = logging.getLogger(__name__)
_COUNTER = ".num_batches_tracked"


def on_meta(build: Callable[[], nn.Module]) -> nn.Module | None:
    """Return the module without memory for its weights, or None where torch refuses to make it."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return build()
    except (RuntimeError, ValueError, KeyError) as err:
        # read off an untrusted file's shapes: sizes that torch refuses or names that a module
        # cannot have
        _LOG.debug("a proposal cannot be built: %s", err)
        return None


def _found(tensor: Tensor, expected: Tensor) -> str | None:
    """Return how a tensor of the file differs from the module's, or None where it does not."""
    if tensor.shape != expected.shape:
        return str(tuple(tensor.shape))
    if expected.is_floating_point() and not tensor.is_floating_point():
        return f"{tuple(tensor.shape)} of {tensor.dtype}"
    return None


def compare(module: nn.Module, weights: Weights, rename: Callable[[str], str]) -> tuple[int, str]:
    """Compare a module's keys and shapes with the file's, name by name.

    A batch counter that the file lacks is no difference; everything else is.

    Args:
        module: built from a candidate; ``meta`` suffices.
        weights: the file's tensors.
        rename: file key to module key.

    Returns:
        How many keys agree, and the first difference in words (module order, then surplus keys in
        file order), empty where there is none.
    """
    expected = module.state_dict()
    by_key: dict[str, Tensor] = {}
    difference = ""
    for key, tensor in weights.tensors.items():
        name = rename(key)
        if name in by_key:
            difference = f"{name!r} expected once, found also as {key!r}"
        by_key[name] = tensor
    agreeing = 0
    for key, wanted in expected.items():
        tensor_or_none = by_key.get(key)
        if tensor_or_none is None:
            found = None if key.endswith(_COUNTER) else "nothing"
        else:
            found = _found(tensor_or_none, wanted)
            agreeing += found is None
        if found is not None and not difference:
            difference = f"{key!r} expected {tuple(wanted.shape)}, found {found}"
    if not difference:
        surplus = next((key for key in by_key if key not in expected), None)
        if surplus is not None:
            shape = tuple(by_key[surplus].shape)
            difference = f"{surplus!r} expected nothing, found {shape}"
    return agreeing, difference


def _is_covered(module: nn.Module, state: dict[str, Tensor]) -> bool:
    """Return whether the state dict holds every tensor that the module could read."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    if any(name not in state for name, _ in named):
        return False
    return not any(
        isinstance(value, torch.Tensor)
        for part in module.modules()
        for value in vars(part).values()
    )


def load(candidate: Candidate, weights: Weights) -> nn.Module:
    """Build a candidate and copy the weights into it, every tensor by its name.

    torch's global random state is as before on return.

    Args:
        candidate: one of `identify`'s.
        weights: the file's tensors.

    Returns:
        The module in evaluation mode on the CPU: floating tensors in float32, copied; integer
        tensors in the module's dtype; no parameter requires a gradient.

    Raises:
        UnknownArchitectureError: the candidate has not exactly the file's keys and shapes.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = candidate.build()
    _, difference = compare(module, weights, candidate.rename)
    if difference:
        raise UnknownArchitectureError(
            f"the weights are not those of {candidate.name}: first differing key {difference}; "
            "pass another --arch",
            closest=(f"{candidate.name}: first differing key {difference}",),
        )
    by_key = {candidate.rename(key): tensor for key, tensor in weights.tensors.items()}
    state: dict[str, Tensor] = {}
    for key, wanted in module.state_dict().items():
        dtype = torch.float32 if wanted.is_floating_point() else wanted.dtype
        # only a batch counter may be missing; it changes nothing in evaluation mode
        source = by_key.get(key, torch.zeros(wanted.shape, dtype=dtype))
        state[key] = source.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
    if _is_covered(module, state):
        module.load_state_dict(state, strict=True, assign=True)
    else:
        # constants that the constructor computes and no state dict carries exist only in a real
        # build
        with torch.random.fork_rng(devices=[]):
            module = candidate.build()
        module = module.to(device="cpu", dtype=torch.float32)
        module.load_state_dict(state, strict=True)
    return module.eval().requires_grad_(requires_grad=False)
