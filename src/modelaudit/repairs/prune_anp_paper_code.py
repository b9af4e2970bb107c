"""ANP as the authors' released code does it ([ANP21], appendix and code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.config import require_range
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._mask_minimax import (
    Minimax,
    check_search,
    lowest_neurons,
    missing_neurons,
    neurons_below,
    search_masks,
)
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.pruning import PruneMode, prune_mask
from modelaudit.results import Cost
from modelaudit.seeds import generator
from modelaudit.suspect import BatchNormMode

if TYPE_CHECKING:
    from modelaudit.component import CleanData
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneAnpPaperCodeConfig:
    """Hyper-parameters of `PruneAnpPaperCodeRepair`.

    Attributes:
        epsilon: largest relative noise at its random start.
        alpha: weight of the loss without noise.
        ascent_steps: sign steps of the noise.
        learning_rate: of the masks.
        momentum: of the masks.
        iterations: steps of the masks.
        batch: images per step.
        threshold: neurons with a mask up to this go.
        number: how many neurons go instead, those with the smallest masks; None goes by the
            threshold.
        flip: whether half of the images are mirrored.
    """

    epsilon: float = 0.4
    alpha: float = 0.2
    ascent_steps: int = 1
    learning_rate: float = 0.2
    momentum: float = 0.9
    iterations: int = 2000
    batch: int = 128
    threshold: float = 0.2
    number: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        check_search(self)
        require_range(self, "threshold", low=0, high=1)


class PruneAnpPaperCodeRepair(Repair[PruneAnpPaperCodeConfig]):
    """Masks up to 0.2 after 2000 steps in train mode, gamma alone, whatever it costs.

    The search's train-mode passes change the buffers of a borrowed module; what is pruned is the
    model as it was, with its own buffers, as in the released code.
    """

    id = "prune_anp"
    version = "1"
    summary = "neurons with a mask up to 0.2 after 2000 steps, gamma alone"
    reference = "[ANP21] code"
    config_type = PruneAnpPaperCodeConfig
    requires_batchnorm = True
    requires_gradients = True
    min_images = 2

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:  # noqa: ARG002 - by its length
        """Return the passes of the search."""
        config = self.config
        return Cost(forward_backward=config.iterations * config.batch * (config.ascent_steps + 2))

    def _unmet_need_of_settings(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - the model's
        return missing_neurons(suspect, self.config.number)

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        padding = model.input_size // 8 if model.input_size <= 128 else 0
        with model.borrowed(), context.progress.task(self.full_id, config.iterations) as task:
            masks, history = search_masks(
                model,
                data.images,
                data.labels,
                Minimax(
                    epsilon=config.epsilon,
                    alpha=config.alpha,
                    ascent_steps=config.ascent_steps,
                    learning_rate=config.learning_rate,
                    momentum=config.momentum,
                    iterations=config.iterations,
                    batch=config.batch,
                    mode=BatchNormMode.TRAIN,
                ),
                augmentation=Augmentation(padding=padding, flip=config.flip),
                generator=generator(context.seed, self.id, "paper_code"),
                task=task,
                dtype=context.search_dtype,
            )
        if config.number is None:
            neurons = neurons_below(model, masks.values, config.threshold)
        else:
            neurons = lowest_neurons(model, masks.values, config.number)
        mask = prune_mask(model, neurons, mode=PruneMode.OFFICIAL)
        mask.apply(model.module)
        return Change(mask=mask if neurons else None, history=history)
