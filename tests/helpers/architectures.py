"""Builders for the tests of `modelaudit.architectures`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modelaudit.architectures import ArchitectureFamily, Candidate, identify, load
from modelaudit.architectures.cifar_densenet import CifarDenseNetFamily
from modelaudit.architectures.cifar_mobilenet_v2 import CifarMobileNetV2Family
from modelaudit.architectures.cifar_preact_resnet import CifarPreActResNetFamily
from modelaudit.architectures.cifar_resnet import CifarResNetFamily
from modelaudit.architectures.cifar_vgg import CifarVggFamily
from modelaudit.architectures.plain_sequence import PlainSequenceFamily
from modelaudit.architectures.torchvision_models import TorchvisionFamily
from modelaudit.architectures.wide_resnet import WideResNetFamily
from modelaudit.weights import ModuleHint, Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelaudit.weights import Attribute


def families() -> list[ArchitectureFamily]:
    """Return the built-in families in the registry's order (by id)."""
    return [
        CifarDenseNetFamily(),
        CifarMobileNetV2Family(),
        CifarPreActResNetFamily(),
        CifarResNetFamily(),
        CifarVggFamily(),
        PlainSequenceFamily(),
        TorchvisionFamily(),
        WideResNetFamily(),
    ]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module whose weights and statistics are drawn from `seed`, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.eval()


def _plain(value: object) -> Attribute:
    if isinstance(value, tuple):
        return tuple(_plain(entry) for entry in value)
    return value if isinstance(value, bool | int | float | str) else None


def hints_of(module: nn.Module) -> dict[str, ModuleHint]:
    """Return what the reader of a pickled whole module hands over for this one."""
    return {
        path: ModuleHint(
            class_name=f"{type(part).__module__}.{type(part).__qualname__}",
            attributes={
                name: _plain(value)
                for name, value in vars(part).items()
                if not name.startswith("_")
            },
            children=tuple(name for name, _ in part.named_children()),
        )
        for path, part in module.named_modules()
    }


def weights_of(
    module: nn.Module, *, with_hints: bool = False, renamed: Mapping[str, str] | None = None
) -> Weights:
    """Return a module's weights as the file of a state dict, or of the whole module, gives them."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        name = key
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        tensors[name] = tensor
    return Weights(tensors=tensors, hints=hints_of(module) if with_hints else {})


def sorted_by_name(weights: Weights) -> Weights:
    """Return the same weights with their keys in the order of a safetensors file."""
    return Weights(tensors=dict(sorted(weights.tensors.items())))


def images(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Return seeded float32 images in [0, 1] of `shape`."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def logits(module: nn.Module, batch: Tensor) -> Tensor:
    """Return the module's outputs without gradients."""
    with torch.no_grad():
        out = module(batch)
    assert isinstance(out, Tensor)
    return out


def agrees(candidate: Candidate, weights: Weights, module: nn.Module, batch: Tensor) -> bool:
    """Return whether the loaded candidate computes what `module` does, in float64."""
    loaded = load(candidate, weights).double()
    try:
        found = logits(loaded, batch.double())
    except RuntimeError:
        return False
    expected = logits(module.double(), batch.double())
    module.float()
    return found.shape == expected.shape and bool(torch.allclose(found, expected, atol=1e-9))


def identify_all(weights: Weights, name: str | None = None) -> list[Candidate]:
    """Ask every built-in family."""
    return identify(weights, families=families(), name=name)
