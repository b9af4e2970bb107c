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

from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._training import module_state
from modelaudit.repairs._views import VIEWS, choose_views, view_accuracy, view_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect

#: Part of the accuracy budget that the validation images may show as lost: some hundred of them
#: tell a loss to a point, and other images judge the repair afterwards.
SPENT = 0.5
_OVER = (
    "{:.0%} of what training changed is kept: it costs least of the places on the way back, and "
    "more than half of the accuracy budget"
)
#: Temperatures that the confidence of a place is matched by, and halvings of that range.
_COLDEST, _HOTTEST, _HALVINGS = 0.05, 20.0, 40
#: Shares of the way that may be kept, the furthest first.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """Where a walk ended; by default nobody has walked.

    Attributes:
        kept: share of the way that is kept; 1 for the trained weights.
        is_within: whether it costs no more than its part of the budget.
        tried: share, accuracy over views and over plain images, and probability of the right class
            of every place looked at, in the order in which they were.
    """

    kept: float = 1.0
    is_within: bool = True
    tried: tuple[tuple[float, ...], ...] = ()

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

    A few hundred plain images tell accuracies a point and a half apart at best, views of them half
    of that. The probability of the right class moves with every image; how sure a network is of all
    its answers must be taken out of it.

    Attributes:
        accuracy: share of the views whose likeliest class is right.
        plain: the same of the images as they are.
        probability: mean probability of the right class, at a temperature at which the mean largest
            probability is `confidence`.
        confidence: that of the suspect.
        seen: how the images are seen.
    """

    accuracy: float
    plain: float
    probability: float
    confidence: float
    seen: Augmentation

    def loss_from(self, before: Standing) -> float:
        """Return what has been lost since, by the measure that shows most."""
        return max(
            before.accuracy - self.accuracy,
            before.plain - self.plain,
            before.probability - self.probability,
        )


def standing(
    model: Suspect, data: RepairData, context: RepairContext, augmentation: Augmentation
) -> Standing:
    """Measure a network before its training, and choose how the validation images are seen.

    Args:
        model: the network.
        data: see `view_logits`, as for `context`.
        context: see there.
        augmentation: of the training.
    """
    return _measured(model, data, context, seen=choose_views(model, data, context, augmentation))


def standing_like(
    model: Suspect, data: RepairData, context: RepairContext, before: Standing
) -> Standing:
    """Measure a network as another was measured, at its confidence."""
    return _measured(model, data, context, seen=before.seen, confidence=before.confidence)


def _measured(
    model: Suspect,
    data: RepairData,
    context: RepairContext,
    *,
    seen: Augmentation,
    confidence: float | None = None,
) -> Standing:
    logits, labels = view_logits(model, data, context, seen)
    plain = view_accuracy(model, data, context, Augmentation())
    if confidence is None:
        confidence = _confidence(logits)
    else:
        logits = logits / _temperature(logits, confidence)
    right = logits.softmax(1).gather(1, labels[:, None])
    return Standing(
        accuracy=float((logits.argmax(1) == labels).double().mean()),
        plain=plain,
        # An answer that is no number is no answer.
        probability=float(right.nan_to_num(0.0).mean()),
        confidence=confidence,
        seen=seen,
    )


def passes(data: RepairData) -> int:
    """Return the forward passes of a walk back and of what is measured before it, at most.

    Halving, it mostly looks at four or five places.
    """
    return (3 + len(SHARES)) * (VIEWS + 1) * len(data.validation)


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
    before: Standing,
) -> WayBack:
    """Move ``model.module`` from its trained weights towards `start`, as far as it has to.

    Weights and running statistics go together, on the straight line; where a neuron is pruned at
    both ends it is everywhere between. Counters of batches stay the trained ones. The way is
    halved, for what is further mostly costs more; where nothing is found so, as where pruning has
    cost something that only the training mends, all other places are looked at too.

    Args:
        model: the trained copy, in eval mode.
        start: `module_state` before the training.
        data: `validation` says what a place costs.
        context: gives the budget; what an earlier repair has cost is no longer left of it.
        before: of the copy before anything was done to it.

    Returns:
        The furthest place of those looked at where neither accuracy, over views nor over plain
        images, nor the probability of the right class is lower than before by more than `SPENT` of
        what is left of the budget. Where there is none, as where pruning has cost more before the
        training, the one where the largest of the losses is least, the furthest of equals.
    """
    end = module_state(model.module)
    left = context.max_accuracy_drop
    if context.original is not None:
        first = standing_like(context.original, data, context, before)
        left -= max(0.0, before.loss_from(first))
    # Accuracies are quotients of counts; the budget must not fall to their rounding.
    limit = SPENT * max(0.0, left) + ROUNDING
    tried: list[tuple[float, ...]] = []
    losses: dict[float, float] = {}

    def is_within(share: float) -> bool:
        model.module.load_state_dict(between(start, end, share))
        now = standing_like(model, data, context, before)
        tried.append((share, now.accuracy, now.plain, now.probability))
        losses[share] = now.loss_from(before)
        return losses[share] <= limit

    kept = _furthest(is_within)
    is_found = kept is not None
    if kept is None:
        kept = min(losses, key=lambda share: (losses[share], -share))
    model.module.load_state_dict(between(start, end, kept))
    return WayBack(kept=kept, is_within=is_found, tried=tuple(tried))


def _furthest(is_within: Callable[[float], bool]) -> float | None:
    """Return the furthest share that will do, or None; each share is asked about once at most."""
    # The whole way first: where it costs little there is nothing to walk.
    if is_within(SHARES[0]):
        return SHARES[0]
    found: float | None = None
    places, asked = list(SHARES[1:]), set(SHARES[:1])
    while places:
        middle = len(places) // 2
        asked.add(places[middle])
        if is_within(places[middle]):
            found, places = places[middle], places[:middle]
        else:
            places = places[middle + 1 :]
    if found is None:
        found = next((s for s in SHARES if s not in asked and is_within(s)), None)
    return found


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
