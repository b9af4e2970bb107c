"""CLP pruning: channels that can respond too strongly ([CLP22]); no image decides what is ranked.

The score of a channel bounds how far it can move for a small change of its input: the spectral norm
of its filter times |gamma| / sigma (`channel_lipschitz`). A trigger is small and its effect large,
so that its channels score high within their layer. The score is the same for BatchNorm statistics
that were re-parameterised at equal function, which blinds MBNS.

Differs from the paper, which prunes whatever exceeds mean + u · sd of its layer and looks at no
image: these outliers, the most deviating first, go only as far as the accuracy on the validation
images allows. On a narrow network the rule alone also hits channels that are needed
(``paper_code`` keeps it).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.functional.divergence import layer_outliers
from modelaudit.functional.spectral import channel_lipschitz
from modelaudit.repairs._amount import affordable
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.pruning import PruneMode, prune_mask
from modelaudit.results import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Site, Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneClpConfig:
    """Hyper-parameters of `PruneClpRepair`.

    Attributes:
        deviations: u; a channel is an outlier above mean + u standard deviations of its layer.
        max_accuracy_drop: largest drop of validation accuracy, a fraction; the smaller of this and
            the run's budget counts.
    """

    deviations: float = 3.0
    max_accuracy_drop: float = 0.02

    def __post_init__(self) -> None:
        require_range(self, "deviations", low=0, is_low_open=True)
        require_range(self, "max_accuracy_drop", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneClpPaperCodeConfig:
    """Hyper-parameters of `PruneClpPaperCodeRepair`.

    Attributes:
        deviations: u; a channel goes above mean + u standard deviations of its layer.
    """

    deviations: float = 3.0

    def __post_init__(self) -> None:
        require_range(self, "deviations", low=0, is_low_open=True)


def lipschitz_outliers(model: Suspect, *, deviations: float) -> list[Neuron]:
    """Return the channels above mean + u · sd of their layer, the most deviating first.

    [CLP22], u = 3. A layer takes part if a convolution's output is exactly its input, found by
    following the tensor; released code pairs each norm with the convolution listed before it, which
    is wrong for PreAct, DenseNet and shortcuts.
    """
    found: list[tuple[float, Neuron]] = []
    for site in model.sites:
        scores = _scores(model, site)
        if scores is None:
            continue
        valid = scores[scores.isfinite()]
        for index in layer_outliers(scores, u=deviations).tolist():
            z = float((scores[index] - valid.mean()) / valid.std())
            found.append((z, (site.name, index)))
    # Python's sort keeps the order of the layers among equals.
    return [neuron for _, neuron in sorted(found, key=lambda item: -item[0])]


def _scores(model: Suspect, site: Site) -> Tensor | None:
    if site.upstream is None or not site.has_statistics:
        return None
    layer = model.module.get_submodule(site.name)
    gamma, eps = getattr(layer, "weight", None), getattr(layer, "eps", 0.0)
    weight = getattr(model.module.get_submodule(site.upstream), "weight", None)
    if not isinstance(gamma, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return None
    assert isinstance(eps, float)
    return channel_lipschitz(weight, gamma, model.statistics(site)[1], eps=eps).cpu()


class PruneClpPaperCodeRepair(Repair[PruneClpPaperCodeConfig]):
    """Every outlier of its layer, gamma and beta, whatever it costs; looks at no image."""

    id = "prune_clp"
    version = "1"
    summary = "channels with a large bound of their response; needs no image"
    reference = "[CLP22]"
    config_type = PruneClpPaperCodeConfig
    requires_batchnorm = True

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:  # noqa: ARG002 - data-free
        neurons = lipschitz_outliers(model, deviations=self.config.deviations)
        mask = prune_mask(model, neurons, mode=PruneMode.ZERO)
        mask.apply(model.module)
        return Change(mask=mask if neurons else None)


class PruneClpRepair(Repair[PruneClpConfig]):
    """Outliers of the Lipschitz bound, as far as the validation accuracy allows."""

    id = "prune_clp"
    version = "1"
    summary = "channels with a large bound of their response, as far as accuracy allows"
    reference = "[CLP22]"
    config_type = PruneClpConfig
    variants = MappingProxyType({"paper_code": PruneClpPaperCodeRepair})
    requires_batchnorm = True

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes over the validation images: the halving's steps."""
        channels = sum(site.channels for site in suspect.sites)
        return Cost(forward=len(data.validation) * (channels.bit_length() + 2) + 1)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        ordered = lipschitz_outliers(model, deviations=self.config.deviations)
        amount = affordable(model, ordered, data, context, max_drop=self.config.max_accuracy_drop)
        neurons = ordered[: amount.count]
        mask = prune_mask(model, neurons)
        mask.apply(model.module)
        kept = len(ordered) - amount.count
        reason = f"{kept} outlying channels stay: the accuracy does not allow to remove them"
        return Change(
            mask=mask if neurons else None,
            details={
                "outliers": len(ordered),
                "accuracy_by_count": [list(point) for point in amount.curve],
            },
            notes=(reason,) if kept else (),
        )
