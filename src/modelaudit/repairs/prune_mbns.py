"""MBNS pruning: channels whose BatchNorm statistics clean images do not explain ([DDE22] §4.4).

The paper prunes every channel whose divergence K exceeds mean + u · sd of its layer. On a narrow
network that hits needed channels, and misses the backdoor's once they are a tenth of a layer
(``paper_code`` keeps it). Here a channel may go if its K stands out from the sampling floor, as the
scanner of the same name measures it. Which of these go, and how many, is found without a trigger:

- Clean images are displaced, in the means of these channels, to where the poisoned ones must have
  been (`modelaudit.repairs._displaced`). In a backdoored model that leads them to the target.
- A step pays while displaced images still go where the displacement sent them: channels that carry
  this and that clean images do not need go first, a few at a time (`modelaudit.repairs._carriers`).
- It ends when displaced images no longer go there, or where the accuracy forbids more.

A model without a channel that stands out as far as the scanner asks for, or whose displaced images
go nowhere, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.repairs._traces import TraceConfig, cut_carriers, follow_traces
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.prune_mbns_paper_code import PruneMbnsPaperCodeRepair
from modelaudit.repairs.pruning import prune_mask
from modelaudit.results import Cost

if TYPE_CHECKING:
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMbnsConfig(TraceConfig):
    """Hyper-parameters of `PruneMbnsRepair`: those of the search."""


class PruneMbnsRepair(Repair[PruneMbnsConfig]):
    """Channels with mismatched statistics that carry what the mismatch leads to."""

    id = "prune_mbns"
    version = "2"
    summary = "channels whose BatchNorm statistics clean images do not explain"
    reference = "[DDE22] §4.4"
    config_type = PruneMbnsConfig
    variants = MappingProxyType({"paper_code": PruneMbnsPaperCodeRepair})
    requires_batchnorm = True
    requires_gradients = True
    min_images = 20

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes beyond the shared profile, at most."""
        forward, forward_backward = self.config.passes(suspect, data)
        return Cost(forward=forward + 1, forward_backward=forward_backward)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        followed = follow_traces(
            model, self.profile(model, data, context), data, context, self.config
        )
        if followed.lead is None:
            return Change(details=followed.details, notes=(followed.reason,))
        removal = cut_carriers(model, followed.lead, data, context, self.config)
        mask = prune_mask(model, removal.neurons)
        mask.apply(model.module)
        return Change(
            mask=mask if removal.neurons else None,
            details={**followed.details, **removal.details()},
            notes=(f"pruning ended because {removal.stop}",),
        )
