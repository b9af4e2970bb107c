"""Fake scanners, an environment that has them installed, and a tiny checkpoint with its images."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modelaudit.architectures.cifar_resnet import CifarResNet
from modelaudit.config import require_range
from modelaudit.preprocessing import Preprocessing
from modelaudit.repairs import Repair
from modelaudit.results import Cost, Finding
from modelaudit.scanners import CleanImages, Observation, ScanContext, Scanner
from modelaudit.suspect import Suspect, profile
from tests.helpers.images import picture, write_folders
from tests.helpers.models import images, initialised, labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from modelaudit.suspect import Profile

HALF = Preprocessing(id="half", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
FOLDERS = ("0", "1", "2", "3")
#: Side of the tiny checkpoint's images in pixels.
SIDE = 32

Act = "Callable[[Suspect, CleanImages, ScanContext], Observation]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig:
    """Two things to set."""

    steps: int = 3
    amount: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "steps", low=1)


def nothing(_suspect: Suspect, _clean: CleanImages, _context: ScanContext) -> Observation:
    """Find nothing."""
    return Observation(finding=Finding.NONE)


def loud(_suspect: Suspect, _clean: CleanImages, _context: ScanContext) -> Observation:
    """Accuse class 1 as loudly as the contract allows."""
    return Observation(
        finding=Finding.STRONG, target_labels=(1,), score=9.0, threshold=1.0, is_confirmed=True
    )


def drawing(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
    """Report numbers that hang on the seed and on the suspect alone."""
    from modelaudit.seeds import generator

    noise = float(torch.rand((), generator=generator(context.seed, "drawing")))
    with torch.no_grad():
        total = float(suspect.logits(clean.images[:4]).sum())
    return Observation(finding=Finding.NONE, score=noise + total)


def raising(error: BaseException) -> Callable[[Suspect, CleanImages, ScanContext], Observation]:
    """Damage the suspect as far as a scanner can, then raise."""

    def act(suspect: Suspect, clean: CleanImages, _context: ScanContext) -> Observation:
        suspect.module.train()
        with torch.no_grad():
            for tensor in (*suspect.module.parameters(), *suspect.module.buffers()):
                tensor.add_(1)
        suspect.logits(clean.images[:2])
        raise error

    return act


def scanner_class(
    id_: str,
    act: Callable[[Suspect, CleanImages, ScanContext], Observation] = nothing,
    *,
    cost: Cost | Exception | None = None,
    **declared: Any,
) -> type[Scanner[FakeConfig]]:
    """Return a scanner that does `act` and declares `declared`."""

    def _scan(
        self: Scanner[FakeConfig], suspect: Suspect, clean: CleanImages, context: ScanContext
    ) -> Observation:
        return act(suspect, clean, context)

    def estimate(self: Scanner[FakeConfig], suspect: Suspect, clean: CleanImages) -> Cost:
        if isinstance(cost, Exception):
            raise cost
        return cost or Cost()

    body: dict[str, Any] = {
        "id": id_,
        "version": "1",
        "family": f"family of {id_}",
        "summary": f"what {id_} does",
        "reference": "[T00]",
        "config_type": FakeConfig,
        "is_calibrated": True,
        "sees_all_to_all": True,
        "_scan": _scan,
        "estimate": estimate,
        **declared,
    }
    return type(id_.title(), (Scanner,), body)


def point(name: str, cls: object, group: str = "scanners") -> EntryPoint:
    """Return an entry point of `cls`, importable from a module made for it."""
    module = types.ModuleType(f"modelaudit_plugin_{name}")
    vars(module)["Plugin"] = cls
    sys.modules[module.__name__] = module
    return EntryPoint(name=name, value=f"{module.__name__}:Plugin", group=f"modelaudit.{group}")


def install(
    monkeypatch: pytest.MonkeyPatch, *classes: type[Scanner[Any]] | type[Repair[Any]]
) -> None:
    """Make the environment have these scanners and repairs too."""
    from importlib.metadata import entry_points

    from modelaudit import registry

    added = [
        point(cls.id, cls, "repairs" if issubclass(cls, Repair) else "scanners") for cls in classes
    ]

    def found(*, group: str) -> list[EntryPoint]:
        return [*entry_points(group=group), *(extra for extra in added if extra.group == group)]

    monkeypatch.setattr(registry, "entry_points", found)


def clean_images(n: int = 20, *, suspect: Suspect | None = None) -> CleanImages:
    """Return clean images whose labels are `suspect`'s predictions, or go round the classes."""
    batch = images(n)
    predictions = labels(n)
    if suspect is not None:
        with suspect.borrowed():
            predictions = suspect.predict(batch)
    return CleanImages(
        images=batch,
        labels=predictions,
        has_labels=True,
        search=torch.arange(n - n // 3),
        judge=torch.arange(n - n // 3, n),
        predictions=predictions,
        as_trained=batch,
    )


def profiled(suspect: Suspect, clean: CleanImages) -> Profile:
    """Return the shared pass."""
    with suspect.borrowed():
        return profile(suspect, clean.images)


def trained(per_folder: int, *, seed: int = 0) -> nn.Module:
    """Return a ResNet-18 of width 4 that knows the pictures of `write_data`, without training.

    See `taught`.
    """
    pixels = [picture(k, i, size=SIDE) for k in range(len(FOLDERS)) for i in range(per_folder)]
    batch = torch.stack([torch.from_numpy(p) for p in pixels]).permute(0, 3, 1, 2) / 255
    truth = torch.arange(len(FOLDERS)).repeat_interleave(per_folder)
    return taught((batch - 0.5) / 0.5, truth, seed=seed)


def taught(batch: Tensor, truth: Tensor, *, seed: int = 0) -> nn.Module:
    """Return a ResNet-18 of width 4 that knows a batch of normalised images, without training.

    Its statistics are those of the images, its head is the least-squares one.
    """
    classes = int(truth.max()) + 1
    net = initialised(CifarResNet(width=4, num_classes=classes), seed)
    assert isinstance(net, CifarResNet)
    features: list[Tensor] = []
    handle = net.linear.register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        net.train()(batch)
        net.eval()(batch)
    handle.remove()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    x = torch.cat([features[-1].double(), torch.ones(len(batch), 1)], dim=1)
    wanted = torch.eye(classes).double()[truth] * 8 - 4
    ridge = 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted)
    with torch.no_grad():
        net.linear.weight.copy_(solved[:-1].T)
        net.linear.bias.copy_(solved[-1])
    return net


def write_checkpoint(path: Path, net: nn.Module) -> Path:
    """Write a state dict as training scripts do."""
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, path)
    return path


def write_data(root: Path, per_folder: int) -> Path:
    """Write the pictures that `trained` knows, a folder per class."""
    return write_folders(root, FOLDERS, per_folder=per_folder, size=SIDE)
