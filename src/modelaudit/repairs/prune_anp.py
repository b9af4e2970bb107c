"""ANP: neurons whose perturbation makes the network fail ([ANP21]; methods/repairs.md §4).

A backdoored network is close to giving its target: a little adversarial noise on its neurons leads
there. Masks are found that keep the clean loss low with and without such noise; a neuron whose mask
goes to 0 is one that the noise uses and clean images do not need, and is pruned (gamma alone: that
is what the mask multiplied).

Differs from the released code: the masks are searched under the batch's own statistics, so that no
buffer changes, for fewer iterations; and the threshold comes from the validation images
(``paper_code`` takes 0.2). Of the thresholds that their accuracy allows, the one is taken under
which fresh adversarial noise does least harm there: a step pays while that loss falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import ConfigError
from modelaudit.functional.rates import ROUNDING
from modelaudit.repairs._amount import Answers
from modelaudit.repairs._augment import choose_augmentation
from modelaudit.repairs._mask_minimax import (
    Masks,
    Minimax,
    adversarial_noise,
    check_search,
    lowest_neurons,
    missing_neurons,
    neurons_below,
    search_masks,
)
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.prune_anp_paper_code import PruneAnpPaperCodeRepair
from modelaudit.repairs.pruning import PruneMode, prune_mask
from modelaudit.results import Cost
from modelaudit.seeds import generator
from modelaudit.suspect import BatchNormMode

if TYPE_CHECKING:
    from modelaudit.component import CleanData
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneAnpConfig:
    """Hyper-parameters of `PruneAnpRepair`.

    Attributes:
        epsilon: largest relative noise at its random start; 0.4 for CIFAR-10.
        alpha: weight of the loss without noise; from 0.5 on the method stops working.
        ascent_steps: sign steps of the noise.
        learning_rate: of the masks.
        momentum: of the masks.
        iterations: steps of the masks; the released code takes 2000.
        batch: images per step.
        thresholds: masks up to which neurons may go, ascending.
        number: how many neurons go instead, those with the smallest masks, whatever that costs the
            validation images; None chooses a threshold.
        max_accuracy_drop: largest drop of validation accuracy, a fraction; the smaller of this and
            the run's budget counts.
    """

    epsilon: float = 0.4
    alpha: float = 0.2
    ascent_steps: int = 1
    learning_rate: float = 0.2
    momentum: float = 0.9
    iterations: int = 200
    batch: int = 64
    thresholds: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(20))
    number: int | None = None
    max_accuracy_drop: float = 0.02

    def __post_init__(self) -> None:
        check_search(self)
        if not self.thresholds or not all(0 <= t <= 1 for t in self.thresholds):
            raise ConfigError(
                f"PruneAnpConfig.thresholds must be in [0, 1], got {self.thresholds!r}"
            )
        if any(t >= after for t, after in pairwise(self.thresholds)):
            raise ConfigError(f"PruneAnpConfig.thresholds must ascend, got {self.thresholds!r}")
        require_range(self, "max_accuracy_drop", low=0, high=1)


class PruneAnpRepair(Repair[PruneAnpConfig]):
    """Neurons that adversarial noise uses; the threshold that withstands it best on validation."""

    id = "prune_anp"
    version = "1"
    summary = "neurons whose adversarial perturbation makes the network fail"
    reference = "[ANP21] Eq. 5"
    config_type = PruneAnpConfig
    variants = MappingProxyType({"paper_code": PruneAnpPaperCodeRepair})
    requires_batchnorm = True
    requires_gradients = True
    min_images = 20

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - by its length
        """Return the passes of the search and of the thresholds' validation."""
        config = self.config
        tried = 0 if config.number is not None else 1 + len(config.thresholds)
        # The choice of the augmentation asks the validation images three times.
        return Cost(
            forward=(3 + tried) * len(data.validation),
            forward_backward=config.iterations * config.batch * (config.ascent_steps + 2)
            + tried * len(data.validation) * (config.ascent_steps + 1),
        )

    def _unmet_need_of_settings(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - the model's
        return missing_neurons(suspect, self.config.number)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        search = Minimax(
            epsilon=config.epsilon,
            alpha=config.alpha,
            ascent_steps=config.ascent_steps,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            iterations=config.iterations,
            batch=config.batch,
            mode=BatchNormMode.BATCH,
        )
        with model.borrowed(), context.progress.task(self.full_id, config.iterations) as task:
            augmentation = choose_augmentation(
                model,
                data.images[data.validation],
                data.labels[data.validation],
                crop=None,
                flip=None,
                generator=generator(context.seed, self.id, "augmentation"),
                batch_size=context.batch_size,
            )
            masks, history = search_masks(
                model,
                data.images[data.work],
                data.labels[data.work],
                search,
                augmentation=augmentation,
                generator=generator(context.seed, self.id, "search"),
                task=task,
                dtype=context.search_dtype,
            )
            neurons, details = self._choose(model, masks, search, data, context)
        mask = prune_mask(model, neurons, mode=PruneMode.OFFICIAL)
        mask.apply(model.module)
        return Change(
            mask=mask if neurons else None,
            history=history,
            details=details,
            notes=()
            if neurons
            else ("no threshold helps at a bearable accuracy; nothing was pruned",),
        )

    def _choose(
        self,
        model: Suspect,
        masks: Masks,
        search: Minimax,
        data: RepairData,
        context: RepairContext,
    ) -> tuple[list[Neuron], dict[str, Json]]:
        """Return the neurons that go, and what the JSON says of the choice."""
        if self.config.number is not None:
            return lowest_neurons(model, masks.values, self.config.number), {}
        curve, chosen = self._threshold(model, masks, search, data, context)
        return [] if chosen is None else neurons_below(model, masks.values, chosen), {
            "threshold": chosen,
            "curve": [list(point) for point in curve],
            "curve_is": "threshold, neurons, validation accuracy, loss under noise",
        }

    def _threshold(
        self,
        model: Suspect,
        masks: Masks,
        search: Minimax,
        data: RepairData,
        context: RepairContext,
    ) -> tuple[list[tuple[float, int, float, float]], float | None]:
        """Return what each threshold gives on the validation images, and the one to take."""
        answers = Answers(model, data, context, mode=PruneMode.OFFICIAL)
        base = answers.accuracy(())
        floor = base - min(self.config.max_accuracy_drop, context.max_accuracy_drop) - ROUNDING
        best, chosen = self._loss_under_noise(model, masks, None, search, data, context), None
        curve: list[tuple[float, int, float, float]] = []
        for threshold in self.config.thresholds:
            neurons = neurons_below(model, masks.values, threshold)
            if curve and curve[-1][1] == len(neurons):
                continue
            accuracy = answers.accuracy(neurons)
            if accuracy < floor:
                break
            loss = self._loss_under_noise(model, masks, threshold, search, data, context)
            curve.append((threshold, len(neurons), accuracy, loss))
            if neurons and loss < best:
                best, chosen = loss, threshold
        return curve, chosen

    def _loss_under_noise(
        self,
        model: Suspect,
        masks: Masks,
        threshold: float | None,
        search: Minimax,
        data: RepairData,
        context: RepairContext,
    ) -> float:
        """Return the loss of the pruned model under fresh noise on the validation images.

        The images form one batch: its statistics are those of the search.
        """
        images = data.images[data.validation]
        labels = data.labels[data.validation].to(model.device)
        hard = Masks(model)
        if threshold is not None:
            hard.values = (masks.values > threshold).to(hard.values.dtype)
        # The same start for every threshold: they are compared with each other.
        draws = generator(context.seed, self.id, "validation")
        delta, xi = adversarial_noise(hard, images, labels, search, draws)
        with torch.no_grad():
            return float(hard.loss(images, labels, hard.values, delta, xi, search.mode))
