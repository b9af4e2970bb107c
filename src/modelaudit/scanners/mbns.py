"""MBNS: BatchNorm statistics that clean images do not explain ([DDE22] §4.4, later BNP).

Running statistics were collected over clean and poisoned images together, so a neuron that a
trigger moves carries a mean and variance that clean images alone never give. For every channel the
divergence

    K = KL( N(sample mean, sample variance) || N(running mean, running variance) )

is compared with what sampling alone would give, 1/n_eff by a bootstrap over images
(methods/detectors.md §2.2-2.3).

Differs from the paper, which prunes within one layer and gives no verdict on a model: images are
augmented as the statistics were (the borders of padded crops alone move K a hundredfold,
docs/scanners/mbns.md) and weighted as they may have been mixed; the score is the largest divergence
in sampling floors, in units of its layer; flagged channels must be removable at no cost, or most of
them be and lead to the same alone, unless the classes shift one by one; the target is named by
pushing them, with controls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.errors import ConfigError, DegenerateStatisticError
from modelaudit.functional.rates import ROUNDING
from modelaudit.functional.reweighting import effective_count
from modelaudit.functional.shares import NO_ARROW
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners._divergences import Divergences, divergences
from modelaudit.scanners._trace_trials import TraceTrials, Trial
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.scanners.mbns_paper_code import MbnsPaperCodeScanner

if TYPE_CHECKING:
    from modelaudit.scanners._channels import PushTest
    from modelaudit.suspect import Suspect


_SCORE_NAME = "largest divergence in units of its layer's"
_BLIND = (
    "a divergence of {:.3f} nats could go unnoticed: the clean images are too few, or not what the "
    "running statistics were collected on (other domain, preprocessing or augmentation, or images "
    "that the model was not trained on and knows less well), so a trigger's trace may be hidden"
)
_TUNED = (
    "the running statistics fit these very images better than sampling allows: they were "
    "re-estimated or re-parameterised on them, which hides a backdoor from this test"
)
#: clearest traces that are removed one by one where the ten clearest together cost too much
_PRICED = 40
#: part of the ten clearest that has to be free, beside more than half of all that are tried
_LEAST_FREE = 0.6
#: share of the accuracy that `prune_channels` of a trigger's own cost together, at most
#: (methods/detectors.md §2.3)
_OWN_COST = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class MbnsConfig:
    """Hyper-parameters of `MbnsScanner`.

    Attributes:
        resamples: bootstrap resamples for the sampling floor.
        ridge: price of uneven image weights; what another mixture of the clean images explains is
            no trace.
        suspicious: score from which the finding is suspicious.
        strong: score from which it is strong.
        max_unnoticed: divergence in nats that may go unnoticed in the median layer; where more may,
            neither a finding nor its absence means anything: no power.
        strong_if_blind: score that counts even without power, for a trigger that moves most
            channels of most layers makes their divergences large itself.
        min_mismatch: median floor ratio, of images that weigh alike, below which the statistics
            were tuned to these very images.
        traced: floor ratio, in units of the median channel's, from which a channel carries a trace:
            it is pushed, and is no control.
        poisoned_shares: assumed shares of poisoned images, largest first, that say how far traces
            are pushed; the search images choose among these.
        prune_channels: most channels that are pruned, those of the clearest traces.
        control_sets: random channel sets that the push is compared with.
        max_accuracy_drop: largest accuracy drop at which pruning counts as free.
    """

    resamples: int = 200
    ridge: float = 3.0
    suspicious: float = 10.0
    strong: float = 20.0
    max_unnoticed: float = 0.023
    strong_if_blind: float = 40.0
    min_mismatch: float = 0.01
    traced: float = 5.0
    poisoned_shares: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025, 0.0125)
    prune_channels: int = 10
    control_sets: int = 20
    max_accuracy_drop: float = 0.06

    def __post_init__(self) -> None:
        require_range(self, "resamples", low=10)
        require_range(self, "ridge", low=0)
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "strong", low=self.suspicious)
        require_range(self, "min_mismatch", low=0)
        require_range(self, "max_unnoticed", low=0, is_low_open=True)
        require_range(self, "strong_if_blind", low=self.strong)
        if not self.poisoned_shares or not all(0 < share <= 1 for share in self.poisoned_shares):
            raise ConfigError(
                f"MbnsConfig.poisoned_shares must be in (0, 1], got {self.poisoned_shares!r}"
            )
        require_range(self, "traced", low=0, is_low_open=True)
        require_range(self, "prune_channels", low=1)
        require_range(self, "control_sets", low=20)
        require_range(self, "max_accuracy_drop", low=0, high=1)


class MbnsScanner(Scanner[MbnsConfig]):
    """Mismatched BatchNorm statistics; no gradients, no labels, one shared forward pass."""

    id = "mbns"
    version = "2"
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
        """Return the passes of the confirmation, which only a finding needs.

        Its second trial, of the channels that the network does not need, has time left or is not
        made.
        """
        return Cost(forward=self._first_trial(clean))

    def _first_trial(self, clean: CleanImages) -> int:
        config = self.config
        pushes, controls = 2 * len(config.poisoned_shares), 3 + config.control_sets
        return len(clean.judge) * controls + len(clean.search) * pushes

    def _second_trial(self, clean: CleanImages) -> float:
        """Return what trying the free channels costs at most, in passes of the first trial."""
        first = self._first_trial(clean)
        return 1 + (2 * len(clean.judge) + _PRICED * len(clean.search)) / max(1, first)

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        config = self.config
        found = divergences(
            suspect,
            context.profile,
            resamples=config.resamples,
            seed=context.seed,
            ridge=config.ridge,
        )
        if not bool(found.alive.any()):
            raise DegenerateStatisticError("every BatchNorm channel is dead")
        # Half of all channels hold no trace of a trigger: their median says how well the images
        # match.
        mismatch = float(found.floor_ratio[found.alive].median())
        unnoticed = found.unnoticed(config.suspicious)
        scores = found.scores()
        score = float(scores.max())
        order = scores.argsort(descending=True)
        evidence: dict[str, Json] = {
            "median_floor_ratio": mismatch,
            "unweighted_median_floor_ratio": float(found.unweighted_ratio[found.alive].median()),
            "live_channels": int(found.alive.sum()),
            "images_left": effective_count(found.image_weights) / len(found.image_weights),
            "unnoticed_divergence": unnoticed,
            "median_divergence": float(found.divergence[found.alive].median()),
            "largest_divergence": float(found.divergence[found.alive].max()),
            "channels": [
                [*found.neurons[i], float(found.divergence[i]), float(scores[i])]
                for i in order[:10].tolist()
            ],
        }
        if unnoticed > config.max_unnoticed and score < config.strong_if_blind:
            return self._observation(Finding.NO_POWER, score, evidence, _BLIND.format(unnoticed))
        if score < config.suspicious:
            return self._unremarkable(found, score, evidence)
        is_traced = found.traced(config.traced, suspicious=config.suspicious)
        traced = [i for i in found.traces().argsort(descending=True).tolist() if is_traced[i]]
        return self._follow_up(suspect, clean, context, found, traced, score, evidence)

    def _unremarkable(
        self, found: Divergences, score: float, evidence: dict[str, Json]
    ) -> Observation:
        alike = found.unweighted_ratio[found.alive]
        if float(alike.median()) >= self.config.min_mismatch:
            return self._observation(Finding.NONE, score, evidence)
        return self._observation(Finding.SUSPICIOUS, score, evidence, _TUNED)

    def _observation(
        self, finding: Finding, score: float, evidence: dict[str, Json], *notes: str
    ) -> Observation:
        return Observation(
            finding=finding,
            score=score,
            score_name=_SCORE_NAME,
            threshold=self.config.suspicious,
            evidence=evidence,
            notes=notes,
        )

    def _follow_up(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        found: Divergences,
        traced: list[int],
        score: float,
        evidence: dict[str, Json],
    ) -> Observation:
        """Prune and push the traced channels: is the finding real, and where does it lead?"""
        config = self.config
        trials = TraceTrials(
            suspect,
            clean,
            context,
            found,
            traced,
            poisoned_shares=config.poisoned_shares,
            controls=config.control_sets,
        )
        started = time.monotonic()
        drop = trials.drop(traced[: config.prune_channels])
        trial = trials.push(traced)
        took = time.monotonic() - started
        test = trial.test
        evidence |= {
            "traced": len(traced),
            "poisoned_share": trial.poisoned_share,
            "pruned_accuracy_drop": drop,
            "push_share": test.share,
            "push_lower_bound": test.lower,
            "opposite_push_upper_bound": test.opposite_upper,
            "control_share": test.control_share,
            "shifted": test.shifted,
            "shifted_lower_bound": test.shifted_lower,
            "control_shifted": test.control_shifted,
            "arrows": list(test.arrows),
            "push": [[*neuron, amount] for neuron, amount in trial.push.items()],
        }
        is_free = drop <= config.max_accuracy_drop
        # Pushed far enough, needed channels lead a clean model's images to one class, as no control
        # may do: there the price of their removal tells. They do not lead each class to another.
        is_shift = test.leads_to_all and test.is_sure_shift
        is_confirmed = is_shift or (is_free and trial.leads)
        notes = []
        if not is_free:
            note = (
                f"removing the clearest traces costs {drop:.1%} of the accuracy; a trigger's "
                "own channels cost little"
            )
            if is_shift:
                note += ", but nothing else shifts the classes as far"
            elif trial.leads and context.has_left(took * self._second_trial(clean)):
                is_confirmed = self._free_ones_lead_alike(trials, trial, traced, evidence)
                if is_confirmed:
                    note += (
                        f"; here {evidence['free']} of the {evidence['priced']} clearest cost "
                        "nothing, and they alone lead to the same"
                    )
            notes.append(note)
        pattern = None
        if test.leads_to_one:
            pattern = Pattern.ALL_TO_ONE
        elif test.leads_to_all:
            pattern = Pattern.ALL_TO_ALL
        return Observation(
            finding=Finding.STRONG if score >= config.strong else Finding.SUSPICIOUS,
            pattern=pattern,
            target_labels=(test.target,) if test.leads_to_one else (),
            score=score,
            score_name=_SCORE_NAME,
            threshold=config.suspicious,
            is_confirmed=is_confirmed,
            is_refuted=test.is_refuted,
            per_class=test.per_class,
            per_class_name="share of other classes' images that the push sends there",
            evidence=evidence,
            notes=tuple(notes),
        )

    def _free_ones_lead_alike(
        self, trials: TraceTrials, trial: Trial, traced: list[int], evidence: dict[str, Json]
    ) -> bool:
        """Whether most of the clearest traces are free, cost little together and lead alike.

        What images of another kind leave in a clean model's statistics lies on the channels that
        it needs; a trigger that is bound to the features of classes moves some of these as well,
        but has its own (docs/adr/0024-needed-channels.md).
        """
        priced = traced[:_PRICED]
        free = trials.free(priced)
        clearest = set(traced[: self.config.prune_channels])
        free_clearest = len(clearest.intersection(free))
        evidence |= {"priced": len(priced), "free": len(free), "free_clearest": free_clearest}
        if free_clearest < _LEAST_FREE * self.config.prune_channels - ROUNDING:
            return False
        if 2 * len(free) <= len(priced):
            return False
        free_drop = trials.drop(free)
        own_drop = trials.drop(free[: self.config.prune_channels])
        evidence |= {"free_accuracy_drop": free_drop, "free_clearest_accuracy_drop": own_drop}
        limit = self.config.max_accuracy_drop + ROUNDING
        if free_drop > limit or own_drop > min(_OWN_COST + ROUNDING, limit):
            return False
        alone = trials.push(free)
        evidence |= {
            "free_poisoned_share": alone.poisoned_share,
            "free_push_share": alone.test.share,
            "free_control_share": alone.test.control_share,
        }
        return alone.leads and is_same_lead(alone.test, trial.test)


def is_same_lead(one: PushTest, other: PushTest) -> bool:
    """Whether two pushes lead to the same class, or shift the same ones."""
    if one.leads_to_one or other.leads_to_one:
        return one.leads_to_one and other.leads_to_one and one.target == other.target
    return all(a in (b, NO_ARROW) for a, b in zip(one.arrows, other.arrows, strict=True))
