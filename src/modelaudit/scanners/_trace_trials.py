"""What channels with a trace do: what each of them costs, and where they lead together.

The confirmation of MBNS (methods/detectors.md §0.5 and §2.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.functional.rates import ROUNDING
from modelaudit.functional.shares import arrow_map, is_permutation_like
from modelaudit.scanners._channels import Neuron, pruned_predictions, push_test, pushed_predictions
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.scanners._channels import PushTest
    from modelaudit.scanners._divergences import Divergences
    from modelaudit.scanners.base import CleanImages, ScanContext
    from modelaudit.suspect import Suspect

#: share of a class's search images, on average, that a push need not exceed
_FAR_ENOUGH = 0.9
#: and that has to move for a permutation of the classes to be one
_LEAST_SHIFT = 0.2
#: share of the search images that removing a channel may cost which the network does not need
_FREE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What some traced channels do when they are pushed.

    Attributes:
        poisoned_share: assumed share of poisoned images that says how far they are pushed; negative
            where the trigger lies on the other side of the clean mean.
        push: neurons to what is added to the layer's input.
        test: where that leads, beside controls.
    """

    poisoned_share: float
    push: dict[Neuron, float]
    test: PushTest

    @property
    def leads(self) -> bool:
        """Whether the push leads to one class, or shifts all, as no control does."""
        return self.test.beats_controls or self.test.leads_to_all


class TraceTrials:
    """Tries channels of one suspect that carry a trace.

    Args:
        suspect: in a borrow.
        clean: of which S chooses how far to push and says what is needed, and E judges.
        context: of the scan.
        found: divergences of every channel.
        traced: rows of those that carry a trace, the clearest first.
        poisoned_shares: assumed shares of poisoned images, which say how far traces are pushed.
        controls: random channel sets that a push is compared with.
    """

    def __init__(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        found: Divergences,
        traced: list[int],
        *,
        poisoned_shares: Sequence[float],
        controls: int,
    ) -> None:
        self._suspect = suspect
        self._context = context
        self._found = found
        self._traced = traced
        self._shares = [sign * share for share in poisoned_shares for sign in (1, -1)]
        self._controls = controls
        self._held_out = clean.judged()
        kept = clean.search[clean.predictions[clean.search] == clean.labels[clean.search]]
        self._search = clean.images[kept], clean.labels[kept]

    def push(self, pushed: list[int]) -> Trial:
        """Push channels as far as suits them; the controls carry no trace."""
        images, labels = self._held_out
        poisoned_share, push = self._best_push(pushed)
        test = push_test(
            self._suspect,
            push,
            images,
            labels,
            control_pool=self._without_trace(pushed),
            controls=self._controls,
            generator=generator(self._context.seed, "mbns", "controls"),
            batch_size=self._context.batch_size,
        )
        return Trial(poisoned_share=poisoned_share, push=push, test=test)

    def drop(self, removed: list[int]) -> float:
        """Return the share of the held-out accuracy that removing channels costs."""
        return self._price(removed, *self._held_out)

    def free(self, rows: list[int]) -> list[int]:
        """Return those of `rows` that the network does not need, by what each alone costs on S.

        None where S has too few images to show it.
        """
        images, labels = self._search
        if len(labels) * _FREE < 1:
            return []
        return [i for i in rows if self._price([i], images, labels) <= _FREE + ROUNDING]

    def _price(self, rows: list[int], images: Tensor, labels: Tensor) -> float:
        """Return the share of `images` that are no longer labelled rightly."""
        neurons = [self._found.neurons[i] for i in rows]
        predictions = pruned_predictions(
            self._suspect, neurons, images, batch_size=self._context.batch_size
        )
        return 1.0 - float((predictions == labels).double().mean())

    def _without_trace(self, pushed: list[int]) -> dict[str, list[int]]:
        """Return, for each layer that is pushed, its channels that carry no trace."""
        marked = set(self._traced)
        pool: dict[str, list[int]] = {self._found.neurons[i][0]: [] for i in pushed}
        for i, (name, channel) in enumerate(self._found.neurons):
            if name in pool and i not in marked:
                pool[name].append(channel)
        return pool

    def _best_push(self, traced: list[int]) -> tuple[float, dict[Neuron, float]]:
        """Choose on S how far to push: to where classes shift one by one, else where most moves.

        A running mean is off the clean one by the share of poisoned images times the displacement
        that the trigger causes there: dividing by an assumed share gives the displacement, in the
        proportions that the trigger has. Attacks that also train on near-triggers with the right
        label (WaNet's noise) leave more of those in the mean than of the trigger, which then lies
        the other way: a negative share.
        """
        images, labels = self._search
        found, classes = self._found, self._suspect.num_classes
        displaced = found.shift * found.deviation
        pushes = [
            {found.neurons[i]: float(displaced[i]) / share for i in traced}
            for share in self._shares
        ]
        predictions = pushed_predictions(
            self._suspect, pushes, images, batch_size=self._context.batch_size
        )
        counts = torch.bincount(labels, minlength=classes)

        def rank(index: int) -> tuple[bool, float]:
            arrows = arrow_map(predictions[index], labels, classes)
            # Share of each class's images that go where most of them go; the class that most
            # others go to has nowhere to go itself.
            led = arrows.errors * arrows.shares / counts.clamp_min(1)
            target = int(torch.bincount(arrows.targets.clamp_min(0)).argmax())
            others = (counts > 0) & (torch.arange(len(counts)) != target)
            moved = float(led[others].mean()) if bool(others.any()) else 0.0
            # A few errors are soon spread like a permutation; further than far enough only brings
            # the controls closer.
            is_shift = is_permutation_like(arrows) and float(led.mean()) >= _LEAST_SHIFT
            return is_shift, min(moved, _FAR_ENOUGH)

        best = max(range(len(pushes)), key=rank)
        return self._shares[best], pushes[best]
