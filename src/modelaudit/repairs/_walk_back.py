"""How far a trained copy goes from where its training began: as far as the accuracy allows.

Training on few images costs accuracy, and the cost grows faster than the distance: on the straight
line between the weights before and after it, half of the way costs far less than half
(docs/adr/0020-walking-back.md). So a repair trains to the end of its schedule and then walks back
until views of the validation images show no more than its part of the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.repairs._training import module_state
from modelaudit.repairs._views import VIEWS, view_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelaudit.repairs._augment import Augmentation
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect

#: Part of the accuracy budget that the validation images may show as lost: some hundred of them
#: tell a loss to a point, and other images judge the repair afterwards.
SPENT = 0.5
_OVER = (
    "{:.0%} of what training changed is kept: it costs least of all places on the way back, and "
    "more than half of the accuracy budget"
)
#: Temperatures that the confidence of a place is matched by, and halvings of that range.
_COLDEST, _HOTTEST, _HALVINGS = 0.05, 20.0, 40
#: Shares of the way that may be kept, the furthest first, and how many of them a walk looks at.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
_LOOKS = 1 + math.ceil(math.log2(len(SHARES)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """Where a walk ended; by default nobody has walked.

    Attributes:
        kept: share of the way that is kept; 1 for the trained weights.
        is_within: whether it costs no more than its part of the budget.
        tried: share, accuracy and probability of the right class of every place looked at, in the
            order in which they were.
    """

    kept: float = 1.0
    is_within: bool = True
    tried: tuple[tuple[float, float, float], ...] = ()

    @property
    def details(self) -> dict[str, Json]:
        """What readers of the JSON want to know."""
        return {
            "kept_share": self.kept,
            "is_within_half_of_budget": self.is_within,
            "tried_shares": [list(place) for place in self.tried],
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of the report should see."""
        if not self.is_within:
            return (_OVER.format(self.kept),)
        if self.kept == 1.0:
            return ()
        return (f"{self.kept:.0%} of what training changed is kept, for the accuracy",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How well a network answers the validation images.

    Where the network bears no views, a few hundred images tell accuracies a point and a half apart
    at best. The probability of the right class moves with every image; how sure a network is of all
    its answers must be taken out of it.

    Attributes:
        accuracy: share of the views whose likeliest class is right.
        probability: mean probability of the right class, at a temperature at which the mean largest
            probability is `confidence`.
        confidence: that of the suspect.
    """

    accuracy: float
    probability: float
    confidence: float


def standing(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    augmentation: Augmentation,
    confidence: float | None = None,
) -> Standing:
    """Measure a network on views of the validation images, in float32.

    Args:
        model: the network.
        data: see `view_logits`, as for `context`.
        context: see there.
        augmentation: what the network bears.
        confidence: see `Standing`; None takes the network's own.
    """
    logits, labels = view_logits(model, data, context, augmentation)
    if confidence is None:
        confidence = _confidence(logits)
    else:
        logits = logits / _temperature(logits, confidence)
    right = logits.softmax(1).gather(1, labels[:, None])
    return Standing(
        accuracy=float((logits.argmax(1) == labels).double().mean()),
        # An answer that is no number is no answer.
        probability=float(right.nan_to_num(0.0).mean()),
        confidence=confidence,
    )


def passes(data: RepairData) -> int:
    """Return the forward passes of a walk back and of the standings before it, at most."""
    return (2 + _LOOKS) * VIEWS * len(data.validation)


def _confidence(logits: Tensor) -> float:
    return float(logits.softmax(1).max(1).values.mean())


def _temperature(logits: Tensor, confidence: float) -> float:
    low, high = _COLDEST, _HOTTEST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _confidence(logits / middle) > confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def walk_back(
    model: Suspect,
    start: Mapping[str, Tensor],
    data: RepairData,
    context: RepairContext,
    *,
    augmentation: Augmentation,
    before: Standing,
) -> WayBack:
    """Move ``model.module`` from its trained weights towards `start`, as far as it has to.

    Weights and running statistics go together, on the straight line; where a neuron is pruned at
    both ends it is everywhere between. Counters of batches stay the trained ones. The way is
    halved, for what is further costs more.

    Args:
        model: the trained copy, in eval mode.
        start: `module_state` before the training.
        data: `validation` says what a place costs.
        context: gives the budget; what an earlier repair has cost is no longer left of it.
        augmentation: what the network bears.
        before: of the copy before anything was done to it, with the same augmentation.

    Returns:
        The furthest of `SHARES` where neither accuracy nor probability of the right class is lower
        than before by more than `SPENT` of what is left of the budget. Where none of those looked
        at is, as where pruning has cost more before the training, the one where the larger of the
        two losses is least, the furthest of equals.
    """
    end = module_state(model.module)
    left = context.max_accuracy_drop
    if context.original is not None:
        first = standing(context.original, data, context, augmentation=augmentation)
        left -= max(0.0, first.accuracy - before.accuracy)
    # Accuracies are quotients of counts; the budget must not fall to their rounding.
    limit = SPENT * max(0.0, left) + 1e-9
    tried: list[tuple[float, float, float]] = []
    losses: dict[float, float] = {}
    places = list(SHARES)
    while places:
        # The whole way first: where it costs little there is nothing to walk.
        middle = 0 if not tried else len(places) // 2
        share = places[middle]
        model.module.load_state_dict(between(start, end, share))
        now = standing(
            model, data, context, augmentation=augmentation, confidence=before.confidence
        )
        tried.append((share, now.accuracy, now.probability))
        losses[share] = max(before.accuracy - now.accuracy, before.probability - now.probability)
        places = places[:middle] if losses[share] <= limit else places[middle + 1 :]
    within = [share for share, loss in losses.items() if loss <= limit]
    kept = max(within, default=min(losses, key=lambda share: (losses[share], -share)))
    model.module.load_state_dict(between(start, end, kept))
    return WayBack(kept=kept, is_within=bool(within), tried=tuple(tried))


def between(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return the state at a share of the straight line from `start` to `end`, integers of `end`.

    What both ends have stays, infinite masks too.
    """
    state = {}
    for name, tensor in end.items():
        there = tensor
        if tensor.is_floating_point():
            there = torch.lerp(start[name], tensor, share)
            there = torch.where(start[name] == tensor, tensor, there)
        state[name] = there
    return state
