"""DDE pruning: neurons that a suspect training set splits into two groups ([DDE22] §4.3, EP).

Needs a mixture: images of the training set, poisoned ones among them, nobody saying which
(``--mixture``). On clean images alone there is nothing two-moded to see, so that it refuses.

The paper prunes every channel whose entropy lies below mean - u · sd of its layer (``paper_code``).
Here a channel may go if its entropy over the mixture is clearly lower than over clean images, the
scanner's measure. Which of these go, and how many, is found without a trigger: images of the
mixture that drive these channels further than any clean image does are most likely the poisoned
ones. A step pays while they keep their prediction; channels that carry it and that clean images do
not need go first. It ends when no more of them have it than clean images have by nature, or where
the validation accuracy forbids more.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.repairs._carriers import Guard, Suspicion, pruning_costs, remove_carriers
from modelaudit.repairs.base import Change, Repair
from modelaudit.repairs.prune_dde_paper_code import PruneDdePaperCodeRepair
from modelaudit.repairs.pruning import prune_mask
from modelaudit.results import Cost
from modelaudit.scanners.dde import channel_entropies, driven_images, peaks
from modelaudit.seeds import generator
from modelaudit.suspect import profile

if TYPE_CHECKING:
    from modelaudit.component import CleanData
    from modelaudit.repairs.base import RepairContext
    from modelaudit.repairs.data import RepairData
    from modelaudit.results import Json
    from modelaudit.suspect import Suspect

#: Fewest driven images that say where a backdoor leads.
_MIN_DRIVEN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneDdeConfig:
    """Hyper-parameters of `PruneDdeRepair`.

    Attributes:
        suspicious: drop of entropy from clean images to the mixture, in nats, that the largest one
            has to reach, or nothing is pruned; the scanner's threshold.
        traced: drop from which a channel may go.
        naming: most neurons with a suspicious drop that say which images are driven.
        min_mixture: fewest mixture images.
        images: most driven images that are looked at.
        cost_images: how many clean images say what these need.
        step: channels per round.
        max_fraction: largest share of all channels that may go.
        max_refused: how many channels may turn out to be needed before it gives up.
        guard_images: most clean images that the accuracy is asked on.
        max_accuracy_drop: largest drop of the accuracy on these, a fraction; the smaller of this
            and the run's budget counts.
    """

    suspicious: float = 0.2
    traced: float = 0.05
    naming: int = 10
    min_mixture: int = 200
    images: int = 100
    cost_images: int = 200
    step: int = 4
    max_fraction: float = 0.1
    max_refused: int = 12
    guard_images: int = 500
    max_accuracy_drop: float = 0.015

    def __post_init__(self) -> None:
        require_range(self, "suspicious", low=0, is_low_open=True)
        require_range(self, "traced", low=0, high=self.suspicious)
        require_range(self, "naming", low=1)
        require_range(self, "min_mixture", low=20)
        require_range(self, "images", low=2)
        require_range(self, "cost_images", low=1)
        require_range(self, "step", low=1)
        require_range(self, "max_fraction", low=0, high=1)
        require_range(self, "max_refused", low=0)
        require_range(self, "guard_images", low=1)
        require_range(self, "max_accuracy_drop", low=0, high=1)


class PruneDdeRepair(Repair[PruneDdeConfig]):
    """Two-moded neurons of a suspect training set that carry the prediction of what drives them."""

    id = "prune_dde"
    version = "2"
    summary = "neurons that a suspect training set (--mixture) splits into two groups"
    reference = "[DDE22] §4.3"
    config_type = PruneDdeConfig
    variants = MappingProxyType({"paper_code": PruneDdePaperCodeRepair})
    requires_mixture = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, data: RepairData) -> Cost:
        """Return the passes over both sets, and those of the rounds, at most."""
        config = self.config
        channels = sum(site.channels for site in suspect.sites)
        # A round may end with a single channel.
        rounds = 2 + int(config.max_fraction * channels)
        mixture = 0 if data.mixture is None else len(data.mixture)
        priced = min(config.cost_images, len(data.work))
        guarding = min(config.guard_images, len(data.images)) + len(data.validation)
        # A choice that costs too much is cut down to a quarter until a single channel is left.
        guards = 2 + (rounds + config.max_refused) * (2 + (2 * config.step).bit_length() // 2)
        return Cost(
            forward=len(data.images) + mixture + guards * guarding + 1,
            forward_backward=priced + 2 * rounds * min(config.images, mixture),
        )

    def _unmet_need_of_settings(self, suspect: Suspect, clean: CleanData) -> str | None:  # noqa: ARG002 - the mixture's
        assert clean.mixture is not None
        if len(clean.mixture) < self.config.min_mixture:
            return f"needs {self.config.min_mixture} mixture images, got {len(clean.mixture)}"
        return None

    def _repair(self, model: Suspect, data: RepairData, context: RepairContext) -> Change:
        config = self.config
        mixture = data.mixture
        assert mixture is not None
        with model.borrowed():
            # The shared profile is over crops; these two have to be alike but for the trigger.
            plain = profile(model, data.images, batch_size=context.batch_size)
            mixed = profile(model, mixture, batch_size=context.batch_size)
        neurons, on_clean = channel_entropies(plain)
        _, on_mixture = channel_entropies(mixed)
        drop = (on_clean - on_mixture).nan_to_num(-torch.inf)
        largest = float(drop.max())
        details: dict[str, Json] = {
            "largest_drop": largest if drop.isfinite().any() else None,
            "mixture_images": len(mixture),
        }
        if largest < config.suspicious:
            return Change(
                details=details,
                notes=("no neuron is two-moded over the mixture; nothing was pruned",),
            )
        order = drop.argsort(descending=True)[: config.naming].tolist()
        naming = [i for i in order if drop[i] >= config.suspicious]
        driven = driven_images(peaks(plain)[:, naming], peaks(mixed)[:, naming])
        details["driven_images"] = int(driven.sum())
        if int(driven.sum()) < _MIN_DRIVEN:
            return Change(
                details=details,
                notes=("no image of the mixture drives the neurons far; nothing was pruned",),
            )
        rows = driven.nonzero().flatten()[: config.images]
        targets = mixed.predictions[rows]
        # Some driven images are of their target class by birth.
        frequencies = torch.bincount(plain.predictions, minlength=model.num_classes).double()
        natural = float((frequencies[targets] / len(plain.predictions)).mean())
        details["natural_share"] = natural
        draws = generator(context.seed, self.id, "costs")
        priced = data.work[torch.randperm(len(data.work), generator=draws)[: config.cost_images]]
        removal = remove_carriers(
            model,
            [neurons[i] for i in (drop >= config.traced).nonzero().flatten().tolist()],
            Suspicion(images=mixture[rows], targets=targets, state=nullcontext),
            pruning_costs(
                model,
                data.images[priced],
                batch_size=context.batch_size,
                dtype=context.search_dtype,
            ),
            Guard(
                model,
                data,
                context,
                max_drop=config.max_accuracy_drop,
                max_images=config.guard_images,
            ),
            step=config.step,
            max_neurons=int(config.max_fraction * len(neurons)),
            max_remaining=natural,
            max_refused=config.max_refused,
            dtype=context.search_dtype,
        )
        mask = prune_mask(model, removal.neurons)
        mask.apply(model.module)
        return Change(
            mask=mask if removal.neurons else None,
            details=details | removal.details(),
            notes=(f"pruning ended because {removal.stop}",),
        )
