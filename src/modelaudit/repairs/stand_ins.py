"""Stand-ins for a trigger: what, done to any clean image, leads it where a finding says ([O]).

Wang et al., *Neural Cleanse* (IEEE S&P 2019, §IV-B), search a mask and a pattern for each class;
here the class is known from a scan, the price of the mask is fixed, several starts are kept, and
traces in statistics can say what the trigger did on its way (`modelaudit.repairs.trace_match`).
What no patch imitates, such as WaNet's smooth distortion, a warp does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.repairs.trace_match import TraceMatch
    from modelaudit.suspect import Suspect

S = TypeVar("S", bound="StandIn")
Form = Literal["patch", "warp"]

#: Adam of the searches; logits of mask and pattern move by about `_PATCH_RATE` a step.
_PATCH_RATE, _WARP_RATE = 0.2, 0.1
_BETAS = (0.5, 0.9)
#: images whose copies under a stand-in are held together
_JUDGED = 256
#: Masks start faint (a sigmoid of -2 is 0.12) and uneven.
_MASK_START, _MASK_SPREAD = -2.0, 0.5
#: Where a search goes on, a mask or pixel nearer to 0 or 1 than this begins here, or it could not
#: move any more.
_SATURATED = 1e-3
#: Warps start as a third of their largest displacement, everywhere another.
_WARP_SPREAD = 0.3
#: Points of a warp's grid along each side; between them it is bicubic. WaNet's has 4.
WARP_POINTS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StandIn(ABC):
    """What is done to an image.

    Attributes:
        form: what kind it is.
        success: share of the images it was tried on that go where they are wanted.
    """

    form: ClassVar[Form]
    success: float = 0.0

    @property
    @abstractmethod
    def extent(self) -> float:
        """How much it changes: pixels that a patch replaces, or a warp moves a pixel by."""

    @abstractmethod
    def __str__(self) -> str:
        """Return what it is, for a reader."""

    @abstractmethod
    def put_on(self, images: Tensor) -> Tensor:
        """Return images under the stand-in; ``(N, C, H, W)`` in [0, 1], a new tensor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patch(StandIn):
    """A mask and a pattern, ``(1 - m) x + m p``.

    Attributes, beside those of `StandIn`:
        mask: in [0, 1]. Shape ``(1, 1, H, W)``, float32.
        pattern: pixels in [0, 1]. Shape ``(1, C, H, W)``, float32.
    """

    form: ClassVar[Form] = "patch"
    mask: Tensor
    pattern: Tensor

    @property
    def extent(self) -> float:
        """Sum of the mask: how many pixels are replaced."""
        return float(self.mask.sum())

    def __str__(self) -> str:
        """Return how many pixels are replaced."""
        return f"{self.extent:.0f} pixels"

    def is_large(self, share: float) -> bool:
        """Return whether more than `share` of an image is replaced.

        Args:
            share: of the image's pixels, in [0, 1].
        """
        return self.extent > share * self.mask.numel()

    def put_on(self, images: Tensor) -> Tensor:
        """Return images under the patch; ``(N, C, H, W)`` in [0, 1], a new tensor."""
        return torch.lerp(images, self.pattern.expand_as(images), self.mask.expand_as(images))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Warp(StandIn):
    """A smooth distortion, the same for every image.

    Attributes, beside those of `StandIn`:
        flow: how far each point of a coarse grid looks aside, as shares of the image's side, x
            before y. Shape ``(1, 2, P, P)``, float32.
        side: of the images it was searched on, in pixels.
    """

    form: ClassVar[Form] = "warp"
    flow: Tensor
    side: int

    @property
    def extent(self) -> float:
        """Mean displacement along a side, in pixels."""
        return float(self.flow.abs().mean()) * self.side

    def __str__(self) -> str:
        """Return how far pixels are moved on average."""
        return f"a warp by {self.extent:.1f} pixels"

    def put_on(self, images: Tensor) -> Tensor:
        """Return images as the warp distorts them; ``(N, C, H, W)`` in [0, 1], a new tensor."""
        height, width = images.shape[-2:]
        moved = F.interpolate(self.flow, size=(height, width), mode="bicubic", align_corners=True)
        # Between its points a bicubic curve overshoots.
        moved = moved.clamp(self.flow.min(), self.flow.max())
        # For grid_sample the first and the last pixel of a side lie two units apart.
        sides = torch.tensor([width, height], device=images.device)
        moved = moved * (2 * sides / (sides - 1).clamp_min(1))[None, :, None, None]
        theta = torch.eye(2, 3, device=images.device)[None]
        still = F.affine_grid(theta, [1, 1, height, width], align_corners=True)
        looked = (still + moved.permute(0, 2, 3, 1)).clamp(-1, 1)
        return F.grid_sample(
            images,
            looked.expand(len(images), -1, -1, -1),
            padding_mode="border",
            align_corners=True,
        )


