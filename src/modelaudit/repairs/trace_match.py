"""How far images under a stand-in lie where poisoned images left their traces ([O]).

A running mean lies off the clean mean by the share of poisoned images times the displacement that
the trigger causes in that channel. The share is not known; the direction is, layer by layer, and
says more of the trigger than its target alone does: whatever leads images to the target by another
way moves other channels.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.scanners._divergences import divergences
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor, nn

    from modelaudit.scanners._divergences import Divergences
    from modelaudit.suspect import Suspect

#: As the scanner `mbns` has them: bootstrap resamples, of which only the weights of the images
#: matter here, and the price of uneven weights.
_RESAMPLES, _RIDGE = 10, 3.0


def traced_shifts(
    suspect: Suspect, as_trained: Tensor, *, seed: int, batch_size: int
) -> Divergences:
    """Return how far running means lie off clean ones, the images weighted as `mbns` weighs them.

    Args:
        suspect: with BatchNorm statistics, in a borrow.
        as_trained: clean images as the statistics were collected on. Shape ``(N, C, H, W)`` in
            [0, 1].
        seed: of the run.
        batch_size: images computed together.

    Returns:
        The divergences with their shifts; N forward passes are counted.
    """
    shared = profile(suspect, as_trained, batch_size=batch_size)
    return divergences(suspect, shared, resamples=_RESAMPLES, seed=seed, ridge=_RIDGE)


class TraceMatch:
    """The distance between what a stand-in does to channel means and what the trigger has done.

    Args:
        model: the suspect whose statistics hold the traces, in eval mode.
        found: its divergences, with their shifts.
        images: those that stand-ins are searched on. Shape ``(N, C, H, W)`` in [0, 1].
        weight: of the distance in the search's loss, in nats.
        is_opposite: whether the traces lie on the other side of the clean mean, as where
            near-triggers with the right label outweigh the trigger.
        batch_size: images computed together.
    """

    def __init__(
        self,
        model: Suspect,
        found: Divergences,
        images: Tensor,
        *,
        weight: float,
        is_opposite: bool = False,
        batch_size: int = 256,
    ) -> None:
        self.model = model
        self.weight = weight
        self._wanted: dict[str, Tensor] = {}
        self._deviation: dict[str, Tensor] = {}
        sign = -1.0 if is_opposite else 1.0
        rows: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(found.neurons):
            rows.setdefault(name, []).append(row)
        for name, members in rows.items():
            shift = sign * found.shift[members].float()
            # A layer without a trace of any size has no direction.
            if bool(shift.isfinite().all()) and float(shift.norm()) > 0:
                self._wanted[name] = shift.to(model.device)
                self._deviation[name] = found.deviation[members].float().to(model.device)
        self._seen: dict[str, Tensor] = {}
        self._clean = self._means_of(images, batch_size)
        # A layer that folds places into the batch, or runs twice, has no row for each image.
        for name in [n for n, means in self._clean.items() if len(means) != len(images)]:
            del self._wanted[name], self._clean[name]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are compared; without one there is no loss."""
        return tuple(self._wanted)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Note the means of every layer's inputs in each forward pass while this is open."""
        handles = [
            self.model.module.get_submodule(name).register_forward_pre_hook(self._note(name))
            for name in self._wanted
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def loss(self, rows: Tensor) -> Tensor:
        """Return the weighted distance of the latest forward pass, a scalar with its graph.

        Mean over layers of 1 - cos between two displacements of the channel means, both in running
        deviations: that from the images as they are to the images of the pass, and that of the
        traces. In [0, 2] times `weight`.

        Args:
            rows: which images were shown, ``(B,)`` int64.
        """
        distances = []
        for name, wanted in self._wanted.items():
            moved = (self._seen[name] - self._clean[name][rows]).mean(0) / self._deviation[name]
            distances.append(1.0 - F.cosine_similarity(moved, wanted, dim=0))
        return self.weight * torch.stack(distances).mean()

    def agreement(
        self, images: Tensor, shown: Callable[[Tensor], Tensor], *, batch_size: int = 256
    ) -> float:
        """Return how much what is done to images moves channel means as the traces say, in [-1, 1].

        The cos of the two displacements, averaged over layers.

        Args:
            images: those that this match was made for, all of them.
            shown: gives a batch as the network is to see it, under a stand-in.
            batch_size: images computed together.
        """
        moved = self._means_of(images, batch_size, shown)
        angles = [
            F.cosine_similarity(
                (moved[name] - self._clean[name]).mean(0) / self._deviation[name], wanted, dim=0
            )
            for name, wanted in self._wanted.items()
        ]
        return float(torch.stack(angles).mean())

    def _note(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].float()
            self._seen[name] = values.flatten(2).mean(2) if values.dim() > 2 else values

        return hook

    def _means_of(
        self,
        images: Tensor,
        batch_size: int,
        shown: Callable[[Tensor], Tensor] = lambda batch: batch,
    ) -> dict[str, Tensor]:
        """Return the channel means of each image as it is shown, layer by layer, ``(N, D)``."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self._wanted}
        with torch.no_grad(), self.watching():
            for batch in images.split(batch_size):
                self.model.logits(shown(batch))
                for name, means in self._seen.items():
                    parts[name].append(means)
        return {name: torch.cat(batches) for name, batches in parts.items()}
