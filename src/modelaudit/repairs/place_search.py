"""Searches of stand-ins for a trigger that lead a clean set to one place.

What repairs train against and what bears witness after them are searched alike, each with settings
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from modelaudit.repairs.stand_ins import Patch, Warp, search_patch, search_warp
from modelaudit.repairs.targets import STAYS
from modelaudit.repairs.trace_match import TraceMatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import Tensor

    from modelaudit.progress import Task
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.stand_ins import Form, StandIn
    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect

#: Searches of a warp for each place.
WARP_STARTS = 1
#: A patch of more than this share of the image is not taken for the trigger's: nearly all of those
#: take less (9 to 23 of 1,024 pixels where this is 26, and one 32), and larger ones lead to classes
#: that nobody has poisoned (31 to 50).
LARGE_PATCH = 1 / 40


def is_large_patch(stand_in: StandIn) -> bool:
    """Return whether it is a patch that takes more pixels than a trigger's do."""
    return isinstance(stand_in, Patch) and stand_in.is_large(LARGE_PATCH)


def searches(starts: int) -> int:
    """Return how many searches a place takes with `starts` of a patch."""
    return starts + WARP_STARTS


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
        price_alone: the same where there are no traces to keep patches from what is only large.
        warp_limit: farthest that a warp moves a pixel along a side, as a share of the side.
        dtype: of convolutions and matrix products; None for float32.
        batch_size: images computed together outside the steps.
    """

    steps: int
    batch: int
    price: float
    price_alone: float
    warp_limit: float
    dtype: torch.dtype | None
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tried:
    """What searches for one place have found.

    Attributes:
        all: every stand-in, in order.
        working: those that lead enough images, without the large patches.
        large: patches that lead enough, and take more pixels than a trigger's do.
    """

    all: tuple[StandIn, ...]
    working: tuple[StandIn, ...]
    large: tuple[StandIn, ...] = ()

    @classmethod
    def of(cls, tried: Sequence[StandIn], *, least_success: float) -> Tried:
        """Return what searches for one place have found, sorted.

        Args:
            tried: in order.
            least_success: share of the images that one has to lead to work.
        """
        able = [one for one in tried if one.success >= least_success]
        return cls(
            all=tuple(tried),
            working=tuple(one for one in able if not is_large_patch(one)),
            large=tuple(filter(is_large_patch, able)),
        )


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
        self._traces = traces

    @cached_property
    def match(self) -> TraceMatch | None:
        """Of these images; None without traces, without images, or where no layer shows any."""
        if self._traces is None or not len(self.images):
            return None
        match = TraceMatch(
            self.model,
            self._traces.found,
            self.images,
            weight=self._traces.weight,
            is_opposite=self._traces.is_opposite,
            batch_size=self.settings.batch_size,
        )
        return match if match.layers else None

    def search(
        self,
        starts: int,
        *,
        least_success: float,
        draws: Callable[[Form, int], torch.Generator],
        progress: Task | None = None,
    ) -> Tried:
        """Search patches and a warp.

        Both, whatever is found: a network that was trained on warps can have a patch that works for
        some of its images, and what is learned or shown of that says little of the warp. Warps from
        different starts end alike, so one is searched.

        Args:
            starts: searches of a patch.
            least_success: share of the images that one has to lead to work.
            draws: CPU generator of a search, by its form and number.
            progress: gets `searches` units, whether there is anything to search or not.
        """
        tried: list[StandIn] = []
        if len(self.images):
            counts: tuple[tuple[Form, int], ...] = (("patch", starts), ("warp", WARP_STARTS))
            for form, count in counts:
                for start in range(count):
                    tried.append(self.one(form, draws(form, start)))
                    if progress is not None:
                        progress.advance()
        elif progress is not None:
            progress.advance(searches(starts))
        return Tried.of(tried, least_success=least_success)

    def one(self, form: Form, draws: torch.Generator) -> StandIn:
        """Search one of a form; there must be images to lead.

        Args:
            form: patches follow the traces, warps do not: whoever trains on warps often trains on
                near-warps with the right label too, whose traces are as large.
            draws: CPU generator of this search.
        """
        return self._patch(draws) if form == "patch" else self._warp(draws)

    def go_on(self, patch: Patch, draws: torch.Generator) -> Patch:
        """Search on from a patch that was found in another network; there must be images to lead.

        Args:
            patch: where the search begins.
            draws: CPU generator of its batches.

        Returns:
            The patch, with its success on the images here.
        """
        return self._patch(draws, start=patch)

    def _patch(self, draws: torch.Generator, *, start: Patch | None = None) -> Patch:
        settings = self.settings
        return search_patch(
            self.model,
            self.images,
            self.wanted,
            steps=settings.steps,
            batch=settings.batch,
            price=settings.price_alone if self.match is None else settings.price,
            dtype=settings.dtype,
            generator=draws,
            match=self.match,
            start=start,
        )

    def _warp(self, draws: torch.Generator) -> Warp:
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
