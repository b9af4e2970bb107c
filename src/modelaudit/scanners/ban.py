"""BAN: adversarial neuron noise sends a backdoored model's images to its target ([BAN24] §4).

A small relative noise on every neuron's weight and bias, searched to raise the loss, needs no
trigger to find the
target: in a backdoored model the cheapest way to be wrong is the backdoor.

Differs from the paper (methods/detectors.md §1.3-1.4): noise is clipped to its box; BatchNorm
statistics are re-estimated for the noisy network instead of drifting; several restarts must agree
on one class, because the paper's reading (few survive under noise and mask) also holds for clean
models, whose mask alone can send everything to one class. All four cells of noise and mask are
shown; the interaction is BAN's evidence, never one cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from modelaudit.config import require_range
from modelaudit.errors import DegenerateStatisticError
from modelaudit.functional.p_values import consensus_p_value
from modelaudit.functional.shares import arrow_map, off_class_counts, off_class_share
from modelaudit.functional.statistics import (
    class_p_values,
    grubbs,
    log_odds,
    lower_bound,
)
from modelaudit.results import Cost, Finding, Json, Pattern
from modelaudit.scanners._mask_search import search_mask
from modelaudit.scanners._noise_search import (
    first_order_profile,
    judge,
    paper_epsilon,
    targeted_noise,
    untargeted_noise,
)
from modelaudit.scanners.ban_paper_code import BanPaperCodeScanner
from modelaudit.scanners.base import CleanImages, Observation, ScanContext, Scanner
from modelaudit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.suspect import Suspect

_SCORE_NAME = "lead of the modal class over the runner-up under neuron noise (mean off-class share)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BanConfig:
    """Hyper-parameters of `BanScanner`.

    Attributes:
        epsilon: half-width of the noise box, relative; None takes the paper's by input size: 0.3 up
            to 40 pixels, 0.2 up to 96, 0.1 beyond.
        restarts: independent starts and batches R.
        steps: sign steps T of each restart, of size epsilon / T (paper: 30).
        batch: statistical batch of searches and re-estimation (paper: 128).
        min_agreement: share of restarts that must name the same class.
        suspicious: lead from which the finding is suspicious.
        strong: lead from which it is strong.
        mask_steps: steps of the mask search (paper: 400).
        mask_weight: lambda_1 of log ||m||_1 (paper: 0.75).
        mask_learning_rate: of its Adam (paper: 0.01).
        targeted_steps: steps of the confirmation for each class, of size 1.5 epsilon / steps.
        profile_images: images of the first-order profile; 0 leaves it out.
    """

    epsilon: float | None = None
    restarts: int = 8
    steps: int = 10
    batch: int = 128
    min_agreement: float = 0.75
    suspicious: float = 0.04
    strong: float = 0.08
    mask_steps: int = 400
    mask_weight: float = 0.75
    mask_learning_rate: float = 0.01
    targeted_steps: int = 6
    profile_images: int = 200

    def __post_init__(self) -> None:
        require_range(self, "epsilon", low=0, high=1)
        require_range(self, "restarts", low=1)
        require_range(self, "steps", low=1)
        require_range(self, "batch", low=2)
        require_range(self, "min_agreement", low=0, high=1)
        require_range(self, "suspicious", low=0, high=1)
        require_range(self, "strong", low=self.suspicious, high=1)
        require_range(self, "mask_steps", low=0)
        require_range(self, "mask_weight", low=0)
        require_range(self, "mask_learning_rate", low=0, is_low_open=True)
        require_range(self, "targeted_steps", low=1)
        require_range(self, "profile_images", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Where noise sends the images of E, over R restarts.

    Attributes:
        mean: off-class share of each class, averaged over restarts, ``(K,)`` float64.
        modal: class with the largest mean share.
        agreement: share of restarts whose largest share is the modal class's.
        lead: mean share of the modal class minus the runner-up's.
        lead_interval: its 90 % bootstrap interval over restarts and images.
    """

    mean: Tensor
    modal: int
    agreement: float
    lead: float
    lead_interval: tuple[float, float]


def consensus(
    predictions: Tensor, labels: Tensor, num_classes: int, *, generator_: torch.Generator
) -> _Shares:
    """Summarise restarts (methods/detectors.md §1.3a).

    Args:
        predictions: ``(R, N)`` int64.
        labels: ``(N,)`` int64.
        num_classes: K.
        generator_: draws the bootstrap.
    """
    shares = off_class_share(predictions, labels, num_classes)
    mean = shares.mean(0)
    ranked = mean.sort(descending=True)
    modal = int(ranked.indices[0])
    restarts, images = predictions.shape
    leads = []
    for _ in range(200):
        rows = torch.randint(restarts, (restarts,), generator=generator_)
        columns = torch.randint(images, (images,), generator=generator_)
        drawn = off_class_share(predictions[rows][:, columns], labels[columns], num_classes).mean(0)
        others = drawn.clone()
        others[modal] = -1.0
        leads.append(float(drawn[modal] - others.max()))
    low, high = torch.tensor(leads).quantile(torch.tensor([0.05, 0.95])).tolist()
    return _Shares(
        mean=mean,
        modal=modal,
        agreement=float((shares.argmax(1) == modal).double().mean()),
        lead=float(ranked.values[0] - ranked.values[1]),
        lead_interval=(low, high),
    )


