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
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.entropy import vasicek_entropy
from modelaudit.functional.statistics import lower_bound
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners._channels import pruned_predictions
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.scanners.dde_paper_code import DdePaperCodeScanner
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.scanners._channels import Neuron
    from modelaudit.suspect import Profile, Suspect

#: Differential entropy of a standard normal in nats, the largest at unit variance.
GAUSSIAN_ENTROPY = 1.4189385332046727


_SCORE_NAME = "largest drop of a neuron's entropy from clean images to the mixture (nats)"


@dataclass(frozen=True, slots=True, kw_only=True)
class DdeConfig:
    """Hyper-parameters of `DdeScanner`.

    Attributes:
        suspicious: drop of entropy, in nats, from which the finding is suspicious.
        strong: drop from which it is strong.
        neurons: most neurons with a suspicious drop that name the target and are removed.
        min_mixture: fewest mixture images.
    """

    suspicious: float = 0.2
    strong: float = 0.4
    neurons: int = 10
    min_mixture: int = 200

    def __post_init__(self) -> None:
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "strong", low=self.suspicious)
        require_range(self, "neurons", low=1)
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
    variants = MappingProxyType({"paper_code": DdePaperCodeScanner})
    sees_all_to_all = True
    is_calibrated = True
    min_images = 50

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes with a mixture: both sets, as they are and with neurons removed."""
        if clean.mixture is None:
            return Cost()
        return Cost(forward=2 * (len(clean.mixture) + len(clean.images)))

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        if not suspect.sites:
            return Observation(
                finding=Finding.NO_POWER, notes=("the model has no neurons to look at",)
            )
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
        drop = (on_clean - on_mixture).nan_to_num(-torch.inf)
        score = max(0.0, float(drop.max()))
        evidence["mixture_images"] = len(clean.mixture)
        if score < config.suspicious:
            return Observation(
                finding=Finding.NONE,
                score=score,
                score_name=_SCORE_NAME,
                threshold=config.suspicious,
                evidence=evidence,
            )
        order = drop.argsort(descending=True)[: config.neurons].tolist()
        chosen = [i for i in order if drop[i] >= config.suspicious]
        driven = driven_images(peaks(plain)[:, chosen], peaks(mixed)[:, chosen])
        named = mixed.predictions[driven]
        counts = torch.bincount(named, minlength=suspect.num_classes)
        target = int(counts.argmax())
        is_named = bool(len(named)) and lower_bound(int(counts[target]), len(named)) > 0.5
        is_spread = not is_named and int((counts > 0).sum()) > suspect.num_classes / 2
        pattern = Pattern.ALL_TO_ONE if is_named else None
        if is_spread and len(named) >= 2 * suspect.num_classes:
            pattern = Pattern.ALL_TO_ALL
        two_moded = [neurons[i] for i in chosen]
        pruned = pruned_predictions(suspect, two_moded, clean.images, batch_size=context.batch_size)
        right = clean.predictions == clean.labels
        after = pruned_predictions(suspect, two_moded, clean.mixture, batch_size=context.batch_size)
        evidence |= {
            "neurons": [[*neurons[i], float(drop[i])] for i in chosen],
            "driven_images": int(driven.sum()),
            "driven_to_target": int(counts[target]),
            "driven_that_leave_when_pruned": int((after[driven] != named).sum()),
            "pruned_accuracy_drop": float((right & (pruned != clean.labels)).sum())
            / max(1, int(right.sum())),
        }
        return Observation(
            finding=Finding.STRONG if score >= config.strong else Finding.SUSPICIOUS,
            pattern=pattern,
            target_labels=(target,) if is_named else (),
            score=score,
            score_name=_SCORE_NAME,
            threshold=config.suspicious,
            per_class=tuple((counts / max(1, len(named))).tolist()),
            per_class_name="share of the images that drive the two-moded neurons",
            evidence=evidence,
        )


def peaks(profile_: Profile) -> Tensor:
    """Return every neuron's peak pre-activation for every image, ``(N, D_total)`` float64."""
    return torch.cat([site.peaks.double() for site in profile_.sites], dim=1)


def driven_images(clean: Tensor, mixture: Tensor) -> Tensor:
    """Say which mixture images drive two-moded neurons further than any clean image does.

    Args:
        clean: peak pre-activations of clean images, ``(N, D)`` float64.
        mixture: those of the mixture, ``(M, D)``.

    Returns:
        ``(M,)`` bool: the mean deviation over the neurons, in clean standard deviations and toward
        the mixture's longer tail, exceeds the largest clean one.
    """
    mean, deviation = clean.mean(0), clean.std(0).clamp_min(1e-12)
    scaled, reference = (mixture - mean) / deviation, (clean - mean) / deviation
    tail = scaled.pow(3).mean(0).sign()
    return (scaled * tail).mean(1) > (reference * tail).mean(1).max()
