"""Repairs that do little, a scanner that takes one channel for a backdoor, and how to run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from modelaudit.engine import RepairRequest, ScanRequest, repair
from modelaudit.progress import NoProgress
from modelaudit.repairs import Change, Repair, RepairContext, RepairData, prune_mask
from modelaudit.results import Finding, Pattern
from modelaudit.scanners import CleanImages, Observation, ScanContext
from modelaudit.suspect import Suspect
from tests.helpers.engine import (
    HALF,
    SIDE,
    FakeConfig,
    nothing,
    trained,
    write_checkpoint,
    write_data,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelaudit.engine import Repaired

#: the channel that the fake scanner takes for a backdoor
LAYER, CHANNEL = "layer4.0.bn1", 2
#: images of each class that `write_suspect` writes
PER_FOLDER = 30


def repair_class(
    id_: str, act: Callable[[Suspect, RepairData], Change], **declared: object
) -> type[Repair[FakeConfig]]:
    """Return a repair that does `act`."""

    def _repair(
        self: Repair[FakeConfig], model: Suspect, data: RepairData, context: RepairContext
    ) -> Change:
        return act(model, data)

    body = {
        "id": id_,
        "version": "1",
        "summary": f"what {id_} does",
        "reference": "[T00]",
        "config_type": FakeConfig,
        "_repair": _repair,
        **declared,
    }
    return type(id_.title(), (Repair,), body)


def cut(model: Suspect, _data: RepairData) -> Change:
    """Prune the channel."""
    mask = prune_mask(model, [(LAYER, CHANNEL)])
    mask.apply(model.module)
    return Change(mask=mask, notes=("cut it out",))


def cut_another(model: Suspect, _data: RepairData) -> Change:
    """Prune a channel that nobody accuses."""
    mask = prune_mask(model, [(LAYER, CHANNEL + 1)])
    mask.apply(model.module)
    return Change(mask=mask)


def wreck(model: Suspect, _data: RepairData) -> Change:
    """Leave a model that says class 0 to everything."""
    head = model.module.get_submodule("linear")
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    return Change()


def leave(_model: Suspect, _data: RepairData) -> Change:
    """Change nothing."""
    return Change()


def nudge(model: Suspect, _data: RepairData) -> Change:
    """Change one weight by so little that no prediction changes."""
    with torch.no_grad():
        model.module.get_submodule("linear").bias[0].add_(1e-6)
    return Change()


def broken(_model: Suspect, _data: RepairData) -> Change:
    """Raise."""
    raise RuntimeError("out of luck")


def accusing(target: int) -> Callable[[Suspect, CleanImages, ScanContext], Observation]:
    """Return what accuses class `target` as long as the channel acts."""

    def watch(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        if float(suspect.module.get_submodule(LAYER).weight[CHANNEL].detach()) == 0.0:
            return nothing(suspect, clean, context)
        return Observation(
            finding=Finding.STRONG,
            pattern=Pattern.ALL_TO_ONE,
            target_labels=(target,),
            score=9.0,
            threshold=1.0,
            is_confirmed=True,
            evidence={"traced": 1, "push": [[LAYER, CHANNEL, 1e4]]},
        )

    return watch


def write_suspect(root: Path) -> tuple[Path, Path]:
    """Write a checkpoint and a folder that it knows, and return the paths of both."""
    data = write_data(root / "clean", PER_FOLDER)
    return write_checkpoint(root / "model.pt", trained(PER_FOLDER)), data


def repair_request(
    paths: tuple[Path, Path], *, max_images: int = 500, **options: Any
) -> RepairRequest:
    """Return what repairs the suspect that `write_suspect` wrote, scanned by ``watch`` alone."""
    scan = ScanRequest(
        checkpoint=paths[0],
        data=paths[1],
        scanners=("watch",),
        preprocessing=HALF,
        input_size=SIDE,
        max_images=max_images,
        budget_seconds=None,
    )
    return RepairRequest(scan=scan, **options)


def run_repair(paths: tuple[Path, Path], **options: Any) -> Repaired:
    """Run the repair that `repair_request` asks for."""
    return repair(repair_request(paths, **options), progress=NoProgress())
