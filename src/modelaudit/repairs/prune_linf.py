"""l-inf pruning: feature channels whose largest activation is large ([LINF20]); a weak baseline.

Of the paper only the abstract was available: backdoors show in the l-inf norm of activation maps
more than in l1 and l2. The rest is this project's (methods/repairs.md §9): the norm of a channel is
its mean over clean images of the largest magnitude at the feature point, the classifier is made
blind to the largest ones first, nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import RepairError
from modelaudit.functional.rates import ROUNDING
from modelaudit.functional.statistics import robust_z
from modelaudit.repairs._columns import feature_columns
from modelaudit.repairs.base import Change, Repair
from modelaudit.results import Cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLinfConfig:
    """Hyper-parameters of `PruneLinfRepair`.

    Attributes:
        deviations: a channel is abnormal from this many robust deviations above the median norm;
            0 takes every channel above the median.
        max_accuracy_drop: largest drop of validation accuracy, a fraction; the smaller of this and
            the run's budget counts.
    """

    deviations: float = 3.0
    max_accuracy_drop: float = 0.02

    def __post_init__(self) -> None:
        require_range(self, "deviations", low=0)
        require_range(self, "max_accuracy_drop", low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLinfPaperCodeConfig:
    """Hyper-parameters of `PruneLinfPaperCodeRepair`.

    Attributes:
        step_fraction: share of the feature channels that goes at a time, at least one channel.
        max_accuracy_drop: largest drop of validation accuracy, a fraction.
    """

    step_fraction: float = 0.01
    max_accuracy_drop: float = 0.04

    def __post_init__(self) -> None:
        require_range(self, "step_fraction", low=0, high=1, is_low_open=True)
        require_range(self, "max_accuracy_drop", low=0, high=1)


def linf_norms(features: Tensor) -> Tensor:
    """Return each channel's mean over images of its largest magnitude over positions.

    Args:
        features: Shape ``(N, F, h, w)``, floating, any device.

    Returns:
        Shape ``(F,)``, float64, device of `features`; not negative, scales with the features.
    """
    return features.detach().double().abs().amax((2, 3)).mean(0)


class _Blind:
    """The head of a model made blind to feature channels; judged on the validation images."""

    def __init__(self, model: Suspect, data: RepairData, context: RepairContext) -> None:
        if model.split is None or len(model.split.feature_shape) != 3:
            raise RepairError(
                "expected a model with feature maps before its last layers, this one has no such "
                "split; take another repair"
            )
        self.model = model
        self.size = context.batch_size
        self.labels = data.labels[data.validation]
        self.norms = linf_norms(self._features(data.images[data.work]))
        self.held_out = self._features(data.images[data.validation])

    def _features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.model.features(part) for part in images.split(self.size)])

    def accuracy(self, channels: Sequence[int]) -> float:
        """Return the validation accuracy without `channels`."""
        right = 0
        with torch.no_grad():
            parts = zip(self.held_out.split(self.size), self.labels.split(self.size), strict=True)
            for features, truth in parts:
                blind = features.clone()
                blind[:, list(channels)] = 0
                right += int((self.model.head(blind).argmax(1).cpu() == truth).sum())
        return right / len(self.labels)

    def prune(self, order: Sequence[int], *, step: int, max_drop: float) -> Change:
        """Blind the classifier to as many of `order` as the accuracy allows, `step` at a time."""
        floor = self.accuracy(()) - max_drop - ROUNDING
        kept = 0
        while kept < len(order) and self.accuracy(order[: kept + step]) >= floor:
            kept = min(len(order), kept + step)
        chosen = tuple(sorted(order[:kept]))
        if not chosen:
            return Change(details={"candidates": len(order)})
        columns = feature_columns(self.model)
        columns.zero(self.model.module, chosen)
        assert self.model.split is not None
        return Change(
            pruned=((self.model.split.point, chosen),),
            details={
                "candidates": len(order),
                "pruned_layer": columns.layer,
                "feature_point": self.model.split.point,
                "feature_channels": len(columns.columns),
                "pruned_channels": list(chosen),
            },
        )


def _passes(suspect: Suspect, data: RepairData, trials: int) -> Cost:
    forward = len(data.work) + len(data.validation)
    if suspect.split is not None and suspect.split.method == "injection":
        # Its head runs the whole network: once for each trial and channel.
        forward += trials * len(data.validation) + suspect.split.feature_shape[0] + 1
    return Cost(forward=forward)


class PruneLinfPaperCodeRepair(Repair[PruneLinfPaperCodeConfig]):
    """Largest norms first, 1 % at a time, up to 4 points of accuracy: as the tables compare it."""

    id = "prune_linf"
    version = "1"
    summary = "feature channels with large peaks, up to 4 points of accuracy"
    reference = "[LINF20]"
    config_type = PruneLinfPaperCodeConfig

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes for the features; a head that cannot be cut off runs the network."""
        return _passes(suspect, data, 2 + round(1 / self.config.step_fraction))

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        judge = _Blind(model, data, context)
        order = judge.norms.argsort(descending=True, stable=True).tolist()
        step = max(1, round(self.config.step_fraction * len(order)))
        return judge.prune(order, step=step, max_drop=self.config.max_accuracy_drop)


class PruneLinfRepair(Repair[PruneLinfConfig]):
    """Abnormally large norms first, as far as the validation accuracy allows.

    A step pays while the next channel is an outlier among the channels' norms; nothing that a
    trigger-free look can see says that removing a usual channel does any good.
    """

    id = "prune_linf"
    version = "1"
    summary = "feature channels with abnormal peaks, as far as accuracy allows; a weak baseline"
    reference = "[LINF20]"
    config_type = PruneLinfConfig
    variants = MappingProxyType({"paper_code": PruneLinfPaperCodeRepair})

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes for the features; a head that cannot be cut off runs the network."""
        channels = 0 if suspect.split is None else suspect.split.feature_shape[0]
        return _passes(suspect, data, 2 + channels)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        judge = _Blind(model, data, context)
        outlying = robust_z(judge.norms) >= self.config.deviations
        order = judge.norms.argsort(descending=True, stable=True).tolist()
        return judge.prune(
            [channel for channel in order if outlying[channel]],
            step=1,
            max_drop=min(self.config.max_accuracy_drop, context.max_accuracy_drop),
        )
