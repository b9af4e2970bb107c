"""Stand-ins for a trigger that a repair trains against, searched on the network as it becomes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs.place_search import PlaceSearch, Tried

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.place_search import SearchSettings, Traces
    from modelaudit.repairs.stand_ins import Form, StandIn
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Searched:
    """A search and what it found.

    Attributes:
        index: of the place that images were led to.
        found: the stand-in, whether it works or not.
    """

    index: int
    found: StandIn


class StandInBank:
    """Stand-ins that work, and the logits of images under one of them, drawn for each batch.

    Args:
        model: the copy that is trained, BatchNorm with the running statistics.
        data: clean images; searches see the work images.
        places: where a trigger leads each class, see `label_maps`, with the suspect's traces; None
            to look for whatever leads images there.
        settings: of every search.
        least_success: share of images that a stand-in has to lead to be kept.
        draws: CPU generator of searches and choices.

    Attributes:
        kept: those that work.
        log: of every search.
        large: how many patches led enough images and were left out as large, see `Tried`.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        places: Sequence[tuple[Tensor, Traces | None]],
        *,
        settings: SearchSettings,
        least_success: float,
        draws: torch.Generator,
    ) -> None:
        self.model = model
        self.data = data
        self.places = tuple(places)
        self.settings = settings
        self.least_success = least_success
        self.draws = draws
        self.kept: list[StandIn] = []
        self.log: list[Searched] = []
        self.large = 0
        #: those that work at each place, the one to be searched next first
        self._forms: dict[int, deque[Form]] = {}

    def search_all(self, starts: int) -> None:
        """Search patches and a warp for every place.

        Args:
            starts: searches of a patch for each place.
        """
        for index in range(len(self.places)):
            tried = self._place(index).search(
                starts, least_success=self.least_success, draws=lambda *_: self.draws
            )
            for found in tried.all:
                self._note(index, found)
            self.large += len(tried.large)
            if not tried.working:
                continue
            by_success = sorted(tried.working, key=lambda one: one.success, reverse=True)
            self._forms[index] = deque(dict.fromkeys(one.form for one in by_success))
            self.kept += tried.working

    def search(self, index: int) -> None:
        """Search once more for one place, of a form that worked there, of each in turn.

        A patch where none did. What is found is kept if it works and is no large patch.

        Args:
            index: of the place.
        """
        # Made anew each time: the model has moved on.
        place = self._place(index)
        if not len(place.images):
            return
        forms = self._forms.setdefault(index, deque(["patch"]))
        found = place.one(forms[0], self.draws)
        forms.rotate(-1)
        self._note(index, found)
        tried = Tried.of([found], least_success=self.least_success)
        self.kept += tried.working
        self.large += len(tried.large)

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 logits of images under a stand-in of the bank."""
        which = int(torch.randint(len(self.kept), (), generator=self.draws))
        return self.model.logits(self.kept[which].put_on(images))

    def _place(self, index: int) -> PlaceSearch:
        goals, traces = self.places[index]
        return PlaceSearch(self.model, self.data, goals, traces=traces, settings=self.settings)

    def _note(self, index: int, found: StandIn) -> None:
        self.log.append(Searched(index=index, found=found))
