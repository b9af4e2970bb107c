"""MBNS: BatchNorm statistics that clean images do not explain ([DDE22] §4.4, later BNP).

Running statistics were collected over clean and poisoned images together, so a neuron that a
trigger moves carries a mean and variance that clean images alone never give. For every channel the
divergence

    K = KL( N(sample mean, sample variance) || N(running mean, running variance) )

is compared with what sampling alone would give, 1/n_eff by a bootstrap over images
(methods/detectors.md §2.2-2.3).

Differs from the paper, which prunes within one layer and gives no verdict on a model: the score is
the largest divergence in units of its own sampling floor; images are augmented as the statistics
were (the borders of padded crops alone move K a hundredfold, docs/scanners/mbns.md); flagged
channels must be removable at no cost; the target is named by pushing them, with controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import ConfigError, DegenerateStatisticError
from modelaudit.functional.divergence import (
    bootstrap_effective_size,
    gaussian_kl,
    pooled_moments,
)
from modelaudit.functional.shares import arrow_map, is_permutation_like
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners._channels import (
    Neuron,
    pruned_predictions,
    push_test,
    pushed_predictions,
)
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.scanners.mbns_paper_code import MbnsPaperCodeScanner
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Profile, Suspect


_SCORE_NAME = "largest divergence in units of its sampling floor"


@dataclass(frozen=True, slots=True, kw_only=True)
class MbnsConfig:
    """Hyper-parameters of `MbnsScanner`.

    Attributes:
        resamples: bootstrap resamples for the sampling floor.
        suspicious: score from which the finding is suspicious.
        strong: score from which it is strong.
        max_mismatch: median floor ratio above which the images do not match what the statistics
            were collected on, and the absence of an outlier means nothing.
        min_mismatch: median floor ratio below which the statistics were tuned to these very images.
        push_deviations: how far flagged channels are pushed, in running standard deviations; the
            search images choose among these.
        push_channels: most flagged channels that are pushed.
        prune_channels: most flagged channels that are pruned.
        control_sets: random channel sets that the push is compared with.
        max_accuracy_drop: largest accuracy drop at which pruning counts as free.
    """

    resamples: int = 200
    suspicious: float = 25.0
    strong: float = 50.0
    max_mismatch: float = 12.0
    min_mismatch: float = 0.01
    push_deviations: tuple[float, ...] = (2.0, 4.0, 8.0)
    push_channels: int = 20
    prune_channels: int = 10
    control_sets: int = 20
    max_accuracy_drop: float = 0.06

    def __post_init__(self) -> None:
        require_range(self, "resamples", low=10)
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "strong", low=self.suspicious)
        require_range(self, "min_mismatch", low=0)
        require_range(self, "max_mismatch", low=self.min_mismatch, is_low_open=True)
        if not self.push_deviations or min(self.push_deviations) <= 0:
            raise ConfigError(
                f"MbnsConfig.push_deviations must be positive, got {self.push_deviations!r}"
            )
        require_range(self, "push_channels", low=1)
        require_range(self, "prune_channels", low=1)
        require_range(self, "control_sets", low=20)
        require_range(self, "max_accuracy_drop", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """K of every channel of every BatchNorm layer, flattened in execution order.

    Attributes:
        neurons: (layer, channel).
        divergence: K in nats, ``(D_total,)`` float64; NaN for dead channels.
        floor_ratio: K · n_eff, 1 on average where only sampling separates the two; 0 where K is
            NaN.
        shift: (running mean - sample mean) in running standard deviations, ``(D_total,)``.
        deviation: running standard deviation, ``(D_total,)``.
    """

    neurons: tuple[Neuron, ...]
    divergence: Tensor
    floor_ratio: Tensor
    shift: Tensor
    deviation: Tensor


def divergences(suspect: Suspect, profile: Profile, *, resamples: int, seed: int) -> Divergences:
    """Compute K and its sampling floor for every channel from one shared pass.

    [DDE22] §4.4 Eq. (4) in nats, first distribution the clean sample, second the layer's.
    """
    neurons: list[Neuron] = []
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for recorded in profile.sites:
        site = recorded.site
        if not site.has_statistics:
            continue
        count = len(recorded.sums) * recorded.positions
        mean, var = pooled_moments(recorded.sums.sum(0), recorded.squares.sum(0), count)
        bn_mean, bn_var = (t.cpu() for t in suspect.statistics(site))
        k = gaussian_kl(mean, var, bn_mean, bn_var)
        n_eff = bootstrap_effective_size(
            recorded.sums,
            recorded.squares,
            recorded.positions,
            resamples=resamples,
            generator=generator(seed, "mbns", "bootstrap", site.name),
        )
        deviation = bn_var.clamp_min(1e-10).sqrt()
        columns.append((k, (k * n_eff).nan_to_num(0.0), (bn_mean - mean) / deviation, deviation))
        neurons.extend((site.name, i) for i in range(site.channels))
    joined = [torch.cat(list(parts)) for parts in zip(*columns, strict=True)]
    return Divergences(
        neurons=tuple(neurons),
        divergence=joined[0],
        floor_ratio=joined[1],
        shift=joined[2],
        deviation=joined[3],
    )


def _without_trace(found: Divergences, flagged: list[int]) -> dict[str, list[int]]:
    """Return, for each flagged layer, the half of its channels nearest to the sampling floor."""
    pool: dict[str, list[int]] = {}
    for name in {found.neurons[i][0] for i in flagged}:
        rows = [i for i, neuron in enumerate(found.neurons) if neuron[0] == name]
        rows.sort(key=lambda i: float(found.floor_ratio[i]))
        kept = [i for i in rows[: len(rows) // 2] if i not in set(flagged)]
        pool[name] = [found.neurons[i][1] for i in kept]
    return pool


class MbnsScanner(Scanner[MbnsConfig]):
    """Mismatched BatchNorm statistics; no gradients, no labels, one shared forward pass."""

    id = "mbns"
    version = "1"
    family = "bn_statistics"
    summary = "BatchNorm statistics that clean images do not explain"
    reference = "[DDE22] §4.4"
    config_type = MbnsConfig
    variants = MappingProxyType({"paper_code": MbnsPaperCodeScanner})
    sees_all_to_all = True
    is_calibrated = True
    requires_batchnorm = True
    min_images = 50

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes of the confirmation, which only a finding needs."""
        config = self.config
        return Cost(
            forward=len(clean.judge) * (3 + config.control_sets)
            + len(clean.search) * len(config.push_deviations)
        )

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        found = divergences(suspect, context.profile, resamples=config.resamples, seed=context.seed)
        alive = found.divergence.isfinite() & (found.floor_ratio > 0)
        if not bool(alive.any()):
            raise DegenerateStatisticError("every BatchNorm channel is dead")
        # Half of all channels hold no trace of a trigger: their median says how well the images
        # match.
        mismatch = float(found.floor_ratio[alive].median())
        scores = found.floor_ratio / max(1.0, mismatch)
        score = float(scores.max())
        order = scores.argsort(descending=True)
        evidence: dict[str, Json] = {
            "median_floor_ratio": mismatch,
            "median_divergence": float(found.divergence[alive].median()),
            "largest_divergence": float(found.divergence[alive].max()),
            "channels": [
                [*found.neurons[i], float(found.divergence[i]), float(scores[i])]
                for i in order[:10].tolist()
            ],
        }
        if score < config.suspicious or mismatch > config.max_mismatch:
            return self._unremarkable(mismatch, score, evidence)
        flagged = [
            i for i in order[: config.push_channels].tolist() if scores[i] >= config.suspicious
        ]
        return self._follow_up(suspect, clean, context, found, flagged, score, evidence)

    def _unremarkable(
        self, mismatch: float, score: float, evidence: dict[str, Json]
    ) -> Observation:
        finding, notes = Finding.NONE, []
        if mismatch > self.config.max_mismatch:
            finding = Finding.NO_POWER
            notes.append(
                f"the median channel is {mismatch:.0f} sampling floors away from its running "
                "statistics: the clean images are not what these were collected on (other domain, "
                "preprocessing or augmentation), so a trigger's trace may be hidden"
            )
        elif mismatch < self.config.min_mismatch:
            finding = Finding.SUSPICIOUS
            notes.append(
                "the running statistics fit these very images better than sampling allows: they "
                "were re-estimated or re-parameterised on them, which hides a backdoor from this "
                "test"
            )
        return Observation(
            finding=finding,
            score=score,
            score_name=_SCORE_NAME,
            threshold=self.config.suspicious,
            evidence=evidence,
            notes=tuple(notes),
        )

    def _follow_up(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        found: Divergences,
        flagged: list[int],
        score: float,
        evidence: dict[str, Json],
    ) -> Observation:
        """Prune and push the flagged channels: is the finding real, and where does it lead?"""
        config = self.config
        images, labels = clean.judged()
        pruned = pruned_predictions(
            suspect,
            [found.neurons[i] for i in flagged[: config.prune_channels]],
            images,
            batch_size=context.batch_size,
        )
        drop = 1.0 - float((pruned == labels).double().mean())
        push = self._best_push(suspect, clean, context, found, flagged)
        test = push_test(
            suspect,
            push,
            images,
            labels,
            control_pool=_without_trace(found, flagged),
            controls=config.control_sets,
            generator=generator(context.seed, "mbns", "controls"),
            batch_size=context.batch_size,
        )
        evidence |= {
            "flagged": len(flagged),
            "pruned_accuracy_drop": drop,
            "push_share": test.share,
            "push_lower_bound": test.lower,
            "opposite_push_upper_bound": test.opposite_upper,
            "control_share": test.control_share,
            "arrows": list(test.arrows),
            "push": [[*neuron, amount] for neuron, amount in push.items()],
        }
        is_free = drop <= config.max_accuracy_drop
        pattern = None
        if test.leads_to_one:
            pattern = Pattern.ALL_TO_ONE
        elif test.leads_to_all:
            pattern = Pattern.ALL_TO_ALL
        notes = []
        if not is_free:
            notes.append(
                f"removing the flagged channels costs {drop:.1%} of the accuracy; a trigger's own "
                "channels cost little"
            )
        return Observation(
            finding=Finding.STRONG if score >= config.strong else Finding.SUSPICIOUS,
            pattern=pattern,
            target_labels=(test.target,) if test.leads_to_one else (),
            score=score,
            score_name=_SCORE_NAME,
            threshold=config.suspicious,
            is_confirmed=(test.beats_controls or test.leads_to_all) and is_free,
            per_class=test.per_class,
            per_class_name="share of other classes' images that the push sends there",
            evidence=evidence,
            notes=tuple(notes),
        )

    def _best_push(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        found: Divergences,
        flagged: list[int],
    ) -> dict[Neuron, float]:
        """Choose on S how far to push: to where classes shift one by one, else where most moves."""
        kept = clean.search[clean.predictions[clean.search] == clean.labels[clean.search]]
        images, labels = clean.images[kept], clean.labels[kept]
        pushes = [
            {
                found.neurons[i]: units * float(found.deviation[i]) * float(found.shift[i].sign())
                for i in flagged
            }
            for units in self.config.push_deviations
        ]
        predictions = pushed_predictions(suspect, pushes, images, batch_size=context.batch_size)
        counts = torch.bincount(labels, minlength=suspect.num_classes).clamp_min(1)

        def rank(index: int) -> tuple[bool, float]:
            arrows = arrow_map(predictions[index], labels, suspect.num_classes)
            # Share of each class's images that go where most of them go.
            moved = float((arrows.errors * arrows.shares / counts).mean())
            return is_permutation_like(arrows), moved

        return pushes[max(range(len(pushes)), key=rank)]
