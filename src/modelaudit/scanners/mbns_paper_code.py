"""``mbns@paper_code``: what the released code of MBNS (BNP) does, read as a finding.

Kept as described in methods/detectors.md §2.4 and methods/repairs.md §2: one batch of the clean
images under the augmentation of training (a crop from the image with four black pixels around it,
and a flip), BatchNorm in eval mode, K without any epsilon, channels with K > mean + u·sd of their
layer with the unbiased deviation, gamma alone set to zero. A dead channel makes K infinite or
undefined, and the comparison false for its whole layer. Written from that description, not from
their code. Sums are taken in float64, so the batch may be split.

The code is a repair and gives no verdict on a model; `modelaudit.scanners._layer_outliers` says how
it is read as one. It names no target, and nothing here moves the report's verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from modelaudit.config import require_range
from modelaudit.functional.divergence import pooled_moments
from modelaudit.results import Cost, Json
from modelaudit.scanners._layer_outliers import observe, paper_u, standardised_layer
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import generator
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect

#: The padding of their crop is 4 pixels at 32; other sizes get the same share.
_PADDING_FRACTION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MbnsPaperCodeConfig:
    """Hyper-parameters of `MbnsPaperCodeScanner`.

    Attributes:
        u: z-score beyond which a channel is pruned; None takes the paper's by input size: 3 up to
            40 pixels, 4 beyond.
        images: images of the one batch.
        is_augmented: whether they are cropped and flipped at random, as in the released code.
    """

    u: float | None = None
    images: int = 500
    is_augmented: bool = True

    def __post_init__(self) -> None:
        require_range(self, "u", low=0)
        require_range(self, "images", low=2)


def paper_divergence(mean: Tensor, var: Tensor, bn_mean: Tensor, bn_var: Tensor) -> Tensor:
    """Return K of each channel as the released code writes it, without any epsilon.

    [DDE22] Eq. (5). Differs from `modelaudit.functional.divergence.gaussian_kl`: a dead channel
    gives infinity or NaN.

    Args:
        mean: of the clean images, ``(D,)`` float64.
        var: unbiased variance of the clean images.
        bn_mean: the layer's running mean.
        bn_var: the layer's running variance.
    """
    ratio = (bn_var.sqrt() / var.sqrt()).log()
    return ratio + (var + (mean - bn_mean).square()) / (2 * bn_var) - 0.5


def cropped_and_flipped(images: Tensor, generator_: torch.Generator) -> Tensor:
    """Return each image cut at random from itself with black around it, half of them mirrored.

    Args:
        images: ``(N, C, S, S)`` in [0, 1], CPU.
        generator_: draws offsets, then flips.
    """
    n, _, _, size = images.shape
    width = size // _PADDING_FRACTION
    offsets = torch.randint(2 * width + 1, (2, n, 1), generator=generator_)
    flips = torch.rand(n, generator=generator_) < 0.5
    padded = pad(images, (width,) * 4)
    rows, columns = offsets + torch.arange(size)
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    which = torch.arange(n).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


class MbnsPaperCodeScanner(Scanner[MbnsPaperCodeConfig]):
    """MBNS as released; see the module's text."""

    id = "mbns"
    version = "1"
    family = "bn_statistics"
    summary = "BatchNorm channels that the released code of MBNS would prune"
    reference = "[DDE22] released code"
    config_type = MbnsPaperCodeConfig
    sees_all_to_all = True
    is_calibrated = False
    requires_batchnorm = True
    # The paper's smallest set.
    min_images = 10

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes of the batch, and of the judging images without the channels."""
        return Cost(forward=min(self.config.images, len(clean.images)) + len(clean.judge))

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        draws = generator(context.seed, self.id, "paper_code")
        rows = torch.randperm(len(clean.images), generator=draws)[: config.images]
        batch = clean.images[rows]
        if config.is_augmented:
            batch = cropped_and_flipped(batch, draws)
        layers = []
        for seen in profile(suspect, batch, batch_size=context.batch_size).sites:
            if not seen.site.has_statistics:
                continue
            count = len(batch) * seen.positions
            mean, var = pooled_moments(seen.sums.sum(0), seen.squares.sum(0), count)
            bn_mean, bn_var = (t.cpu() for t in suspect.statistics(seen.site))
            layers.append(
                standardised_layer(seen.site.name, paper_divergence(mean, var, bn_mean, bn_var))
            )
        evidence: dict[str, Json] = {"batch_images": len(batch)}
        u = paper_u(suspect.input_size) if config.u is None else config.u
        return observe(suspect, clean, context, layers, u=u, evidence=evidence)
