"""Stand-ins for a trigger: what, put on any clean image, leads it where a finding says ([O]).

Wang et al., *Neural Cleanse* (IEEE S&P 2019, §IV-B), search a mask and a pattern for each class;
here the class is known from a scan, the price of the mask is fixed, several starts are kept, and
traces in statistics can say what the trigger did on its way (`modelaudit.repairs.trace_match`).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.repairs.trace_match import TraceMatch
    from modelaudit.suspect import Suspect

#: Adam of the search: logits of mask and pattern move by about this much a step.
_RATE = 0.2
_BETAS = (0.5, 0.9)
#: images whose copies under a stand-in are held together
_JUDGED = 256
#: Masks start faint (a sigmoid of -2 is 0.12) and uneven.
_MASK_START, _MASK_SPREAD = -2.0, 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandIn:
    """A mask and a pattern.

    Attributes:
        mask: in [0, 1]. Shape ``(1, 1, H, W)``, float32.
        pattern: pixels in [0, 1]. Shape ``(1, C, H, W)``, float32.
        success: share of the images it was tried on that go where they are wanted.
    """

    mask: Tensor
    pattern: Tensor
    success: float

    @property
    def pixels(self) -> float:
        """Sum of the mask: how many pixels are replaced."""
        return float(self.mask.sum())

    def put_on(self, images: Tensor) -> Tensor:
        """Return images under the stand-in; ``(N, C, H, W)`` in [0, 1], a new tensor."""
        return _blend(images, self.mask, self.pattern)


def search_stand_in(
    model: Suspect,
    images: Tensor,
    wanted: Tensor,
    *,
    steps: int,
    batch: int,
    price: float,
    dtype: torch.dtype | None,
    generator: torch.Generator,
    match: TraceMatch | None = None,
) -> StandIn:
    """Search one by Adam from a random start.

    Minimises ``CE(model((1 - m) x + m p), wanted) + price * mean(m)`` over random batches, plus
    the distance to the traces where there is a `match`. A shortcut that a backdoor has made is
    worth its price; where there is none the mask fades, since fooling a network by changing what an
    image shows takes many pixels.

    Args:
        model: in eval mode; no gradient of a weight is computed.
        images: none with the label that it is wanted under. Shape ``(N, C, H, W)`` in [0, 1], N at
            least 1.
        wanted: label that each image is to be led to. Shape ``(N,)``, int64.
        steps: of Adam, each a forward+backward pass of `batch` images.
        batch: images of a step, drawn anew; all of them judge the success in the end.
        price: nats for a mask that covers the image.
        dtype: of convolutions and matrix products; None for float32.
        generator: CPU generator of start and batches.
        match: of these images; None to look for whatever leads them there.

    Returns:
        The stand-in, on the device of `images`.
    """
    device, (count, channels, height, width) = images.device, images.shape
    start = torch.randn((1, 1, height, width), generator=generator)
    mask = (_MASK_START + _MASK_SPREAD * start).to(device).requires_grad_()
    pattern = torch.randn((1, channels, height, width), generator=generator).to(device)
    pattern.requires_grad_()
    optimiser = torch.optim.Adam([mask, pattern], lr=_RATE, betas=_BETAS)
    with nullcontext() if match is None else match.watching():
        for _ in range(steps):
            rows = torch.randint(count, (min(batch, count),), generator=generator)
            with model.autocast(dtype):
                logits = model.logits(_blend(images[rows], mask.sigmoid(), pattern.sigmoid()))
            loss = F.cross_entropy(logits, wanted[rows]) + price * mask.sigmoid().mean()
            if match is not None:
                loss = loss + match.loss(rows)
            mask.grad, pattern.grad = torch.autograd.grad(loss, [mask, pattern])
            optimiser.step()
    found = StandIn(mask=mask.detach().sigmoid(), pattern=pattern.detach().sigmoid(), success=0.0)
    led = sum(
        int((model.predict(found.put_on(part)) == goals.cpu()).sum())
        for part, goals in zip(images.split(_JUDGED), wanted.split(_JUDGED), strict=True)
    )
    return StandIn(mask=found.mask, pattern=found.pattern, success=led / count)


def _blend(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return torch.lerp(images, pattern.expand_as(images), mask.expand_as(images))
