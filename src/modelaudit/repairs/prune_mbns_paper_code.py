"""MBNS pruning as the authors' released code does it ([DDE22] §4.4, published as BNP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.functional.divergence import gaussian_kl, layer_outliers, pooled_moments
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.pruning import PruneMode, prune_mask

if TYPE_CHECKING:
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Profile, Suspect

#: Below this divergence, in nats, a channel's statistics are those of the images up to rounding:
#: K is then about 1e-15, and the largest of such numbers is an outlier of nothing. One image in a
#: hundred that moves a channel by one deviation gives 7e-5.
MIN_DIVERGENCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneMbnsPaperCodeConfig:
    """Hyper-parameters of `PruneMbnsPaperCodeRepair`.

    Attributes:
        deviations: u; a channel goes above mean + u standard deviations of its layer. 3 for
            CIFAR-10, 4 for Tiny-ImageNet.
    """

    deviations: float = 3.0

    def __post_init__(self) -> None:
        require_range(self, "deviations", low=0, is_low_open=True)


def mismatched_channels(model: Suspect, profile: Profile, *, deviations: float) -> list[Neuron]:
    """Return the channels whose K exceeds mean + u · sd of their layer, in execution order.

    [DDE22] §4.4 with the sign of their code: the paper's text has K below the mean. Differs: dead
    channels are left out, which in their code turn a layer's mean into NaN; and a K below
    `MIN_DIVERGENCE` is returned by no u, where their code takes outliers among rounding errors.

    Args:
        model: whose running statistics are looked at.
        profile: of clean images, augmented as in training.
        deviations: u.
    """
    found: list[Neuron] = []
    for recorded in profile.sites:
        site = recorded.site
        if not site.has_statistics:
            continue
        count = len(recorded.sums) * recorded.positions
        mean, var = pooled_moments(recorded.sums.sum(0), recorded.squares.sum(0), count)
        bn_mean, bn_var = (t.cpu() for t in model.statistics(site))
        divergence = gaussian_kl(mean, var, bn_mean, bn_var)
        found.extend(
            (site.name, index)
            for index in layer_outliers(divergence, u=deviations).tolist()
            if divergence[index] >= MIN_DIVERGENCE
        )
    return found


class PruneMbnsPaperCodeRepair(Repair[PruneMbnsPaperCodeConfig]):
    """Every outlier of its layer at once, gamma alone, whatever it costs."""

    id = "prune_mbns"
    version = "2"
    summary = "BatchNorm statistics above mean + u·sd of their layer, gamma alone"
    reference = "[DDE22] §4.4, code"
    config_type = PruneMbnsPaperCodeConfig
    requires_batchnorm = True
    min_images = 2

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        neurons = mismatched_channels(
            model, self.profile(model, data, context), deviations=self.config.deviations
        )
        mask = prune_mask(model, neurons, mode=PruneMode.OFFICIAL)
        mask.apply(model.module)
        return Change(mask=mask if neurons else None)
