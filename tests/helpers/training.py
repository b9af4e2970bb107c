"""Clean images, contexts and small nets for the repairs that train."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs import RepairContext, RepairData, divide
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.suspect import Suspect
from tests.helpers.models import images, suspect_of, tiny_bn
from tests.helpers.planted import TARGET, pattern_images, stamped, trained, vary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelaudit.repairs import RepairedModel


def data_of(
    pictures: Tensor, truth: Tensor, *, has_labels: bool = True, seed: int = 0
) -> RepairData:
    """Return clean images with their division, no crop imitated."""
    work, validation = divide(truth, seed=seed)
    return RepairData(
        images=pictures,
        labels=truth,
        has_labels=has_labels,
        work=work,
        validation=validation,
        as_trained=pictures,
    )


def tiny_suspect(seed: int = 0) -> Suspect:
    """Return a net with two BatchNorm layers that spreads `tiny_data` over its classes."""
    suspect = suspect_of(tiny_bn(seed))
    vary(suspect, images(120))
    return suspect


def tiny_data(suspect: Suspect | None = None, *, count: int = 120) -> RepairData:
    """Return noise images under the labels of `suspect`, or of the default net."""
    if suspect is None:
        return _default_data(count)
    pictures = images(count)
    with suspect.borrowed():
        return data_of(pictures, suspect.predict(pictures))


@functools.cache
def _default_data(count: int) -> RepairData:
    return tiny_data(tiny_suspect(), count=count)


@functools.cache
def pattern_data(*, count: int = 400) -> RepairData:
    """Return clean images of `tests.helpers.planted.trained`'s task."""
    return data_of(*pattern_images(count, 6))


def copy_of(suspect: Suspect) -> Suspect:
    """Return the suspect of a trainable copy, as the contract gives it to `_repair`."""
    module = copy.deepcopy(suspect.module)
    module.requires_grad_(True)
    return Suspect(
        module,
        preprocessing=suspect.preprocessing,
        input_size=suspect.input_size,
        input_channels=suspect.input_channels,
        num_classes=suspect.num_classes,
    )


def rates(module: nn.Module) -> tuple[float, float]:
    """Return clean accuracy and attack success of a net for the task of `trained`."""
    pictures, truth = pattern_images(600, 7)
    with torch.no_grad():
        accuracy = float((module(pictures).argmax(1) == truth).double().mean())
        others = pictures[truth != TARGET]
        success = float((module(stamped(others)).argmax(1) == TARGET).double().mean())
    return accuracy, success


def backdoored() -> Suspect:
    """Return the small trained net with a planted backdoor."""
    return trained(is_backdoored=True)


def context_of(**changes: object) -> RepairContext:
    """Return a context in float32."""
    return RepairContext(**changes)  # type: ignore[arg-type]  # a test's shorthand


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules hold the same parameters and buffers bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def is_well_formed(result: RepairedModel, suspect: Suspect) -> bool:
    """Return whether the result is a CPU float32 module in eval mode with the suspect's keys."""
    state = result.module.state_dict()
    return (
        list(state) == list(suspect.module.state_dict())
        and not any(child.training for child in result.module.modules())
        and all(t.device.type == "cpu" and t.is_contiguous() for t in state.values())
        and all(t.dtype == torch.float32 for t in state.values() if t.is_floating_point())
    )


def finding_of(
    finding: Finding,
    targets: tuple[int, ...],
    pattern: Pattern | None = Pattern.ALL_TO_ONE,
    *,
    arrows: tuple[int, ...] | None = None,
) -> ScannerResult:
    """Return a scanner's word, as a repair's context holds it."""
    return ScannerResult(
        id="ban",
        version="1",
        family="parameter_noise",
        finding=finding,
        pattern=pattern,
        target_labels=targets,
        sees_all_to_all=False,
        evidence={} if arrows is None else {"arrows": list(arrows)},
    )
