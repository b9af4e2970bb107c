"""Channels pushed as a scan saw them lead images: what a repair trains against ([O]).

Where no picture of the trigger can be found, the statistics may still say what it does within the
network: by how much it displaces channels, and that this leads images to a target (methods/
detectors.md §0.5). A network that keeps its answers however far and in whichever layers these
channels are displaced has no use left for what the trigger displaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelaudit.suspect import SiteEdit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from modelaudit.repairs.targets import Push
    from modelaudit.suspect import Suspect

#: How far channels are displaced, in what the scan has found to lead images to the target: one
#: image shows less of the trigger than the next.
_LEAST, _MOST = 0.25, 1.5
#: Chance that a layer is displaced: together they lead further than the trigger does, and what
#: comes through the first ones reaches the later ones by itself.
_LAYER_SHARE = 0.5


def amounts_of(push: Push, model: Suspect) -> dict[str, Tensor]:
    """Return what is added to the input of each layer: ``(channels,)`` on the model's device."""
    channels = {site.name: site.channels for site in model.sites}
    amounts: dict[str, Tensor] = {}
    for name, index, amount in push:
        values = amounts.setdefault(name, torch.zeros(channels[name], device=model.device))
        values[index] = amount
    return amounts


def edits_of(amounts: Mapping[str, Tensor], factor: float = 1.0) -> dict[str, SiteEdit]:
    """Return the edits that push channels by `factor` times what `amounts_of` says."""
    return {name: SiteEdit(push=factor * values) for name, values in amounts.items()}


class DrawnPushes:
    """The logits of images while channels are pushed, drawn anew for each batch.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        pushes: of scans, at least one; each of channels of this model.
        draws: CPU generator of which push, how far, and in which layers.
    """

    def __init__(self, model: Suspect, pushes: Sequence[Push], *, draws: torch.Generator) -> None:
        self.model = model
        self.draws = draws
        self.pushes = [amounts_of(push, model) for push in pushes]

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 logits of images under one of the pushes."""
        amounts = self.pushes[int(torch.randint(len(self.pushes), (), generator=self.draws))]
        factor = _LEAST + (_MOST - _LEAST) * float(torch.rand((), generator=self.draws))
        is_drawn = torch.rand(len(amounts), generator=self.draws) < _LAYER_SHARE
        if not bool(is_drawn.any()):
            is_drawn[:] = True
        drawn = {name: amounts[name] for name, is_ in zip(amounts, is_drawn, strict=True) if is_}
        with self.model.edited(edits_of(drawn, factor)):
            return self.model.logits(images)