def search_patch(
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
    start: Patch | None = None,
) -> Patch:
    """Search a patch by Adam, from a random start or from another patch.

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
        generator: CPU generator of a random start and of the batches.
        match: of these images; None to look for whatever leads them there.
        start: the patch to begin with, of the images' shape, its mask and pixels at least
            `_SATURATED` from 0 and 1; None for a random one.

    Returns:
        The patch, on the device of `images`.
    """
    device, (_, channels, height, width) = images.device, images.shape
    if start is None:
        drawn = torch.randn((1, 1, height, width), generator=generator)
        mask = (_MASK_START + _MASK_SPREAD * drawn).to(device)
        pattern = torch.randn((1, channels, height, width), generator=generator).to(device)
    else:
        mask = start.mask.to(device).logit(_SATURATED)
        pattern = start.pattern.to(device).logit(_SATURATED)
    mask.requires_grad_()
    pattern.requires_grad_()
    return _search(
        model,
        images,
        wanted,
        lambda: Patch(mask=mask.sigmoid(), pattern=pattern.sigmoid()),
        parameters=[mask, pattern],
        rate=_PATCH_RATE,
        price=lambda patch: price * patch.mask.mean(),
        steps=steps,
        batch=batch,
        dtype=dtype,
        generator=generator,
        match=match,
    )


def search_warp(
    model: Suspect,
    images: Tensor,
    wanted: Tensor,
    *,
    steps: int,
    batch: int,
    limit: float,
    dtype: torch.dtype | None,
    generator: torch.Generator,
) -> Warp:
    """Search a warp by Adam from a random start.

    Minimises the cross-entropy alone. The price is the limit: a network that was never trained on
    warped images needs larger ones to take an image for something else.

    Args:
        model: see `search_patch`, as for `images`, `wanted`, `steps`, `batch`, `dtype` and
            `generator`.
        images: see there.
        wanted: see there.
        steps: see there.
        batch: see there.
        limit: farthest that a pixel is moved along a side, as a share of the side.
        dtype: see there.
        generator: see there.

    Returns:
        The warp, on the device of `images`.
    """
    start = _WARP_SPREAD * torch.randn((1, 2, WARP_POINTS, WARP_POINTS), generator=generator)
    points = start.to(images.device).requires_grad_()
    return _search(
        model,
        images,
        wanted,
        lambda: Warp(flow=limit * points.tanh(), side=images.shape[-1]),
        parameters=[points],
        rate=_WARP_RATE,
        price=lambda _: torch.zeros((), device=images.device),
        steps=steps,
        batch=batch,
        dtype=dtype,
        generator=generator,
        match=None,
    )


def _search(
    model: Suspect,
    images: Tensor,
    wanted: Tensor,
    made: Callable[[], S],
    *,
    parameters: Sequence[Tensor],
    rate: float,
    price: Callable[[S], Tensor],
    steps: int,
    batch: int,
    dtype: torch.dtype | None,
    generator: torch.Generator,
    match: TraceMatch | None,
) -> S:
    """Return what `made` gives once its parameters are found, with its success on all images."""
    optimiser = torch.optim.Adam(list(parameters), lr=rate, betas=_BETAS)
    with nullcontext() if match is None else match.watching():
        for _ in range(steps):
            rows = torch.randint(len(images), (min(batch, len(images)),), generator=generator)
            tried = made()
            with model.autocast(dtype):
                logits = model.logits(tried.put_on(images[rows]))
            loss = F.cross_entropy(logits, wanted[rows]) + price(tried)
            if match is not None:
                loss = loss + match.loss(rows)
            gradients = torch.autograd.grad(loss, list(parameters))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
    with torch.no_grad():
        found = made()
    led = sum(
        int((model.predict(found.put_on(part)) == goals.cpu()).sum())
        for part, goals in zip(images.split(_JUDGED), wanted.split(_JUDGED), strict=True)
    )
    return replace(found, success=led / len(images))
