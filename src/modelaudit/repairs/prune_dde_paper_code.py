"""DDE pruning as the authors' released code does it ([DDE22] §4.3, published as EP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.functional.divergence import layer_outliers
from modelaudit.functional.entropy import histogram_entropy_paper
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.pruning import PruneMode, prune_mask
from modelaudit.results import Cost
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Profile, Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneDdePaperCodeConfig:
    """Hyper-parameters of `PruneDdePaperCodeRepair`.

    Attributes:
        deviations: u; a channel goes below mean - u standard deviations of its layer. 3 for
            CIFAR-10, 4 for Tiny-ImageNet.
        images: how many images of the mixture are looked at: the released code stops after its
            first batch, although the paper takes all.
        width: bin width of the entropy, in standard deviations.
    """

    deviations: float = 3.0
    images: int = 500
    width: float = 0.01

    def __post_init__(self) -> None:
        require_range(self, "deviations", low=0, is_low_open=True)
        require_range(self, "images", low=2)
        require_range(self, "width", low=0, is_low_open=True)


def two_moded_channels(mixed: Profile, *, deviations: float, width: float) -> list[Neuron]:
    """Return the channels whose entropy is below mean - u · sd of their layer, in execution order.

    [DDE22] §4.3. Differs: a constant channel, on which their code crashes, is left out.

    Args:
        mixed: profile of the mixture.
        deviations: u.
        width: bin width in standard deviations.
    """
    return [
        (recorded.site.name, index)
        for recorded in mixed.sites
        for index in layer_outliers(
            -histogram_entropy_paper(recorded.peaks.double(), width=width), u=deviations
        ).tolist()
    ]


class PruneDdePaperCodeRepair(Repair[PruneDdePaperCodeConfig]):
    """Every outlier of its layer over one batch of the mixture, gamma alone."""

    id = "prune_dde"
    version = "1"
    summary = "entropy over one batch of the mixture below mean - u·sd of its layer, gamma alone"
    reference = "[DDE22] §4.3, code"
    config_type = PruneDdePaperCodeConfig
    requires_batchnorm = True
    requires_mixture = True

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - by images alone
        """Return the passes over one batch of the mixture."""
        mixture = 0 if data.mixture is None else len(data.mixture)
        return Cost(forward=min(mixture, self.config.images))

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        assert data.mixture is not None
        with model.borrowed():
            mixed = profile(
                model, data.mixture[: self.config.images], batch_size=context.batch_size
            )
        neurons = two_moded_channels(
            mixed, deviations=self.config.deviations, width=self.config.width
        )
        mask = prune_mask(model, neurons, mode=PruneMode.OFFICIAL)
        mask.apply(model.module)
        return Change(mask=mask if neurons else None)
