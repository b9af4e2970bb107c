"""Borrow a stranger's module and give it back bit for bit, on success, error and interrupt."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer, non-persistent ones included, by qualified name."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def state_digest(module: nn.Module) -> str:
    """Hash everything that a scanner could leave behind.

    Covers values of parameters and buffers, ``requires_grad``, gradients, train/eval flags, hooks,
    and attributes set on instances (a replaced ``forward``, parametrisations).

    Returns:
        A SHA-256 hex digest; equal before and after a borrow.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(module).items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.requires_grad}".encode())
        digest.update(f"grad:{tensor.grad is not None}".encode())
        for values in (tensor, tensor.grad):
            if values is not None:
                raw = values.detach().cpu().contiguous().reshape(-1)
                digest.update(raw.view(torch.uint8).numpy().tobytes())
    for name, child in module.named_modules(remove_duplicate=False):
        attributes = sorted(k for k in vars(child) if k != "_parameters")
        hooks = [(k, len(v)) for k, v in sorted(vars(child).items()) if k.endswith("_hooks") and v]
        digest.update(
            f"{name}{type(child).__qualname__}{child.training}{attributes}{hooks}".encode()
        )
    return digest.hexdigest()


@contextmanager
def borrowed(module: nn.Module) -> Generator[nn.Module]:
    """Yield `module` in eval mode with every ``requires_grad`` off, and restore it on every exit.

    What is restored: parameter and buffer objects and their values, gradients, ``requires_grad``,
    train/eval per module, hooks, parametrisations, submodules, and instance attributes such as a
    replaced ``forward``.
    """
    tensors = _tensors(module)
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    flags = {name: tensor.requires_grad for name, tensor in tensors.items()}
    # A backward pass adds to the gradient in place, so that its values are kept too.
    grads = {
        name: (tensor.grad, tensor.grad.detach().clone())
        for name, tensor in tensors.items()
        if tensor.grad is not None
    }
    attributes: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
    for child in module.modules():
        saved = {k: (v.copy() if isinstance(v, dict) else v) for k, v in vars(child).items()}
        attributes.append((child, type(child), saved))
    try:
        module.eval()
        for tensor in tensors.values():
            if tensor.requires_grad:
                tensor.requires_grad_(False)
        yield module
    finally:
        for child, kind, saved in attributes:
            # A parametrisation gives the layer another class.
            child.__class__ = kind
            _restore_attributes(child, saved)
        for name, tensor in tensors.items():
            tensor.requires_grad_(False)
            tensor.copy_(values[name])
            tensor.requires_grad_(flags[name])
            grad, grad_values = grads.get(name, (None, None))
            if grad is not None and grad_values is not None:
                grad.detach().copy_(grad_values)
            tensor.grad = grad


def _restore_attributes(child: nn.Module, saved: dict[str, Any]) -> None:
    current = vars(child)
    for key in [k for k in current if k not in saved]:
        del current[key]
    for key, value in saved.items():
        held = current.get(key)
        # The dictionary objects themselves are kept: hook handles refer to them.
        if isinstance(value, dict) and isinstance(held, dict):
            held.clear()
            held.update(value)
        else:
            current[key] = value
