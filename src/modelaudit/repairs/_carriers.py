"""Prunes the neurons that carry a suspicious prediction and that clean images do not need.

[O] Suspicious neurons are many and needed to different degrees: ranking them by how suspicious they
are alone removes needed ones before the backdoor's last. Two first-order estimates decide instead.
With g the gate of a neuron (1: it is there, 0: it is pruned):

    benefit = mean over suspicious images of d(margin of their suspicious prediction)/dg
    cost    = mean over clean images of (d(cross-entropy to own prediction)/dg)² / 2

The cost is the Gauss-Newton estimate of what pruning adds to the loss: at a trained network's own
predictions the first order all but vanishes. Neurons with the largest benefit for their cost go
first, a few at a time; then the benefit is computed again, since what is left matters in another
way. A neuron that turns out to be needed stays, and the next best takes its place.

Asking the validation images about one choice after another soon fits the choice to them: on 100
images, neurons whose removal happens to change no answer of theirs cost points elsewhere. So the
accuracy is guarded on all clean images, which train nothing here; the validation images alone only
save the time for the rest where they already say no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.repairs._amount import ROUNDING, accuracy_without
from modelaudit.repairs._gates import gate_gradients
from modelaudit.scanners._channels import prune_edits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect

#: How a removal ends that has reached its aim.
GONE = "the suspicious predictions are gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Images in a state in which they get a prediction that they should not get.

    Attributes:
        images: ``(n, C, S, S)``.
        targets: ``(n,)`` int64, the suspicious predictions.
        state: opens the state around a pass over all of `images` at once.
    """

    images: Tensor
    targets: Tensor
    state: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Which neurons are to go, and what was seen on the way.

    Attributes:
        neurons: in the order in which they were chosen.
        rounds: (neurons pruned, share of suspicious images that keep their suspicious prediction,
            accuracy on all clean images), from none on.
        stop: why it ended there, in words.
        refused: how many neurons turned out to be needed.
    """

    neurons: tuple[Neuron, ...]
    rounds: tuple[tuple[int, float, float], ...]
    stop: str
    refused: int = 0

    def details(self) -> dict[str, Json]:
        """Return what readers of the JSON want to know."""
        return {
            "rounds": [list(entry) for entry in self.rounds],
            "rounds_are": "neurons pruned, suspicious predictions left, accuracy",
            "stop": self.stop,
        }


def pruning_costs(model: Suspect, images: Tensor, *, batch_size: int) -> Tensor:
    """Return each neuron's cost, ``(D_total,)`` float64: nats per image, not negative.

    Args:
        model: the copy, in eval mode.
        images: clean images; labels are not needed.
        batch_size: images computed together.
    """
    own = model.predict(images, batch_size=batch_size).to(model.device)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(logits, own[rows], reduction="none")

    _, squares = gate_gradients(model, images, loss, batch_size=batch_size)
    return 0.5 * squares


def remove_carriers(
    model: Suspect,
    candidates: Sequence[Neuron],
    suspicion: Suspicion,
    costs: Tensor,
    data: RepairData,
    context: RepairContext,
    *,
    pruned: Sequence[Neuron] = (),
    step: int,
    max_neurons: int,
    max_drop: float,
    max_remaining: float,
    max_refused: int,
) -> Removal:
    """Choose neurons until the suspicious predictions are gone or the accuracy forbids more.

    Args:
        model: the copy, in eval mode; not changed.
        candidates: neurons that may go.
        suspicion: whose predictions are to change.
        costs: of `pruning_costs`.
        data: the clean images, which guard the accuracy.
        context: limits; the smaller of its budget and `max_drop` counts.
        pruned: neurons that are gone already; the result begins with them.
        step: neurons per round.
        max_neurons: most neurons that may go, those included.
        max_drop: largest drop of the accuracy on all clean images, a fraction.
        max_remaining: share of suspicious images that may keep their prediction.
        max_refused: how many neurons may turn out to be needed before it gives up.
    """
    index = {
        n: i for i, n in enumerate((s.name, k) for s in model.sites for k in range(s.channels))
    }
    allowed = torch.zeros(len(index), dtype=torch.bool)
    allowed[[index[neuron] for neuron in candidates]] = True
    allowed[[index[neuron] for neuron in pruned]] = False
    names = list(index)
    # A neuron without any cost is no infinite bargain: half of all cost less than the median.
    scale = costs + costs.median().clamp_min(torch.finfo(torch.float64).tiny)
    guard = _Guard(model, data, context, pruned=pruned, max_drop=max_drop)
    chosen = [*pruned]
    rounds: list[tuple[int, float, float]] = []
    stop, refused = "no candidate is left", 0
    while True:
        if not rounds or rounds[-1][0] < len(chosen):
            benefits, remaining = _benefits(model, chosen, suspicion)
            rounds.append((len(chosen), remaining, guard.accuracy))
        if rounds[-1][1] <= max_remaining:
            stop = GONE
            break
        worth = torch.where(allowed & (benefits > 0), benefits / scale, -torch.inf)
        order = worth.argsort(descending=True, stable=True)[: min(step, max_neurons - len(chosen))]
        more = [names[i] for i in order.tolist() if worth[i] > 0]
        if not more:
            break
        holds = guard.holds([*chosen, *more])
        while not holds and len(more) > 1:
            more = more[: max(1, len(more) // 4)]
            holds = guard.holds([*chosen, *more])
        allowed[[index[neuron] for neuron in more]] = False
        if holds:
            chosen += more
            continue
        # Clean images need this one: it stays, and the next best takes its place.
        refused += 1
        if refused > max_refused:
            stop = "the accuracy allows no more"
            break
    return Removal(neurons=tuple(chosen), rounds=tuple(rounds), stop=stop, refused=refused)


class _Guard:
    """Says whether the accuracy allows to prune neurons."""

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        context: RepairContext,
        *,
        pruned: Sequence[Neuron],
        max_drop: float,
    ) -> None:
        self.model = model
        self.data = data
        self.context = context
        self.everything = torch.cat([data.validation, data.work]).unique()
        allowed = min(max_drop, context.max_accuracy_drop)
        # One image of a small part says nothing: all images together decide.
        quick = max(allowed, 1 / len(data.validation))
        self.quick_floor = self._on((), data.validation) - quick - ROUNDING
        self.floor = self._on((), self.everything) - allowed - ROUNDING
        #: of all images under what was last accepted
        self.accuracy = self._on(pruned, self.everything)

    def holds(self, neurons: Sequence[Neuron]) -> bool:
        """Return whether all images together keep their accuracy."""
        if self._on(neurons, self.data.validation) < self.quick_floor:
            return False
        seen = self._on(neurons, self.everything)
        if seen < self.floor:
            return False
        self.accuracy = seen
        return True

    def _on(self, neurons: Sequence[Neuron], part: Tensor) -> float:
        return accuracy_without(self.model, neurons, self.data, self.context, part=part)


def _benefits(
    model: Suspect, pruned: Sequence[Neuron], suspicion: Suspicion
) -> tuple[Tensor, float]:
    """Return every neuron's benefit, and the share of images with their suspicious prediction."""
    targets = suspicion.targets.to(model.device)
    kept: list[Tensor] = []

    def margin(logits: Tensor, rows: Tensor) -> Tensor:
        wanted = targets[rows].unsqueeze(1)
        kept.append((logits.detach().argmax(1) == wanted.squeeze(1)).cpu())
        own = logits.gather(1, wanted).squeeze(1)
        return own - logits.scatter(1, wanted, -torch.inf).logsumexp(1)

    with model.edited(prune_edits(model, pruned)), suspicion.state():
        benefits, _ = gate_gradients(
            model, suspicion.images, margin, batch_size=len(suspicion.images)
        )
    return benefits, float(torch.cat(kept).double().mean())
