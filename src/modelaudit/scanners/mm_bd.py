"""MM-BD: a class whose margin can be driven far beyond all others, data-free ([MMBD24] Alg. 1).

For each class t the margin z_t - max_{k != t} z_k is maximised over the whole pixel box from random
starts. A backdoored target reaches a margin that is an outlier among the classes.

Where the model labels enough clean images of every class rightly, each margin is taken in units of
the largest margin among them: classes differ by nature, and clean models of one task share that
difference. Otherwise the raw margins are compared, as in the paper.

Differs from the paper, besides: ascent by steps of decaying sup-norm size with projection onto the
box instead of plain gradient steps on a clamped copy (which leave dead pixels); starts that fall
behind are dropped early; the outlier test is leave-one-out Grubbs on log margins instead of a Gamma
fit, whose nominal 5 % is 16 to 22 % at ten classes (methods/detectors.md §11.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.margin import class_margins, gamma_p_value, margin_to
from modelaudit.functional.statistics import (
    MIN_CLASSES,
    class_p_values,
    generalised_esd,
    grubbs,
)
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.scanners.mm_bd_paper_code import MmBdPaperCodeScanner
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect


#: Fewest rightly labelled clean images of each class that say what margins it has by nature. The
#: largest of a few is so uncertain, and so small for a class that the model hardly knows, that in
#: its units clean models show outliers (docs/scanners/mm_bd.md).
MIN_NATURAL = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MmBdConfig:
    """Hyper-parameters of `MmBdScanner`.

    Attributes:
        starts: random starts R for each class (paper: 30).
        screen_steps: steps after which starts are compared.
        survivors: starts for each class that go on.
        steps: steps of a surviving start in all.
        step_size: first sup-norm step in pixel units [0, 1]; decays linearly to a twentieth.
        max_passes: most forward+backward image passes; with many classes starts, then
            steps, are cut to fit.
        suspicious: leave-one-out t from which the outlier is suspicious.
        strong: leave-one-out t from which it is strong.
    """

    starts: int = 8
    screen_steps: int = 10
    survivors: int = 3
    steps: int = 60
    step_size: float = 0.1
    max_passes: int = 20_000
    suspicious: float = 3.35
    strong: float = 4.5

    def __post_init__(self) -> None:
        require_range(self, "starts", low=1)
        require_range(self, "screen_steps", low=1)
        require_range(self, "survivors", low=1, high=self.starts)
        require_range(self, "steps", low=self.screen_steps)
        require_range(self, "step_size", low=0, high=1, is_low_open=True)
        require_range(self, "max_passes", low=1)
        require_range(self, "suspicious", low=0)
        require_range(self, "strong", low=self.suspicious)

    def passes(self, classes: int) -> int:
        """Return the forward+backward passes of all starts over `classes` classes."""
        later = self.steps - self.screen_steps
        return classes * (self.starts * self.screen_steps + self.survivors * later)

    def within_limit(self, classes: int) -> MmBdConfig:
        """Return these settings with starts, then steps, cut until `max_passes` holds.

        One step for each class is the least, whatever the limit.
        """
        config = self
        while config.starts > 1 and config.passes(classes) > self.max_passes:
            starts = config.starts - 1
            config = replace(config, starts=starts, survivors=min(config.survivors, starts))
        if config.passes(classes) > self.max_passes:
            steps = max(1, self.max_passes // classes)
            config = replace(config, steps=steps, screen_steps=min(config.screen_steps, steps))
        return config


def ascend(
    suspect: Suspect,
    images: Tensor,
    targets: Tensor,
    *,
    first: int,
    last: int,
    total: int,
    step_size: float,
    context: ScanContext,
) -> tuple[Tensor, Tensor]:
    """Take steps `first` to `last` of `total` up the margin, staying in the box.

    Samples are independent: batching and freezing classes change nothing.

    Args:
        suspect: in a borrow.
        images: ``(N, C, S, S)`` in [0, 1] on the suspect's device.
        targets: ``(N,)`` int64, the class whose margin each image raises.
        first: index of the first step.
        last: index after the last step.
        total: steps over which the step size decays.
        step_size: of step 0.
        context: autocast, chunking, deadline.

    Returns:
        The images after the last step and the best margin that each reached, ``(N,)``.
    """
    best = torch.full((len(images),), -torch.inf, device=images.device)
    for index in range(first, last):
        context.check_deadline()
        step = step_size * (1 - 0.95 * index / max(1, total - 1))
        parts = []
        for rows in torch.arange(len(images), device=images.device).split(context.batch_size):
            x = images[rows].detach().requires_grad_()
            with suspect.autocast(context.search_dtype):
                margin = margin_to(suspect.logits(x), targets[rows])
            (grad,) = torch.autograd.grad(margin.sum(), x)
            best[rows] = torch.maximum(best[rows], margin.detach())
            scale = grad.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
            # Half-way between sign and plain gradient: small entries still move, large ones do not
            # overshoot.
            direction = grad.sign() * (grad.abs() / scale).sqrt()
            parts.append((x.detach() + step * direction).clamp_(0, 1))
        images = torch.cat(parts)
    return images, best


def maximum_margins(
    suspect: Suspect, config: MmBdConfig, *, seed: int, context: ScanContext
) -> Tensor:
    """Return r_t, the largest margin found for each class, ``(K,)`` float64 on the CPU.

    The final margins are measured in float32, whatever dtype searched.
    """
    classes = suspect.num_classes
    config = config.within_limit(classes)
    starts, survivors = config.starts, config.survivors
    shape = (starts, suspect.input_channels, suspect.input_size, suspect.input_size)
    images = torch.cat(
        [torch.rand(shape, generator=generator(seed, "mm_bd", t)) for t in range(classes)]
    ).to(suspect.device)
    targets = torch.arange(classes, device=suspect.device).repeat_interleave(starts)
    with context.progress.task("mm_bd", config.steps) as task:
        images, best = ascend(
            suspect,
            images,
            targets,
            first=0,
            last=config.screen_steps,
            total=config.steps,
            step_size=config.step_size,
            context=context,
        )
        task.advance(config.screen_steps)
        kept = best.view(classes, starts).topk(survivors, dim=1).indices
        rows = (kept + starts * torch.arange(classes, device=best.device).unsqueeze(1)).flatten()
        images, targets = images[rows], targets[rows]
        for first in range(config.screen_steps, config.steps, 10):
            last = min(first + 10, config.steps)
            images, _ = ascend(
                suspect,
                images,
                targets,
                first=first,
                last=last,
                total=config.steps,
                step_size=config.step_size,
                context=context,
            )
            task.advance(last - first)
    with torch.no_grad():
        final = torch.cat(
            [
                margin_to(suspect.logits(x), t)
                for x, t in zip(
                    images.split(context.batch_size),
                    targets.split(context.batch_size),
                    strict=True,
                )
            ]
        )
    return final.view(classes, survivors).amax(1).double().cpu()


def natural_margins(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor | None:
    """Return the largest margin of a clean image of each class, ``(K,)`` float64.

    Args:
        logits: ``(N, K)`` of clean images.
        labels: ``(N,)`` int64.
        num_classes: K.

    Returns:
        None where fewer than `MIN_NATURAL` images of a class have a positive margin, that is, are
        labelled rightly.
    """
    margins = class_margins(logits.double()).gather(1, labels.unsqueeze(1)).squeeze(1)
    is_right = margins > 0
    if int(torch.bincount(labels[is_right], minlength=num_classes).min()) < MIN_NATURAL:
        return None
    return torch.stack([margins[labels == t].amax() for t in range(num_classes)])


class MmBdScanner(Scanner[MmBdConfig]):
    """Maximum margin outlier across classes; only the unit of margins needs images."""

    id = "mm_bd"
    version = "2"
    family = "margin"
    summary = "outlier among the largest reachable class margins"
    reference = "[MMBD24] Alg. 1"
    config_type = MmBdConfig
    variants = MappingProxyType({"paper_code": MmBdPaperCodeScanner})
    sees_all_to_all = False
    is_calibrated = True
    requires_gradients = True
    min_classes = 5

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by classes alone
        """Return the passes of all starts."""
        config = self.config.within_limit(suspect.num_classes)
        return Cost(
            forward=suspect.num_classes * config.survivors,
            forward_backward=config.passes(suspect.num_classes),
        )

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        margins = maximum_margins(suspect, config, seed=context.seed, context=context)
        evidence: dict[str, Json] = {"margins": margins.tolist()}
        reached = (margins > 0).nonzero().flatten()
        missed = suspect.num_classes - len(reached)
        # A backdoor so strong that the search for other classes ends in its target is still an
        # outlier among the rest; where there is none, a class out of reach may be the target.
        unreached = Observation(
            finding=Finding.NO_POWER,
            per_class=tuple(margins.tolist()),
            per_class_name="largest margin found (logits)",
            evidence=evidence,
            notes=("some class cannot be reached at all, so margins cannot be compared",),
        )
        if missed > suspect.num_classes // 4 or len(reached) < MIN_CLASSES:
            return unreached
        evidence["gamma_p_value"] = gamma_p_value(margins[reached])
        evidence["raw_statistic"] = grubbs(margins[reached].log()).statistic
        natural = natural_margins(context.profile.logits, clean.labels, suspect.num_classes)
        scores, unit = margins, "logits"
        named: tuple[float, ...] = ()
        if natural is not None:
            evidence["natural_margins"] = natural.tolist()
            scores, unit = margins / natural, "of a clean image's largest"
            # Raw margins differ by nature: which class leads says little of one named elsewhere.
            p_values = dict(
                zip(reached.tolist(), class_p_values(scores[reached].log()), strict=True)
            )
            named = tuple(p_values.get(t, 1.0) for t in range(suspect.num_classes))
        compared = scores[reached].log()
        test = grubbs(compared)
        finding = Finding.NONE
        if test.statistic >= config.strong:
            finding = Finding.STRONG
        elif test.statistic >= config.suspicious:
            finding = Finding.SUSPICIOUS
        if missed and finding is Finding.NONE:
            return unreached
        others = generalised_esd(compared, alpha=0.05)
        outliers = reached[sorted({test.index, *others})].tolist()
        targets = tuple(outliers) if finding is not Finding.NONE else ()
        pattern = None
        if targets:
            pattern = Pattern.SEVERAL if len(targets) > 1 else Pattern.ALL_TO_ONE
        notes: tuple[str, ...] = ("blind to all-to-all backdoors: every class then has a trigger",)
        if missed:
            notes += (f"{missed} classes cannot be reached at all and are left out",)
        return Observation(
            finding=finding,
            pattern=pattern,
            target_labels=targets,
            score=test.statistic,
            score_name="leave-one-out t of the largest log margin",
            threshold=config.suspicious,
            p_value=test.p_value,
            per_class=tuple(scores.tolist()),
            per_class_name=f"largest margin found ({unit})",
            class_p_values=named,
            evidence=evidence,
            notes=notes,
        )
