"""``--arch path/to/file.py:factory``: an architecture that the user wrote and names.

This is the only place where code that is neither ours nor an installed package's runs, and only
because the user names the file in that very command.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from modelaudit.architectures._build import compare
from modelaudit.architectures._keys import LARGE_INPUTS, SMALL_GREY_INPUTS, SMALL_INPUTS
from modelaudit.architectures.base import Candidate
from modelaudit.errors import ConfigError, UnknownArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.weights import Weights

FAMILY = "user_file"
_FORM = "--arch expects path/to/file.py:factory"
_MAX_SMALL_SIDE = 256


def _import(path: Path) -> ModuleType:
    """Import the file under a name of its own, without leaving a byte-code file beside it."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"modelaudit_user_file_{digest}"
    module = ModuleType(name)
    module.__file__ = str(path)
    # dataclasses and the like look their own module up while it runs
    sys.modules[name] = module
    try:
        code = compile(path.read_bytes(), str(path), "exec")
        exec(code, module.__dict__)  # noqa: S102 - the user named this file to be run
    except Exception as err:  # user code may raise anything
        del sys.modules[name]
        raise ConfigError(
            f"{_FORM}; importing {str(path)!r} raised {type(err).__name__}: {err}; mend the file"
        ) from err
    return module


def _factory(spec: str) -> Callable[..., object]:
    file, separator, attribute = spec.rpartition(":")
    if not separator or not file or not attribute:
        raise ConfigError(f"{_FORM}, found {spec!r}; add the factory's name after a colon")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{_FORM}, found no file {file!r}; check the path")
    if path.suffix != ".py":
        raise ConfigError(f"{_FORM}, found {file!r}, which is no Python file; name a .py file")
    module = _import(path.resolve())
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ConfigError(f"{_FORM}; {file!r} has no attribute {attribute!r}; check its spelling")
    if not callable(factory):
        raise ConfigError(
            f"{_FORM}; {attribute!r} in {file!r} is a {type(factory).__name__}, not callable; "
            "name a function or class that returns a torch.nn.Module"
        )
    return factory  # type: ignore[no-any-return]  # getattr gives Any


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    """Return whether the factory has a parameter ``num_classes``; a class's constructor counts."""
    try:
        return "num_classes" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _last_outputs(weights: Weights) -> int:
    """Return the outputs of the file's last linear layer, or of its last convolution."""
    shapes = [tuple(tensor.shape) for tensor in weights.tensors.values()]
    linear = [shape[0] for shape in shapes if len(shape) == 2]
    others = [shape[0] for shape in shapes if len(shape) == 4]
    return (linear or others or [1])[-1]


def _builder(
    spec: str, factory: Callable[..., object], weights: Weights
) -> Callable[[], nn.Module]:
    arguments = {"num_classes": _last_outputs(weights)} if _takes_num_classes(factory) else {}

    def build() -> nn.Module:
        try:
            # constants that a stranger's constructor computes must be real, whoever calls
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                module = factory(**arguments)
        except Exception as err:  # user code may raise anything
            raise ConfigError(
                f"{_FORM}; calling {spec!r} raised {type(err).__name__}: {err}; mend the factory"
            ) from err
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"{_FORM}; {spec!r} returned a {type(module).__name__}, expected a torch.nn.Module"
            )
        return module

    return build


def _inputs(module: nn.Module) -> tuple[int, tuple[int, ...]]:
    """Return the image's channels and the sizes to try, read off the first weighted layer."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            channels = part.in_channels
            if part.stride[0] > 1:
                return channels, LARGE_INPUTS
            return channels, SMALL_GREY_INPUTS if channels == 1 else SMALL_INPUTS
        if isinstance(part, nn.Linear):
            for channels in (1, 3):
                for side in range(1, _MAX_SMALL_SIDE + 1):
                    if channels * side * side == part.in_features:
                        return channels, (side,)
    return 3, SMALL_INPUTS


def _outputs(module: nn.Module, weights: Weights) -> int:
    linear = [part.out_features for part in module.modules() if isinstance(part, nn.Linear)]
    return linear[-1] if linear else _last_outputs(weights)


def _matched(module: nn.Module, weights: Weights) -> tuple[Callable[[str], str], str]:
    """Return how the file's keys become the module's, and the first difference, empty if none.

    The reader has taken off wrapper prefixes that every key bore; a user's module may bear them.
    """
    keys = list(module.state_dict())
    parts = keys[0].split(".")[:-1] if keys else []
    prefixes = ["".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts) + 1)]
    first = ""
    for prefix in prefixes:
        if not all(key.startswith(prefix) for key in keys):
            break
        _, difference = compare(module, weights, _prefixed(prefix))
        if not difference:
            return _prefixed(prefix), ""
        first = first or difference
    return str, first


def _prefixed(prefix: str) -> Callable[[str], str]:
    def rename(key: str) -> str:
        return prefix + key

    return rename if prefix else str


def from_file(spec: str) -> Callable[[Weights], Candidate]:
    """Import the user's file and return what makes a candidate of its factory.

    Args:
        spec: ``path/to/file.py:factory``; the factory takes nothing, or ``num_classes``, and
            returns a `torch.nn.Module`.

    Returns:
        A function of the file's weights. It raises `UnknownArchitectureError` where the module has
        not exactly the file's keys and shapes, and `ConfigError` where the factory fails.

    Raises:
        ConfigError: the text has not this form, the file is missing or raises, or has no such
            factory.
    """
    factory = _factory(spec)

    def candidate(weights: Weights) -> Candidate:
        build = _builder(spec, factory, weights)
        module = build()
        rename, difference = _matched(module, weights)
        if difference:
            raise UnknownArchitectureError(
                f"the checkpoint is not what {spec!r} makes: first differing key {difference}; "
                "pass the factory that the model was made with",
                closest=(f"{spec}: first differing key {difference}",),
            )
        channels, sizes = _inputs(module)
        return Candidate(
            name=spec,
            family=FAMILY,
            arguments={},
            build=build,
            rename=rename,
            input_channels=channels,
            num_classes=_outputs(module, weights),
            input_sizes=sizes,
            notes=("architecture made by the user's own file",),
        )

    return candidate
