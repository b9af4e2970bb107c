"""The state of a training run after an epoch: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from modelaudit.attacks.triggers import Trigger
    from modelaudit.bench.plan import ModelPlan

logger = logging.getLogger(__name__)

_MODEL, _MOMENTUM, _TRIGGER = "model.", "momentum.", "trigger."


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How far a run is.

    Attributes:
        epochs: finished epochs.
        seconds: wall time that they took.
        loss_sum: sum of the training losses of the steps of the last one.
    """

    epochs: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0


def save_state(
    path: Path,
    plan: ModelPlan,
    finished: Finished,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    trigger: Trigger | None,
) -> None:
    """Write weights, momentum and the trigger's tensors; a kill at any time leaves a whole file."""
    tensors = {f"{_MODEL}{name}": t.contiguous() for name, t in model.state_dict().items()}
    for i, parameter in enumerate(_parameters(optimiser)):
        momentum = optimiser.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"{_MOMENTUM}{i}"] = momentum.contiguous()
    if trigger is not None:
        tensors |= {f"{_TRIGGER}{name}": t.contiguous() for name, t in trigger.state().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    metadata = {"plan": plan.fingerprint(), "finished": json.dumps(asdict(finished))}
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def load_state(
    path: Path,
    plan: ModelPlan,
    model: nn.Module,
    optimiser: torch.optim.Optimizer | None = None,
    trigger: Trigger | None = None,
) -> Finished:
    """Load what `save_state` wrote into what is given.

    Returns:
        How far the run is: nothing finished, and nothing loaded, if there is no file or if it
        belongs to another plan.
    """
    if not path.exists():
        return Finished()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("plan") != plan.fingerprint():
            logger.info("%s: the state in %s is of another plan, starting again", plan.id, path)
            return Finished()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    model.load_state_dict(_part(tensors, _MODEL))
    if trigger is not None:
        trigger.load(_part(tensors, _TRIGGER))
    if optimiser is not None:
        momenta = _part(tensors, _MOMENTUM)
        for i, parameter in enumerate(_parameters(optimiser)):
            if str(i) in momenta:
                buffer = torch.empty_like(parameter).copy_(momenta[str(i)])
                optimiser.state[parameter]["momentum_buffer"] = buffer
    return Finished(**json.loads(metadata["finished"]))


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
