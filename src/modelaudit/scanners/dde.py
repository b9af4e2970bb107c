"""DDE: neurons whose pre-activations fall into two groups ([DDE22] §4.3; camera-ready name EP).

A trigger drives its neurons far above what clean images do, so over a mixture of clean and poisoned
images their distribution has two modes and a low differential entropy. The test therefore needs a
mixture: a suspect training set given with ``--mixture``. On clean images alone there is nothing
    bimodal to see, and this scanner says ``no_power``.

On a mixture, the lowest-entropy neurons are removed on a shadow of the suspect. In a backdoored
model images of the mixture then leave one class, the target, while clean images of that class stay
(methods/detectors.md §3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.entropy import vasicek_entropy
from modelaudit.functional.statistics import lower_bound, upper_bound
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners._channels import pruned_predictions
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.scanners._channels import Neuron
    from modelaudit.suspect import Profile, Suspect

#: Differential entropy of a standard normal in nats, the largest at unit variance.
GAUSSIAN_ENTROPY = 1.4189385332046727


@dataclass(frozen=True, slots=True, kw_only=True)
class DdeConfig:
    """Hyper-parameters of `DdeScanner`.

    Attributes:
        prune: share of all neurons, the lowest entropies first, that is removed at most.
        min_gap: a neuron is a candidate when its entropy on the mixture is at least this far below
            its entropy on the clean images, in nats.
        suspicious: share of the mixture's images of one class that leave it, beyond what clean
            images do, from which the finding is suspicious.
        strong: share from which it is strong.
        max_accuracy_drop: largest accuracy drop on clean images at which pruning counts as free.
        min_mixture: fewest mixture images.
    """

    prune: float = 0.02
    min_gap: float = 0.05
    suspicious: float = 0.1
    strong: float = 0.2
    max_accuracy_drop: float = 0.03
    min_mixture: int = 200

    def __post_init__(self) -> None:
        require_range(self, "prune", low=0, high=1, is_low_open=True)
        require_range(self, "min_gap", low=0)
        require_range(self, "suspicious", low=0, high=1)
        require_range(self, "strong", low=self.suspicious, high=1)
        require_range(self, "max_accuracy_drop", low=0, high=1)
        require_range(self, "min_mixture", low=20)


def channel_entropies(profile_: Profile) -> tuple[tuple[Neuron, ...], Tensor]:
    """Return every neuron and the entropy of its peak pre-activation ([DDE22] §3.1, §4.3).

    Returns:
        Neurons, and entropies ``(D_total,)`` float64 in nats at unit variance; NaN for constant
        channels.
    """
    neurons = tuple((s.site.name, i) for s in profile_.sites for i in range(s.site.channels))
    return neurons, torch.cat([vasicek_entropy(s.peaks.double()) for s in profile_.sites])


class DdeScanner(Scanner[DdeConfig]):
    """Differential entropy of pre-activations; decides only on a suspect training set."""

    id = "dde"
    version = "1"
    family = "bn_statistics"
    summary = "two-moded neurons in a suspect training set (--mixture); no power on clean images"
    reference = "[DDE22] §4.3"
    config_type = DdeConfig
    sees_all_to_all = True
    is_calibrated = True
    min_images = 50

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes with a mixture: both sets, as they are and with neurons removed."""
        if clean.mixture is None:
            return Cost()
        return Cost(forward=2 * (len(clean.mixture) + len(clean.images)))

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        neurons, on_clean = channel_entropies(context.profile)
        lowest = on_clean.nan_to_num(torch.inf).argsort()[:10].tolist()
        evidence: dict[str, Json] = {
            "gaussian_entropy": GAUSSIAN_ENTROPY,
            "median_entropy": float(on_clean.nanmedian()),
            "lowest_entropies": [[*neurons[i], float(on_clean[i])] for i in lowest],
        }
        if clean.mixture is None:
            return Observation(
                finding=Finding.NO_POWER,
                evidence=evidence,
                notes=("clean images alone are not bimodal in any neuron; give --mixture",),
            )
        if len(clean.mixture) < self.config.min_mixture:
            return Observation(
                finding=Finding.NO_POWER,
                evidence=evidence,
                notes=(f"needs {self.config.min_mixture} mixture images",),
            )
        return self._on_mixture(suspect, clean, context, neurons, evidence)

    def _on_mixture(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        neurons: tuple[Neuron, ...],
        evidence: dict[str, Json],
    ) -> Observation:
        config = self.config
        assert clean.mixture is not None
        # The shared profile is over crops; these two have to be alike but for the trigger.
        plain = profile(suspect, clean.images, batch_size=context.batch_size)
        _, on_clean = channel_entropies(plain)
        mixed = profile(suspect, clean.mixture, batch_size=context.batch_size)
        _, on_mixture = channel_entropies(mixed)
        # Neurons that are two-moded on clean images too belong to classes, not to a trigger.
        gap = (on_clean - on_mixture).nan_to_num(-torch.inf)
        most = max(1, round(config.prune * len(neurons)))
        order = gap.argsort(descending=True)[:most]
        chosen = [neurons[i] for i in order.tolist() if gap[i] >= config.min_gap]
        evidence["largest_entropy_gap"] = float(gap.max())
        evidence["candidates"] = len(chosen)
        score_name = (
            "share of one class's mixture images that leave it when two-moded neurons are removed"
        )
        if not chosen:
            return Observation(
                finding=Finding.NONE,
                score=0.0,
                score_name=score_name,
                threshold=config.suspicious,
                evidence=evidence,
            )
        before, after = (
            mixed.predictions,
            pruned_predictions(suspect, chosen, clean.mixture, batch_size=context.batch_size),
        )
        clean_after = pruned_predictions(
            suspect, chosen, clean.images, batch_size=context.batch_size
        )
        right = clean.predictions == clean.labels
        drop = float((right & (clean_after != clean.labels)).sum()) / max(1, int(right.sum()))
        excess = []
        for target in range(suspect.num_classes):
            mine = before == target
            left = int((mine & (after != target)).sum())
            own = right & (clean.labels == target)
            own_left = int((own & (clean_after != target)).sum())
            floor = upper_bound(own_left, int(own.sum())) if bool(own.any()) else 1.0
            share = lower_bound(left, int(mine.sum())) if bool(mine.any()) else 0.0
            excess.append(max(0.0, share - floor))
        score = max(excess)
        evidence |= {
            "pruned_accuracy_drop": drop,
            "neurons": [list(n) for n in chosen[:10]],
        }
        targets = tuple(t for t, e in enumerate(excess) if e >= config.suspicious)
        pattern = _pattern(targets, suspect.num_classes)
        is_free = drop <= config.max_accuracy_drop
        finding = Finding.NONE
        if score >= config.strong and is_free:
            finding = Finding.STRONG
        elif score >= config.suspicious:
            finding = Finding.SUSPICIOUS
        return Observation(
            finding=finding,
            pattern=pattern,
            target_labels=() if pattern is Pattern.ALL_TO_ALL else targets,
            score=score,
            score_name=score_name,
            threshold=config.suspicious,
            is_confirmed=finding is Finding.STRONG,
            per_class=tuple(excess),
            per_class_name="mixture images that leave the class beyond clean ones (lower bound)",
            evidence=evidence,
        )


def _pattern(targets: tuple[int, ...], num_classes: int) -> Pattern | None:
    if not targets:
        return None
    if len(targets) == 1:
        return Pattern.ALL_TO_ONE
    return Pattern.ALL_TO_ALL if len(targets) >= num_classes / 2 else Pattern.SEVERAL
