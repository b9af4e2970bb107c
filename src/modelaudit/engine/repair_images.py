"""Divides the clean set of a repair: what the scans see, what repairs see, what proves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit import cleanset
from modelaudit import fit as fitting
from modelaudit.repairs import RepairData, divide
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import RepairRequest

#: Share of the images beyond those of the scan that is held out for the proof too.
PROOF_FRACTION = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairImages:
    """The images of one repair; the two parts are disjoint.

    Attributes:
        data: what repairs work with and choose amounts on.
        proof: held-out images, ``(P, C, S, S)`` in [0, 1]: those that the scans judge on, and a
            fifth of what the folder holds beyond the images of the scans.
        proof_labels: ``(P,)`` int64: the user's, or the suspect's own predictions.
    """

    data: RepairData
    proof: Tensor
    proof_labels: Tensor


def repair_images(request: RepairRequest, opened: Opened) -> RepairImages:
    """Read what the folder holds beyond the scan's images, and divide everything.

    Args:
        request: how many images at most.
        opened: the suspect with the clean set of the scans.
    """
    images, labels, is_proof = opened.clean.images, opened.clean.labels, _judged(opened)
    more = _further_images(request, opened)
    if more is not None:
        draw = generator(request.scan.seed, "repair", "proof")
        held_out = torch.rand(len(more[0]), generator=draw) < PROOF_FRACTION
        images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
        is_proof = torch.cat([is_proof, held_out])
    for_repair = (~is_proof).nonzero().flatten()
    work, validation = divide(labels[for_repair], seed=request.scan.seed)
    own = images[for_repair]
    return RepairImages(
        data=RepairData(
            images=own,
            labels=labels[for_repair],
            has_labels=opened.clean.has_labels,
            work=work,
            validation=validation,
            as_trained=fitting.training_crops(
                own, opened.fit.training_crop, mean=opened.fit.preprocessing.mean
            ),
            mixture=opened.clean.mixture,
        ),
        proof=images[is_proof],
        proof_labels=labels[is_proof],
    )


def _judged(opened: Opened) -> Tensor:
    is_judged = torch.zeros(len(opened.clean.images), dtype=torch.bool)
    is_judged[opened.clean.judge] = True
    return is_judged


def _further_images(request: RepairRequest, opened: Opened) -> tuple[Tensor, Tensor] | None:
    """Return images and labels beyond the scan's, or None where the folder has no more."""
    scan, known = request.scan, opened.clean_set
    if known.available <= len(known) or request.max_repair_images <= len(known):
        return None
    larger = cleanset.read_clean_set(
        scan.data, max_images=request.max_repair_images, seed=scan.seed
    )
    seen = set(known.names)
    chosen = [i for i, name in enumerate(larger.names) if name not in seen]
    if opened.clean.has_labels:
        outputs = _outputs(opened)
        assert larger.labels is not None
        folders = [larger.folders[int(larger.labels[i])] for i in chosen]
        # A folder without an image in the scan has no known output: its images are left out.
        kept = [
            (i, outputs[name]) for i, name in zip(chosen, folders, strict=True) if name in outputs
        ]
        chosen = [i for i, _ in kept]
        labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
    images = larger.tensor(opened.fit.input_size, opened.fit.input_channels, chosen)
    if not opened.clean.has_labels:
        labels = opened.suspect.predict(images)
    return (images, labels) if chosen else None


def _outputs(opened: Opened) -> dict[str, int]:
    """Return the model's output of each class folder, as the fit has matched them."""
    clean_set, labels = opened.clean_set, opened.clean.labels
    assert clean_set.labels is not None
    return {
        clean_set.folders[int(folder)]: int(label)
        for folder, label in zip(clean_set.labels, labels, strict=True)
    }