def _p_values(predictions: Tensor, labels: Tensor, num_classes: int) -> tuple[float, ...]:
    """Return `class_p_values` of the log-odds of all restarts' images; empty where undefined.

    Also where noise sends images to fewer than half of the classes: how much these differ by
    nature cannot be seen on the others.
    """
    hits, trials = (counts.sum(0) for counts in off_class_counts(predictions, labels, num_classes))
    if 2 * int((hits > 0).sum()) < num_classes:
        return ()
    try:
        return class_p_values(log_odds(hits, trials))
    except DegenerateStatisticError:
        return ()


class BanScanner(Scanner[BanConfig]):
    """Adversarial neuron noise with restart consensus; needs gradients for neuron noise."""

    id = "ban"
    version = "1"
    family = "parameter_noise"
    summary = "adversarial neuron noise whose restarts agree on one class"
    reference = "[BAN24] Eq. 3-6"
    config_type = BanConfig
    variants = MappingProxyType({"paper_code": BanPaperCodeScanner})
    # Under noise an all-to-all model has no modal class: its lead is that of a clean one.
    sees_all_to_all = False
    is_calibrated = True
    requires_gradients = True
    min_images = 50

    def estimate(self, suspect: Suspect, clean: CleanImages) -> Cost:
        """Return the passes of search, judging, profile and, at most, the confirmation."""
        config = self.config
        batch = min(config.batch, len(clean.search))
        judged = len(clean.search) + len(clean.judge)
        runs = config.restarts + suspect.num_classes
        return Cost(
            forward=runs * judged + judged,
            forward_backward=batch * config.restarts * config.steps
            + suspect.num_classes
            * (min(config.profile_images, len(clean.search)) + batch * config.targeted_steps),
        )

    def _scan(self, suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        if not suspect.sites:
            return Observation(
                finding=Finding.NO_POWER, notes=("the model has no neurons that noise can move",)
            )
        config = self.config
        epsilon = paper_epsilon(suspect.input_size) if config.epsilon is None else config.epsilon
        found = clean.images[clean.search], clean.labels[clean.search]
        judged = clean.images[clean.judge], clean.labels[clean.judge]
        clean.judged()  # raises before the search when there is nothing to judge on
        with context.progress.task(self.full_id, config.restarts * 2) as task:
            noise = untargeted_noise(
                suspect,
                *found,
                epsilon=epsilon,
                steps=config.steps,
                restarts=config.restarts,
                batch=config.batch,
                generator=generator(context.seed, self.id, "noise"),
                context=context,
                on_restart=task.advance,
            )
            mask, clean_features = self._mask(suspect, clean, context)
            rows: list[Tensor] = []
            masked_rows: list[Tensor] = []
            for r in range(config.restarts):
                context.check_deadline()
                run = judge(
                    suspect,
                    noise.restart(r),
                    calibrate_on=found[0],
                    images=judged[0],
                    batch=config.batch,
                )
                rows.append(run.predictions)
                if mask is not None and run.features is not None:
                    with torch.no_grad():
                        masked = suspect.head((1 - mask) * run.features).argmax(1).cpu()
                    masked_rows.append(masked)
                task.advance()
        predictions = torch.stack(rows)
        right = clean.predictions[clean.judge] == judged[1]
        shares = consensus(
            predictions[:, right],
            judged[1][right],
            suspect.num_classes,
            generator_=generator(context.seed, self.id, "bootstrap"),
        )
        arrows = arrow_map(predictions[:, right], judged[1][right], suspect.num_classes)
        evidence: dict[str, Json] = {
            "epsilon": epsilon,
            "agreement": shares.agreement,
            "agreement_p_value": consensus_p_value(
                round(shares.agreement * config.restarts), config.restarts, suspect.num_classes
            ),
            "lead_interval": list(shares.lead_interval),
            "arrows": arrows.targets.tolist(),
            "arrow_shares": arrows.shares.tolist(),
            "cells": self._cells(
                suspect, judged, clean, predictions, masked_rows, mask, clean_features
            ),
        }
        if config.profile_images:
            evidence["first_order_profile"] = first_order_profile(
                suspect, found[0][: config.profile_images], found[1][: config.profile_images]
            ).tolist()
        finding = self._finding(shares)
        is_confirmed = False
        if finding is not Finding.NONE:
            is_confirmed = self._confirm(suspect, clean, context, epsilon, shares.modal, evidence)
        accused = (shares.modal,) if finding is not Finding.NONE else ()
        return Observation(
            finding=finding,
            pattern=Pattern.ALL_TO_ONE if accused else None,
            target_labels=accused,
            score=shares.lead,
            score_name=_SCORE_NAME,
            threshold=config.suspicious,
            is_confirmed=is_confirmed,
            per_class=tuple(shares.mean.tolist()),
            per_class_name="share of other classes' images that noise sends there",
            class_p_values=_p_values(predictions[:, right], judged[1][right], suspect.num_classes),
            evidence=evidence,
        )

    def _finding(self, shares: _Shares) -> Finding:
        config = self.config
        if shares.agreement < config.min_agreement or shares.lead < config.suspicious:
            return Finding.NONE
        return Finding.STRONG if shares.lead >= config.strong else Finding.SUSPICIOUS

    def _mask(
        self, suspect: Suspect, clean: CleanImages, context: ScanContext
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mask of Eq. 5 and the clean features of E; None without a cheap head."""
        config = self.config
        if suspect.split is None or suspect.split.method != "graph" or not config.mask_steps:
            return None, None
        with torch.no_grad():
            parts = [
                torch.cat(
                    [suspect.features(x) for x in clean.images[part].split(context.batch_size)]
                )
                for part in (clean.search, clean.judge)
            ]
        mask = search_mask(
            suspect.head,
            parts[0],
            clean.labels[clean.search].to(suspect.device),
            weight=config.mask_weight,
            steps=config.mask_steps,
            learning_rate=config.mask_learning_rate,
            batch=config.batch,
            generator=generator(context.seed, self.id, "mask"),
        )
        return mask, parts[1]

    def _cells(
        self,
        suspect: Suspect,
        judged: tuple[Tensor, Tensor],
        clean: CleanImages,
        noisy: Tensor,
        noisy_masked: list[Tensor],
        mask: Tensor | None,
        clean_features: Tensor | None,
    ) -> dict[str, Json]:
        """Return accuracy and modal class of the four cells of noise and mask (§1.3)."""

        def cell(predictions: Tensor) -> dict[str, Json]:
            shares = off_class_share(predictions, judged[1], suspect.num_classes)
            shares = shares if shares.dim() == 1 else shares.mean(0)
            return {
                "accuracy": float((predictions == judged[1]).double().mean()),
                "modal_class": int(shares.argmax()),
                "modal_share": float(shares.max()),
            }

        cells: dict[str, Json] = {
            "clean": cell(clean.predictions[clean.judge]),
            "noise": cell(noisy),
        }
        if mask is not None and clean_features is not None:
            with torch.no_grad():
                masked = suspect.head((1 - mask) * clean_features).argmax(1).cpu()
            cells["mask"] = cell(masked)
            cells["noise_and_mask"] = cell(torch.stack(noisy_masked))
        return cells

    def _confirm(
        self,
        suspect: Suspect,
        clean: CleanImages,
        context: ScanContext,
        epsilon: float,
        target: int,
        evidence: dict[str, Json],
    ) -> bool:
        """Aim the noise at every class: a target outruns the others on E (§0.5, §1.3c)."""
        config = self.config
        images, labels = clean.judged()
        noise = targeted_noise(
            suspect,
            clean.images[clean.search],
            clean.labels[clean.search],
            range(suspect.num_classes),
            epsilon=epsilon,
            steps=config.targeted_steps,
            batch=config.batch,
            generator=generator(context.seed, self.id, "targeted"),
            context=context,
        )
        hits, trials = [], []
        for t in range(suspect.num_classes):
            context.check_deadline()
            run = judge(
                suspect,
                noise.restart(t),
                calibrate_on=clean.images[clean.search],
                images=images,
                batch=config.batch,
            )
            counts = off_class_counts(run.predictions, labels, suspect.num_classes)
            hits.append(int(counts[0][t]))
            trials.append(int(counts[1][t]))
        bound = lower_bound(hits[target], trials[target]) if trials[target] else 0.0
        evidence["targeted_shares"] = [h / max(1, n) for h, n in zip(hits, trials, strict=True)]
        evidence["targeted_lower_bound"] = bound
        try:
            test = grubbs(log_odds(torch.tensor(hits), torch.tensor(trials)))
        except DegenerateStatisticError:
            return False
        evidence["targeted_p_value"] = test.p_value
        return test.index == target and test.p_value < 0.01 and bound > 0.5
