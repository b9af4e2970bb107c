"""Searches of stand-ins for a trigger that lead a clean set to one place.

What repairs train against and what bears witness after them are searched alike, each with settings
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.repairs.stand_ins import Patch, Warp, search_patch, search_warp
from modelaudit.repairs.targets import STAYS
from modelaudit.repairs.trace_match import TraceMatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from modelaudit.repairs.data import RepairData
    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traces:
    """What running means say of a trigger.

    Attributes:
        found: divergences of the suspect, with their shifts.
        is_opposite: see `TraceMatch`.
        weight: nats for a displacement at right angles to the traces.
    """

    found: Divergences
    is_opposite: bool
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How stand-ins are searched.

    Attributes:
        steps: of one search.
        batch: images of a step.
        price: nats for a mask that covers the image.
        warp_limit: farthest that a warp moves a pixel along a side, as a share of the side.
        dtype: of convolutions and matrix products; None for float32.
        batch_size: images computed together outside the steps.
    """

    steps: int
    batch: int
    price: float
    warp_limit: float
    dtype: torch.dtype | None
    batch_size: int = 256


class PlaceSearch:
    """Searches that lead the work images of a clean set to one place.

    Args:
        model: as it is now; its traces are compared with what stand-ins do to its channels.
        data: clean images.
        goals: where each class is led, ``(K,)`` int64; `STAYS` for one that is led nowhere.
        traces: None to look for whatever leads images there.
        settings: of every search.

    Attributes:
        images: those that are led: none stays, or is there already.
        match: of these images; None without traces, or where no layer shows any.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        goals: Tensor,
        *,
        traces: Traces | None,
        settings: SearchSettings,
    ) -> None:
        labels = data.labels[data.work]
        wanted = goals.to(labels.device)[labels]
        is_led = (wanted != STAYS) & (wanted != labels)
        self.model = model
        self.settings = settings
        self.images = data.images[data.work][is_led.to(data.images.device)]
        self.wanted = wanted[is_led].to(model.device)
        self.match: TraceMatch | None = None
        if traces is not None and len(self.images):
            match = TraceMatch(
                model,
                traces.found,
                self.images,
                weight=traces.weight,
                is_opposite=traces.is_opposite,
                batch_size=settings.batch_size,
            )
            self.match = match if match.layers else None

    def patch(self, draws: torch.Generator) -> Patch:
        """Search a patch; there must be images to lead.

        Args:
            draws: CPU generator of this search.
        """
        settings = self.settings
        return search_patch(
            self.model,
            self.images,
            self.wanted,
            steps=settings.steps,
            batch=settings.batch,
            price=settings.price,
            dtype=settings.dtype,
            generator=draws,
            match=self.match,
        )

    def warp(self, draws: torch.Generator) -> Warp:
        """Search a warp; there must be images to lead.

        Whoever trains on warps often trains on near-warps with the right label too, whose traces
        are as large: they would lead the search astray, and none is needed.

        Args:
            draws: CPU generator of this search.
        """
        settings = self.settings
        return search_warp(
            self.model,
            self.images,
            self.wanted,
            steps=settings.steps,
            batch=settings.batch,
            limit=settings.warp_limit,
            dtype=settings.dtype,
            generator=draws,
        )
