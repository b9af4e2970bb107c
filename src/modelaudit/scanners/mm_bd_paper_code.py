"""``mm_bd@paper_code``: what the released code of MM-BD does.

Kept as described in methods/detectors.md §11.2, §11.3 and §11.5: 30 uniform starts for each class,
at most 300 plain gradient steps of 0.01 on the sum of the starts' margins (its momentum never takes
effect), the input clamped inside the forward pass and never projected, a class left as soon as its
summed margin changes by less than a hundred-thousandth, the largest margin of its last forward
pass as the statistic, a Gamma distribution with free location fitted to all statistics but the
largest, and a finding where p < 0.05. Written from that description, not from their code.

Their victims take plain pixels: under a normalisation the same step is about five times as long
(methods/detectors.md §11.5); the step is left as it is. Classes are computed together, each frozen
when it stops, which changes no result. Nothing here moves the report's verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.gamma_fit import gamma_p_value_paper_code
from modelaudit.functional.margin import margin_to
from modelaudit.results import Cost, Finding, Pattern
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect

#: Smallest p-value that the score tells apart.
_MIN_P_VALUE = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class MmBdPaperCodeConfig:
    """Hyper-parameters of `MmBdPaperCodeScanner`.

    Attributes:
        starts: uniform random starts for each class.
        steps: most gradient steps.
        step_size: factor of the gradient, in pixel units [0, 1].
        tolerance: relative change of a class's summed margin below which the class is left.
        significance: p-value below which the model is flagged.
    """

    starts: int = 30
    steps: int = 300
    step_size: float = 0.01
    tolerance: float = 1e-5
    significance: float = 0.05

    def __post_init__(self) -> None:
        require_range(self, "starts", low=1)
        require_range(self, "steps", low=1)
        require_range(self, "step_size", low=0, is_low_open=True)
        require_range(self, "tolerance", low=0)
        require_range(self, "significance", low=0, high=1, is_low_open=True)


class MmBdPaperCodeScanner(Scanner[MmBdPaperCodeConfig]):
    """MM-BD as released; see the module's text."""

    id = "mm_bd"
    version = "1"
    family = "margin"
    summary = "outlier among class margins as the released code of MM-BD finds it; data-free"
    reference = "[MMBD24] released code"
    config_type = MmBdPaperCodeConfig
    sees_all_to_all = False
    is_calibrated = False
    requires_gradients = True
    min_classes = 5

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - data-free
        """Return the passes of every start's every step."""
        config = self.config
        return Cost(forward_backward=suspect.num_classes * config.starts * config.steps)

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:  # noqa: ARG002 - data-free
        config = self.config
        margins, steps = self._search(suspect, context)
        p_value = gamma_p_value_paper_code(margins)
        is_flagged = p_value < config.significance
        target = int(margins.argmax())
        return Observation(
            finding=Finding.SUSPICIOUS if is_flagged else Finding.NONE,
            pattern=Pattern.ALL_TO_ONE if is_flagged else None,
            target_labels=(target,) if is_flagged else (),
            score=-math.log10(max(p_value, _MIN_P_VALUE)),
            score_name="minus the decimal logarithm of the Gamma p-value",
            threshold=-math.log10(config.significance),
            p_value=p_value,
            per_class=tuple(margins.tolist()),
            per_class_name="largest margin found (logits)",
            evidence={"largest_margin_class": target, "steps": steps.tolist()},
            notes=("the p-value is below its nominal level in about a fifth of clean models",),
        )

    def _search(self, suspect: Suspect, context: ScanContext) -> tuple[Tensor, Tensor]:
        """Return r_t and the steps taken for each class, ``(K,)`` float64 and int64, CPU."""
        config = self.config
        classes = suspect.num_classes
        shape = (config.starts, suspect.input_channels, suspect.input_size, suspect.input_size)
        images = torch.stack(
            [
                torch.rand(shape, generator=generator(context.seed, self.id, "paper_code", t))
                for t in range(classes)
            ]
        ).to(suspect.device)
        margins = torch.zeros((classes, config.starts), device=suspect.device)
        sums = torch.zeros(classes, dtype=torch.float64, device=suspect.device)
        taken = torch.zeros(classes, dtype=torch.int64, device=suspect.device)
        active = torch.arange(classes, device=suspect.device)
        with context.progress.task(self.full_id, config.steps) as task:
            for step in range(config.steps):
                context.check_deadline()
                targets = active.repeat_interleave(config.starts)
                values, moved = self._step(suspect, images[active].flatten(0, 1), targets, context)
                margins[active] = values.view(-1, config.starts)
                images[active] = moved.view(-1, *shape)
                taken[active] += 1
                before, now = sums[active], margins[active].double().sum(1)
                sums[active] = now
                task.advance()
                if step:
                    active = active[(now - before).abs() >= config.tolerance * before.abs()]
                    if not len(active):
                        break
        return margins.amax(1).double().cpu(), taken.cpu()

    def _step(
        self, suspect: Suspect, images: Tensor, targets: Tensor, context: ScanContext
    ) -> tuple[Tensor, Tensor]:
        """Return the margins of `images` and the images one step up."""
        values, moved = [], []
        for x, t in zip(
            images.split(context.batch_size), targets.split(context.batch_size), strict=True
        ):
            free = x.detach().requires_grad_()
            margin = margin_to(suspect.logits(free.clamp(0, 1)), t)
            (gradient,) = torch.autograd.grad(margin.sum(), free)
            values.append(margin.detach())
            moved.append(x + self.config.step_size * gradient)
        return torch.cat(values), torch.cat(moved)
