"""A curve of weights between two networks: its training objective, and visits to its places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.functional.curve import bezier_coefficients, bezier_point
from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._batchnorm import reestimate_statistics
from modelaudit.repairs._training import Objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import PruneMask
    from modelaudit.suspect import Suspect


class Curve(Objective):
    """Mean loss along a Bezier curve of weights, one place per batch.

    The module carries w(t) through each pass. Its gradient, times the inner point's coefficient, is
    that of the inner point: nothing is interpolated inside the graph.

    Args:
        model: the copy; its module is overwritten by every place on the curve.
        start: w0, one tensor per parameter of the module, in its order.
        end: w2.
        dtype: of convolutions and matrix products; None for float32.
        weight_decay: of w(t): 0.5 weight_decay ||w(t)||^2 is part of the loss.
        draws: CPU generator of the places.
        pruned: what is zero everywhere on the curve.

    Attributes:
        inner: w1, which is trained; the midpoint of both ends at first.
    """

    def __init__(
        self,
        model: Suspect,
        start: Sequence[Tensor],
        end: Sequence[Tensor],
        *,
        dtype: torch.dtype | None,
        weight_decay: float,
        draws: torch.Generator,
        pruned: PruneMask | None = None,
    ) -> None:
        super().__init__(model, dtype=dtype)
        self.pruned = pruned
        self.start = list(start)
        self.end = list(end)
        self.inner = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        self.weight_decay = weight_decay
        self.draws = draws
        self._t = 0.5

    def move_to(self, t: float) -> None:
        """Give the module the weights w(t); its buffers stay."""
        set_weights(self.model.module, bezier_point(self.start, self.inner, self.end, t))
        if self.pruned is not None:
            self.pruned.apply(self.model.module)
        self._t = t

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy at a place drawn uniformly from the curve."""
        self.move_to(float(torch.rand((), generator=self.draws)))
        return super().loss(images, labels)

    def backward(self, loss: Tensor) -> None:
        """Set the inner point's gradient: the chain rule through w(t), which is linear in it."""
        parameters = list(self.model.module.parameters())
        for parameter in parameters:
            parameter.grad = None
        super().backward(loss)
        _, coefficient, _ = bezier_coefficients(self._t)
        for inner, parameter in zip(self.inner, parameters, strict=True):
            slope = self.weight_decay * parameter.detach()
            if parameter.grad is not None:
                slope = slope + parameter.grad
            inner.grad = coefficient * slope


def weights_of(module: nn.Module) -> list[Tensor]:
    """Return copies of the module's parameters, in its order."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def set_weights(module: nn.Module, weights: Sequence[Tensor]) -> None:
    """Overwrite the module's parameters; their number is the module's."""
    with torch.no_grad():
        for parameter, values in zip(module.parameters(), weights, strict=True):
            parameter.copy_(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place on the curve, with statistics re-estimated for it.

    Attributes:
        t: 0 at the suspect, 1 at the fine-tuned end.
        accuracy: over the validation images.
        loss: mean cross-entropy over them, in nats.
    """

    t: float
    accuracy: float
    loss: float


def choose_place(places: Sequence[Place], *, floor: float) -> Place:
    """Return the place with the lowest loss among those whose accuracy is at least `floor`.

    methods/repairs.md §8. Of equal losses the one further from the suspect; where no place is
    accurate enough, the most accurate one.
    """
    within = [place for place in places if place.accuracy >= floor - ROUNDING]
    if within:
        return min(within, key=lambda place: (place.loss, -place.t))
    return max(places, key=lambda place: (place.accuracy, place.t))


def visit(curve: Curve, data: RepairData, context: RepairContext, t: float, *, batch: int) -> Place:
    """Move the module to a place, re-estimate its statistics there and measure it.

    Args:
        curve: whose module is moved.
        data: `work`, as the model was trained on it, gives the statistics; `validation` measures.
        context: gives the batch size of validation.
        t: the place.
        batch: statistical batch size.
    """
    model = curve.model
    curve.move_to(t)
    reestimate_statistics(model, data.as_trained[data.work], batch=batch)
    images = data.images[data.validation]
    labels = data.labels[data.validation].to(model.device)
    with torch.no_grad():
        logits = torch.cat([model.logits(part) for part in images.split(context.batch_size)])
    accuracy = float((logits.argmax(1) == labels).double().mean())
    return Place(t=t, accuracy=accuracy, loss=float(F.cross_entropy(logits.double(), labels)))
