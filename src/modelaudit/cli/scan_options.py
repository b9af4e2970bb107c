"""The options that say what is scanned and how, for every command that scans a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.cli.device import Device, resolve_device
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit import engine
    from modelaudit.preprocessing import Preprocessing

#: Time for the scanners on a CPU, in seconds, unless the user says otherwise.
CPU_BUDGET_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """The options of one scan, parsed; see ``modelaudit scan --help``.

    Attributes:
        budget_seconds: None where the device decides, infinity for no limit.
        device: not yet resolved, because that takes torch.
    """

    checkpoint: Path
    data: Path
    weights: str | None = None
    scanners: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] = ()
    arch: str | None = None
    preprocessing: Preprocessing | None = None
    input_size: int | None = None
    classes: Path | None = None
    max_images: int = 500
    mixture: Path | None = None
    calibrations: tuple[Path, ...] = ()
    budget_seconds: float | None = None
    device: Device = Device.AUTO
    seed: int = 0
    alpha: float = 0.05

    @property
    def files(self) -> tuple[Path, ...]:
        """The inputs that no output may overwrite."""
        classes = () if self.classes is None else (self.classes,)
        return (self.checkpoint, self.data, *classes, *self.calibrations)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The inputs that no output may be written into."""
        return (self.data,) if self.mixture is None else (self.data, self.mixture)

    def check_scanners(self) -> None:
        """Raise a `ConfigError` for a scanner that nobody registered, before torch is imported."""
        registry = Registry("scanners")
        for name in (*self.scanners, *(scanner for scanner, _, _ in self.settings)):
            registry.entry(name.partition("@")[0])

    def request(self) -> engine.ScanRequest:
        """Return what the engine takes, with the device resolved.

        Raises:
            ConfigError: a CUDA device was asked for and there is none.
        """
        from modelaudit import engine

        device = resolve_device(self.device)
        budget = self.budget_seconds
        if budget is None and device == "cpu":
            budget = CPU_BUDGET_SECONDS
        elif budget is not None and math.isinf(budget):
            budget = None
        return engine.ScanRequest(
            checkpoint=self.checkpoint,
            data=self.data,
            weights=self.weights,
            scanners=self.scanners,
            settings=self.settings,
            arch=self.arch,
            preprocessing=self.preprocessing,
            input_size=self.input_size,
            classes=self.classes,
            max_images=self.max_images,
            mixture=self.mixture,
            calibrations=self.calibrations,
            budget_seconds=budget,
            device=device,
            seed=self.seed,
            alpha=self.alpha,
        )
