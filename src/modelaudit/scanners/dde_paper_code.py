"""``dde@paper_code``: what the released code of DDE (EP) does, read as a finding.

Kept as described in methods/detectors.md §3.4 and methods/repairs.md §3: one batch of 500 images
drawn from the suspect training set (``--mixture``), the maximum of each channel's pre-activation
standardised over them, a histogram of step 0.01 from the layer's minimum with both edges strict,
channels with an entropy below mean - u·sd of their layer with the unbiased deviation, gamma alone
set to zero. Written from that description, not from their code. A constant channel, at which theirs
stops with an error, counts as the layer's mean.

The code is a repair and gives no verdict on a model; `modelaudit.scanners._layer_outliers` says how
it is read as one. It names no target, and nothing here moves the report's verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.entropy import histogram_entropy_paper
from modelaudit.results import Cost, Finding, Json
from modelaudit.scanners._layer_outliers import observe, paper_u, standardised_layer
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import generator
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class DdePaperCodeConfig:
    """Hyper-parameters of `DdePaperCodeScanner`.

    Attributes:
        u: z-score beyond which a channel is pruned; None takes the paper's by input size: 3 up to
            40 pixels, 4 beyond.
        images: images of the one batch.
        width: step of the histogram, in standard deviations.
    """

    u: float | None = None
    images: int = 500
    width: float = 0.01

    def __post_init__(self) -> None:
        require_range(self, "u", low=0)
        require_range(self, "images", low=2)
        require_range(self, "width", low=0, is_low_open=True)


class DdePaperCodeScanner(Scanner[DdePaperCodeConfig]):
    """DDE as released; see the module's text."""

    id = "dde"
    version = "1"
    family = "bn_statistics"
    summary = "channels of a suspect training set (--mixture) that DDE's released code would prune"
    reference = "[DDE22] released code"
    config_type = DdePaperCodeConfig
    sees_all_to_all = True
    is_calibrated = False
    requires_batchnorm = True

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes of the batch, and of the judging images without the channels."""
        if clean.mixture is None:
            return Cost()
        return Cost(forward=min(self.config.images, len(clean.mixture)) + len(clean.judge))

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        if clean.mixture is None:
            return Observation(
                finding=Finding.NO_POWER,
                notes=("the released code reads the suspect training set; give --mixture",),
            )
        draws = generator(context.seed, self.id, "paper_code")
        rows = torch.randperm(len(clean.mixture), generator=draws)[: config.images]
        layers = []
        for seen in profile(suspect, clean.mixture[rows], batch_size=context.batch_size).sites:
            entropy = histogram_entropy_paper(seen.peaks.double(), width=config.width)
            entropy = torch.where(entropy.isnan(), entropy.nanmean(), entropy)
            layers.append(standardised_layer(seen.site.name, entropy, is_low_suspicious=True))
        evidence: dict[str, Json] = {"batch_images": len(rows)}
        notes: tuple[str, ...] = ()
        if len(rows) < config.images:
            notes = (f"the released code takes {config.images} images, there are {len(rows)}",)
        u = paper_u(suspect.input_size) if config.u is None else config.u
        return observe(suspect, clean, context, layers, u=u, evidence=evidence, notes=notes)
