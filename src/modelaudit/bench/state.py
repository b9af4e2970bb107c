"""The state of a training run after an epoch: one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from modelaudit.attacks.triggers import Trigger
    from modelaudit.bench.plan import ModelPlan

logger = logging.getLogger(__name__)

_MODEL, _MOMENTUM, _TRIGGER = "model.", "momentum.", "trigger."
_PARAMETER, _EXTRA, _VALUE = "parameter.", "extra.", "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How far a run is.

    Attributes:
        epochs: finished epochs.
        seconds: wall time that they and the attack's preparation took.
        loss_sum: sum of the training losses of the steps of the last one.
        is_prepared: the attack's preparation is done.
        is_final: the attack's last edit is done.
    """

    epochs: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    is_prepared: bool = False
    is_final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training step changes.

    Attributes:
        model: the classifier.
        optimiser: SGD; its first group are the classifier's parameters. Of the parameters in other
            groups, as of those in `extra`, the values are kept too.
        extra: the attack's own optimisers by name.
        trigger: the attack's trigger.
        precision: that the steps compute in; None where none is made.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer | None = None
    extra: Mapping[str, torch.optim.Optimizer] = field(default_factory=lambda: MappingProxyType({}))
    trigger: Trigger | None = None
    precision: str | None = None


def save_state(path: Path, plan: ModelPlan, finished: Finished, training: Training) -> None:
    """Write weights, optimisers and the trigger's tensors; a kill at any time leaves a whole file.

    Args:
        path: the file.
        plan: whose run it is.
        finished: how far the run is.
        training: what is kept.
    """
    tensors = {f"{_MODEL}{name}": t for name, t in training.model.state_dict().items()}
    if training.optimiser is not None:
        own = len(training.optimiser.param_groups[0]["params"])
        for i, parameter in enumerate(_parameters(training.optimiser)):
            momentum = training.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"{_MOMENTUM}{i}"] = momentum
            if i >= own:
                tensors[f"{_PARAMETER}{i}"] = parameter
    for name, one in training.extra.items():
        for i, parameter in enumerate(_parameters(one)):
            tensors[f"{_EXTRA}{name}.{i}.{_VALUE}"] = parameter
            for key, value in one.state[parameter].items():
                tensors[f"{_EXTRA}{name}.{i}.{key}"] = value
    if training.trigger is not None:
        tensors |= {f"{_TRIGGER}{name}": t for name, t in training.trigger.state().items()}
    # Copies, because the format refuses tensors that share memory, as trigger and optimiser do.
    tensors = {name: _plain_copy(tensor) for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    metadata = {
        "plan": plan.fingerprint(),
        "precision": training.precision or "",
        "finished": json.dumps(asdict(finished)),
    }
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)


def load_state(path: Path, plan: ModelPlan, training: Training) -> Finished:
    """Load what `save_state` wrote into what is given.

    Returns:
        How far the run is: nothing finished, and nothing loaded, if there is no file or if it
        belongs to another plan or precision.
    """
    if not path.exists():
        return Finished()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("plan") != plan.fingerprint():
            logger.info("%s: the state in %s is of another plan, starting again", plan.id, path)
            return Finished()
        precision = metadata.get("precision")
        if training.precision is not None and precision != training.precision:
            logger.info("%s: the state in %s is of another precision", plan.id, path)
            return Finished()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    training.model.load_state_dict(_part(tensors, _MODEL))
    if training.trigger is not None:
        training.trigger.load(_part(tensors, _TRIGGER))
    if training.optimiser is not None:
        momenta, values = _part(tensors, _MOMENTUM), _part(tensors, _PARAMETER)
        for i, parameter in enumerate(_parameters(training.optimiser)):
            if str(i) in momenta:
                buffer = _like(parameter, momenta[str(i)])
                training.optimiser.state[parameter]["momentum_buffer"] = buffer
            if str(i) in values:
                parameter.data.copy_(values[str(i)])
    for name, one in training.extra.items():
        for i, parameter in enumerate(_parameters(one)):
            kept = _part(tensors, f"{_EXTRA}{name}.{i}.")
            parameter.data.copy_(kept.pop(_VALUE))
            for key, value in kept.items():
                # Adam counts its steps on the CPU wherever its parameters are.
                one.state[parameter][key] = _like(parameter, value) if key != "step" else value
    return Finished(**json.loads(metadata["finished"]))


def load_trigger(path: Path, trigger: Trigger) -> None:
    """Load the trigger that `save_state` kept, whatever plan the run was of.

    Nothing is loaded if there is no file: a trigger that nothing was learned for needs none.

    Raises:
        ConfigError: the file cannot be read, or holds another kind of trigger.
    """
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_TRIGGER)]  # noqa: SIM118 - as above
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as err:
        raise ConfigError(
            f"expected the state of a training run at {str(path)!r}, found {err}; put back the "
            "file, or train the model in another folder"
        ) from err
    trigger.load(_part(tensors, _TRIGGER))


def _plain_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()


def _like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return `value` with the device and memory format of its parameter."""
    return torch.empty_like(parameter).copy_(value)


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
