"""``ban@paper_code``: what BAN's released code does, to reproduce it and as the cost reference.

What it does by intent or accident (methods/detectors.md §1.4) is kept: BatchNorm in train mode in
both searches, so that running statistics drift and the evaluation uses the drifted ones; a new
noise for every batch of which only the last survives; no clipping, so noise ranges over twice its
box; the mask searched through the whole network, clamped before the step; predictions of every
image counted, target class included. Written from the description, not
from their code. The weights' gradients, which theirs computes and throws away, are left out, so its
time here is a lower bound of theirs.

No number in paper or code turns the share into a verdict. The two command-line defaults that the
code declares and never uses are offered as the finding, and nothing here moves the report's
verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.config import require_range
from modelaudit.functional.mask import mask_regulariser_paper_code
from modelaudit.functional.noise import random_start
from modelaudit.results import Cost, Finding, Pattern
from modelaudit.scanners._noise_search import (
    NeuronNoise,
    maximise,
    neuron_count,
    paper_epsilon,
    site_edits,
)
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import generator
from modelaudit.suspect import BatchNormMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class BanPaperCodeConfig:
    """Hyper-parameters of `BanPaperCodeScanner`, as the released code's README sets them.

    Attributes:
        epsilon: half-width of the start; None takes the paper's by input size.
        steps: sign steps of each batch's noise.
        noise_batches: batches, each with a new noise.
        mask_steps: steps of the mask search (20 epochs of 20 batches).
        mask_weight: lambda_1.
        mask_learning_rate: Adam's.
        batch: batch size.
        accuracy_threshold: declared and unused in the released code.
        loss_threshold: declared and unused in the released code.
    """

    epsilon: float | None = None
    steps: int = 30
    noise_batches: int = 20
    mask_steps: int = 400
    mask_weight: float = 0.75
    mask_learning_rate: float = 0.01
    batch: int = 128
    accuracy_threshold: float = 0.25
    loss_threshold: float = 4.0

    def __post_init__(self) -> None:
        require_range(self, "epsilon", low=0, high=1)
        for name in ("steps", "noise_batches", "mask_steps", "batch"):
            require_range(self, name, low=1)
        require_range(self, "mask_weight", low=0)
        require_range(self, "mask_learning_rate", low=0, is_low_open=True)
        require_range(self, "accuracy_threshold", low=0, high=1)
        require_range(self, "loss_threshold", low=0)


class BanPaperCodeScanner(Scanner[BanPaperCodeConfig]):
    """BAN as released; see the module's text."""

    id = "ban"
    version = "1"
    family = "parameter_noise"
    summary = "adversarial neuron noise as the released code of BAN runs it"
    reference = "[BAN24] released code"
    config_type = BanPaperCodeConfig
    sees_all_to_all = False
    is_calibrated = False
    requires_gradients = True
    requires_batchnorm = True
    requires_split = True
    min_images = 50

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:
        """Return the passes of both searches and the two evaluations."""
        config = self.config
        # A head that is no graph of its own runs the whole network, twice in each mask step.
        has_cheap_head = suspect.split is not None and suspect.split.method == "graph"
        mask_passes, judge_passes = (1, 2) if has_cheap_head else (3, 3)
        searches = mask_passes * config.mask_steps + config.noise_batches * config.steps
        return Cost(
            forward=judge_passes * len(clean.judge) + 1, forward_backward=config.batch * searches
        )

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        epsilon = paper_epsilon(suspect.input_size) if config.epsilon is None else config.epsilon
        images, labels = clean.images[clean.search], clean.labels[clean.search]
        total = config.mask_steps + config.noise_batches * config.steps
        with context.progress.task(self.full_id, total) as task:
            mask = self._search_mask(suspect, images, labels, context, task.advance)
            noise = self._search_noise(suspect, images, labels, epsilon, context, task.advance)
        edits = site_edits(suspect, noise.weight[0], noise.bias[0])
        judged, truth = clean.images[clean.judge], clean.labels[clean.judge]
        with torch.no_grad(), suspect.edited(edits, mode=BatchNormMode.RUNNING):
            parts = judged.split(config.batch)
            before = torch.cat([suspect.logits(part).cpu() for part in parts])
            masked = [suspect.head((1 - mask) * suspect.features(part)).cpu() for part in parts]
        after = torch.cat(masked)
        histogram = torch.bincount(after.argmax(1), minlength=suspect.num_classes).double()
        shares = histogram / len(judged)
        target, share = int(shares.argmax()), float(shares.max())
        accuracy = float((after.argmax(1) == truth).double().mean())
        loss = float(F.cross_entropy(after, truth))
        is_flagged = accuracy < config.accuracy_threshold and loss > config.loss_threshold
        return Observation(
            finding=Finding.SUSPICIOUS if is_flagged else Finding.NONE,
            pattern=Pattern.ALL_TO_ONE if is_flagged else None,
            target_labels=(target,) if is_flagged else (),
            score=share,
            score_name="share of the modal prediction under noise and negative mask",
            per_class=tuple(shares.tolist()),
            per_class_name="share of all predictions under noise and negative mask",
            evidence={
                "epsilon": epsilon,
                "noise_accuracy": float((before.argmax(1) == truth).double().mean()),
                "noise_modal_share": float(
                    torch.bincount(before.argmax(1), minlength=suspect.num_classes).max()
                )
                / len(judged),
                "noise_modal_class": int(
                    torch.bincount(before.argmax(1), minlength=suspect.num_classes).argmax()
                ),
                "negative_mask_accuracy": accuracy,
                "negative_mask_loss": loss,
                "modal_class": target,
            },
            notes=("the paper and its code state no threshold for this score",),
        )

    def _search_mask(
        self,
        suspect: Suspect,
        images: Tensor,
        labels: Tensor,
        context: ScanContext,
        on_step: Callable[[], None],
    ) -> Tensor:
        config = self.config
        draws = generator(context.seed, self.id, "paper_code", "mask")
        size = (1, suspect.input_channels, suspect.input_size, suspect.input_size)
        with torch.no_grad(), suspect.edited({}, mode=BatchNormMode.TRAIN):
            # Their code sizes the mask by a forward pass on uniform noise, in train mode.
            shape = suspect.features(torch.rand(size, generator=draws)).shape[1:]
        mask = torch.rand(shape, generator=draws).to(suspect.device).requires_grad_()
        optimiser = torch.optim.Adam([mask], lr=config.mask_learning_rate)
        for _ in range(config.mask_steps):
            context.check_deadline()
            rows = torch.randint(len(images), (config.batch,), generator=draws)
            with (
                suspect.edited({}, mode=BatchNormMode.TRAIN),
                suspect.autocast(context.search_dtype),
            ):
                x = images[rows].to(suspect.device).requires_grad_()
                h = suspect.features(x)
            y = labels[rows].to(suspect.device)
            loss = F.cross_entropy(suspect.head(mask * h), y)
            loss = loss - F.cross_entropy(suspect.head((1 - mask) * h), y)
            loss = loss + config.mask_weight * mask_regulariser_paper_code(mask)
            optimiser.zero_grad()
            loss.backward()
            with torch.no_grad():
                mask.clamp_(0, 1)
            optimiser.step()
            on_step()
        return mask.detach()

    def _search_noise(
        self,
        suspect: Suspect,
        images: Tensor,
        labels: Tensor,
        epsilon: float,
        context: ScanContext,
        on_step: Callable[[], None],
    ) -> NeuronNoise:
        config = self.config
        draws = generator(context.seed, self.id, "paper_code", "noise")
        neurons = neuron_count(suspect)
        noise = NeuronNoise(weight=torch.zeros(1, neurons), bias=torch.zeros(1, neurons))
        for _ in range(config.noise_batches):
            rows = torch.randint(len(images), (config.batch,), generator=draws)
            y = labels[rows].to(suspect.device)

            def objective(logits: Tensor, y: Tensor = y) -> Tensor:
                return F.cross_entropy(logits[0], y).unsqueeze(0)

            start = NeuronNoise(
                weight=random_start((1, neurons), epsilon, draws).to(suspect.device),
                bias=random_start((1, neurons), epsilon, draws).to(suspect.device),
            )
            noise = maximise(
                suspect,
                images[rows].unsqueeze(0),
                objective,
                start=start,
                epsilon=None,
                step=epsilon / config.steps,
                steps=config.steps,
                mode=BatchNormMode.TRAIN,
                context=context,
                on_step=on_step,
            )
        return noise
