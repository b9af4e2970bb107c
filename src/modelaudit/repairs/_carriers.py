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

Gradients are cheap, since few images are suspicious; accuracies are not. So neurons are chosen
some rounds ahead, and only then is the accuracy asked; where it says no, a quarter of the choice is
taken, or a quarter of that. Taking as many as it just allows would spend all of it at once, on
neurons that the next look at the benefits might not choose.

Asking the validation images about one choice after another soon fits the choice to them: on 100
images, neurons whose removal happens to change no answer of theirs cost points elsewhere. So the
accuracy is guarded on many clean images, which train nothing here; the validation images alone only
save the time for the rest where they already say no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._amount import Answers
from modelaudit.repairs._gates import gate_gradients
from modelaudit.scanners._channels import prune_edits
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.results import Json
    from modelaudit.suspect import Site, Suspect

#: How a removal ends that has reached its aim.
GONE = "the suspicious predictions are gone"
_EXHAUSTED = "no candidate is left"
_FULL = "as many channels went as may go (max_fraction)"

#: Rounds of neurons that are chosen before the accuracy is asked.
_ROUNDS_AHEAD = 2


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
            accuracy on the guarding images) whenever the accuracy was asked, from none on.
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


def pruning_costs(
    model: Suspect, images: Tensor, *, batch_size: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Return each neuron's cost, ``(D_total,)`` float64: nats per image, not negative.

    Args:
        model: the copy, in eval mode.
        images: clean images; labels are not needed.
        batch_size: images computed together.
        dtype: of convolutions; None is float32.
    """

    def loss(logits: Tensor, _rows: Tensor) -> Tensor:
        return F.cross_entropy(logits, logits.detach().argmax(1), reduction="none")

    with model.autocast(dtype):
        _, squares = gate_gradients(model, images, loss, batch_size=batch_size)
    return 0.5 * squares


def remove_carriers(
    model: Suspect,
    candidates: Sequence[Neuron],
    suspicion: Suspicion,
    costs: Tensor,
    guard: Guard,
    *,
    pruned: Sequence[Neuron] = (),
    step: int,
    max_neurons: int,
    max_remaining: float,
    max_refused: int,
    dtype: torch.dtype | None = None,
) -> Removal:
    """Choose neurons until the suspicious predictions are gone or the accuracy forbids more.

    Args:
        model: the copy, in eval mode; not changed.
        candidates: neurons that may go.
        suspicion: whose predictions are to change.
        costs: of `pruning_costs`.
        guard: says what the accuracy allows.
        pruned: neurons that are gone already, and that the guard allowed; the result begins with
            them.
        step: neurons per round.
        max_neurons: most neurons that may go, those included.
        max_remaining: share of suspicious images that may keep their prediction.
        max_refused: how many neurons may turn out to be needed before it gives up.
        dtype: of convolutions in gradients; None is float32.
    """
    search = _Search(
        model, candidates, suspicion, costs, step=step, max_remaining=max_remaining, dtype=dtype
    )
    chosen = [*pruned]
    benefits, remaining = search.look(chosen)
    rounds = [(len(chosen), remaining, guard.accuracy)]
    refused = 0
    while True:
        path, ahead, stop = search.ahead(chosen, benefits, remaining, max_neurons=max_neurons)
        if not path:
            break
        held = guard.cut(chosen, path)
        chosen += path[:held]
        if held == 0:
            # Clean images need this one: it stays, and the next best takes its place.
            search.keep(path[0])
            refused += 1
        else:
            benefits, remaining = ahead if held == len(path) else search.look(chosen)
            rounds.append((len(chosen), remaining, guard.accuracy))
        if refused > max_refused:
            stop = GONE if remaining <= max_remaining else "the accuracy allows no more"
            break
        if held == len(path) and stop:
            break
    return Removal(neurons=tuple(chosen), rounds=tuple(rounds), stop=stop, refused=refused)


class _Search:
    """Chooses neurons by their benefit for their cost, whatever the accuracy says."""

    def __init__(
        self,
        model: Suspect,
        candidates: Sequence[Neuron],
        suspicion: Suspicion,
        costs: Tensor,
        *,
        step: int,
        max_remaining: float,
        dtype: torch.dtype | None,
    ) -> None:
        self.model = model
        self.suspicion = suspicion
        self.step = step
        self.max_remaining = max_remaining
        self.dtype = dtype
        self.names = [(s.name, k) for s in model.sites for k in range(s.channels)]
        named = {name for name, _ in candidates}
        #: where gradients are asked for: none flow back beyond the first of these
        self.sites = tuple(s for s in model.sites if s.name in named) or model.sites
        self.index = {neuron: i for i, neuron in enumerate(self.names)}
        self.allowed = torch.zeros(len(self.names), dtype=torch.bool)
        self.allowed[[self.index[neuron] for neuron in candidates]] = True
        # A neuron without any cost is no infinite bargain: half of all cost less than the median.
        self.scale = costs + costs.median().clamp_min(torch.finfo(torch.float64).tiny)

    def keep(self, neuron: Neuron) -> None:
        """Never choose `neuron`."""
        self.allowed[self.index[neuron]] = False

    def look(self, pruned: Sequence[Neuron]) -> tuple[Tensor, float]:
        """Return every candidate's benefit, and the share of images with their prediction."""
        return _benefits(self.model, pruned, self.suspicion, sites=self.sites, dtype=self.dtype)

    def ahead(
        self, chosen: Sequence[Neuron], benefits: Tensor, remaining: float, *, max_neurons: int
    ) -> tuple[list[Neuron], tuple[Tensor, float], str]:
        """Choose neurons for some rounds.

        Returns:
            They, most worth first; what `look` says without them; why there will be no further
            round, or an empty text.
        """
        path: list[Neuron] = []
        for _ in range(_ROUNDS_AHEAD):
            if remaining <= self.max_remaining:
                return path, (benefits, remaining), GONE
            best = self._best(benefits, {*chosen, *path})
            more = best[: max(0, max_neurons - len(chosen) - len(path))]
            if not more:
                return path, (benefits, remaining), _FULL if best else _EXHAUSTED
            path += more
            benefits, remaining = self.look([*chosen, *path])
        return path, (benefits, remaining), GONE if remaining <= self.max_remaining else ""

    def _best(self, benefits: Tensor, gone: set[Neuron]) -> list[Neuron]:
        allowed = self.allowed & (benefits > 0)
        allowed[[self.index[neuron] for neuron in gone]] = False
        worth = torch.where(allowed, benefits / self.scale, -torch.inf)
        order = worth.argsort(descending=True, stable=True)[: self.step]
        return [self.names[i] for i in order.tolist() if worth[i] > 0]


class Guard:
    """Says whether the accuracy allows to prune neurons.

    Args:
        model: the copy, in eval mode.
        data: the clean images.
        context: limits; the smaller of its budget and `max_drop` counts.
        max_drop: largest drop of the accuracy, a fraction.
        max_images: most images that are asked; validation images first.

    Attributes:
        accuracy: over the guarding images, under what was last allowed.
    """

    def __init__(
        self,
        model: Suspect,
        data: RepairData,
        context: RepairContext,
        *,
        max_drop: float,
        max_images: int,
    ) -> None:
        rest = data.work[~torch.isin(data.work, data.validation)]
        draws = generator(context.seed, "repair", "guard")
        rest = rest[torch.randperm(len(rest), generator=draws)]
        everything = torch.cat([data.validation, rest])[:max_images]
        split = len(data.validation)
        self.quick = Answers(model, data, context, part=everything[:split])
        self.rest = Answers(model, data, context, part=everything[split:])
        right = self.quick.right(())
        allowed = min(max_drop, context.max_accuracy_drop)
        # One image of a small part says nothing: all images together decide.
        self.quick_floor = float(right.double().mean()) - max(allowed, 1 / len(right)) - ROUNDING
        self.has_rest = len(everything) > split
        if self.has_rest:
            right = torch.cat([right, self.rest.right(())])
        self.accuracy = float(right.double().mean())
        self.floor = self.accuracy - allowed - ROUNDING

    def cut(self, pruned: Sequence[Neuron], path: Sequence[Neuron]) -> int:
        """Return how many of `path`, from its front, are to go beside `pruned`.

        All of them, or a quarter of that, and so on; 0 if not even the first may go.
        """
        count = len(path)
        while not self.holds([*pruned, *path[:count]]):
            if count == 1:
                return 0
            count = max(1, count // 4)
        return count

    def holds(self, neurons: Sequence[Neuron]) -> bool:
        """Return whether all guarding images together keep their accuracy."""
        right = self.quick.right(neurons)
        if self.has_rest:
            if float(right.double().mean()) < self.quick_floor:
                return False
            right = torch.cat([right, self.rest.right(neurons)])
        seen = float(right.double().mean())
        if seen < self.floor:
            return False
        self.accuracy = seen
        return True


def _benefits(
    model: Suspect,
    pruned: Sequence[Neuron],
    suspicion: Suspicion,
    *,
    sites: Sequence[Site],
    dtype: torch.dtype | None,
) -> tuple[Tensor, float]:
    """Return neurons' benefit, and the share of images with their suspicious prediction.

    Neurons outside `sites` have none.
    """
    targets = suspicion.targets.to(model.device)
    kept: list[Tensor] = []

    def margin(logits: Tensor, rows: Tensor) -> Tensor:
        wanted = targets[rows].unsqueeze(1)
        kept.append((logits.detach().argmax(1) == wanted.squeeze(1)).cpu())
        own = logits.gather(1, wanted).squeeze(1)
        return own - logits.scatter(1, wanted, -torch.inf).logsumexp(1)

    with (
        model.edited(prune_edits(model, pruned)),
        suspicion.state(),
        model.autocast(dtype),
    ):
        benefits, _ = gate_gradients(
            model, suspicion.images, margin, batch_size=len(suspicion.images), sites=sites
        )
    return benefits, float(torch.cat(kept).double().mean())
