"""Stand-ins for a trigger that a repair trains against, searched on the network as it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs.place_search import PlaceSearch, SearchSettings
from modelaudit.repairs.stand_ins import Warp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.place_search import Traces
    from modelaudit.repairs.stand_ins import StandIn
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Searched:
    """A search and what it found.

    Attributes:
        index: of the map that images were led by.
        found: the stand-in, whether it was kept or not.
    """

    index: int
    found: StandIn


class StandInBank:
    """Stand-ins that work, and the logits of images under one of them, drawn for each batch.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        data: clean images; searches see the work images.
        maps: where a trigger leads each class, see `label_maps`.
        settings: of every search.
        traces: of the suspect; None to look for whatever leads images there.
        least_success: share of images that a stand-in has to lead to be kept.
        draws: CPU generator of searches and choices.

    Attributes:
        kept: those that work.
        log: of every search.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        maps: Sequence[Tensor],
        *,
        settings: SearchSettings,
        traces: Traces | None,
        least_success: float,
        draws: torch.Generator,
    ) -> None:
        self.model = model
        self.data = data
        self.maps = tuple(maps)
        self.settings = settings
        self.traces = traces
        self.least_success = least_success
        self.draws = draws
        self.kept: list[StandIn] = []
        self.log: list[Searched] = []

    def search(self, index: int, *, is_warp: bool = False) -> None:
        """Search a stand-in for one map; it is kept if it works.

        Args:
            index: of the map.
            is_warp: whether to search a warp, not a patch.
        """
        # Made anew each time: the model has moved on.
        search = PlaceSearch(
            self.model, self.data, self.maps[index], traces=self.traces, settings=self.settings
        )
        if not len(search.images):
            return
        found = search.warp(self.draws) if is_warp else search.patch(self.draws)
        self.log.append(Searched(index=index, found=found))
        if found.success >= self.least_success:
            self.kept.append(found)

    def search_all(self, starts: int) -> None:
        """Search patches for every map, and where not one works, as many warps.

        Args:
            starts: searches for each map.
        """
        for is_warp in (False, True):
            for index in range(len(self.maps)):
                for _ in range(starts):
                    self.search(index, is_warp=is_warp)
            if self.kept:
                return

    def search_again(self, index: int) -> None:
        """Search once more for one map, of the form that worked last."""
        self.search(index, is_warp=bool(self.kept) and isinstance(self.kept[-1], Warp))

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 logits of images under a stand-in of the bank."""
        which = int(torch.randint(len(self.kept), (), generator=self.draws))
        return self.model.logits(self.kept[which].put_on(images))
