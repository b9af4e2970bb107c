"""The minimax search for neuron masks of ANP ([ANP21] Eq. 3-5; methods/repairs.md §4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.config import require_range
from modelaudit.functional.noise import random_start, sign_step
from modelaudit.repairs._augment import Augmentation, augment
from modelaudit.suspect import BatchNormMode, SiteEdit

if TYPE_CHECKING:
    from torch import Tensor

    from modelaudit.progress import Task
    from modelaudit.repairs.pruning import Neuron
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimax:
    """How the masks are searched for.

    Attributes:
        epsilon: largest relative noise at the random start; the ascent is not projected, so that
            noise reaches twice that.
        alpha: weight of the loss without noise; 1 - alpha is that of the loss under noise.
        ascent_steps: sign steps of epsilon / ascent_steps that the noise takes.
        learning_rate: of SGD over the masks.
        momentum: of SGD.
        iterations: steps of the masks.
        batch: images per step, drawn with replacement.
        mode: BatchNorm statistics in the search. ``train`` changes buffers and belongs into a
            borrow.
    """

    epsilon: float
    alpha: float
    ascent_steps: int
    learning_rate: float
    momentum: float
    iterations: int
    batch: int
    mode: BatchNormMode


class Masks:
    """Masks of all neurons in one vector, and the edits that they stand for.

    Args:
        model: whose sites are masked.
    """

    def __init__(self, model: Suspect) -> None:
        self.model = model
        self.sizes = [site.channels for site in model.sites]
        self.values = torch.ones(sum(self.sizes), device=model.device)

    def edits(self, masks: Tensor, delta: Tensor, xi: Tensor) -> dict[str, SiteEdit]:
        """Return gamma (mask + delta) and beta (1 + xi) as edits.

        Args:
            masks: ``(D_total,)``; 1 keeps a neuron, 0 takes its gamma away.
            delta: noise on gamma, same shape.
            xi: noise on beta, same shape.
        """
        parts = zip(
            self.model.sites,
            (masks + delta - 1).split(self.sizes),
            xi.split(self.sizes),
            strict=True,
        )
        return {
            site.name: SiteEdit(weight_noise=weight, bias_noise=bias)
            for site, weight, bias in parts
        }

    def loss(
        self,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        delta: Tensor,
        xi: Tensor,
        mode: BatchNormMode,
    ) -> Tensor:
        """Return the mean cross-entropy of `images` under masks and noise."""
        with self.model.edited(self.edits(masks, delta, xi), mode=mode):
            return F.cross_entropy(self.model.logits(images), labels)


def adversarial_noise(
    masks: Masks,
    images: Tensor,
    labels: Tensor,
    search: Minimax,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return noise on gamma and beta that raises the loss of the masked network.

    [ANP21] Eq. 3 as their code has it: uniform random start, sign steps, no projection.

    Args:
        masks: the masks as they are.
        images: one batch.
        labels: ``(n,)`` int64.
        search: epsilon, steps and mode.
        generator: draws the start.
    """
    noise = random_start((2, len(masks.values)), search.epsilon, generator).to(masks.values.device)
    for _ in range(search.ascent_steps):
        noise.requires_grad_(True)
        loss = masks.loss(images, labels, masks.values, noise[0], noise[1], search.mode)
        (gradient,) = torch.autograd.grad(loss, noise)
        noise = sign_step(noise, gradient, search.epsilon / search.ascent_steps, epsilon=None)
    return noise[0], noise[1]


def search_masks(
    model: Suspect,
    images: Tensor,
    labels: Tensor,
    search: Minimax,
    *,
    augmentation: Augmentation,
    generator: torch.Generator,
    task: Task,
    dtype: torch.dtype | None,
) -> tuple[Masks, tuple[float, ...]]:
    """Minimise alpha · CE(masked) + (1 - alpha) · CE(masked, under adversarial noise) over masks.

    Weights, BatchNorm parameters and (but in ``train`` mode) buffers stay; masks multiply gamma
    alone.

    Args:
        model: the copy, in a borrow.
        images: clean images to draw from, ``(N, C, S, S)``.
        labels: ``(N,)`` int64.
        search: how.
        augmentation: what is done to the images of each batch.
        generator: CPU generator for batches, augmentation and noise.
        task: advanced by each iteration.
        dtype: of convolutions; None is float32.

    Returns:
        The masks in [0, 1], and the objective of each iteration.
    """
    masks = Masks(model)
    velocity = torch.zeros_like(masks.values)
    zero = torch.zeros_like(masks.values)
    losses: list[Tensor] = []
    with model.autocast(dtype):
        for _ in range(search.iterations):
            rows = torch.randint(len(images), (search.batch,), generator=generator)
            batch = augment(images[rows], augmentation, generator=generator)
            truth = labels[rows].to(model.device)
            delta, xi = adversarial_noise(masks, batch, truth, search, generator)
            values = masks.values.detach().requires_grad_(True)
            clean = masks.loss(batch, truth, values, zero, zero, search.mode)
            noisy = masks.loss(batch, truth, values, delta, xi, search.mode)
            loss = search.alpha * clean + (1 - search.alpha) * noisy
            (gradient,) = torch.autograd.grad(loss, values)
            velocity = search.momentum * velocity + gradient
            masks.values = (values.detach() - search.learning_rate * velocity).clamp_(0, 1)
            losses.append(loss.detach())
            task.advance()
    history = torch.stack(losses).cpu().tolist() if losses else []
    return masks, tuple(history)


def neurons_below(model: Suspect, masks: Tensor, threshold: float) -> list[Neuron]:
    """Return the neurons with a mask up to `threshold`, the smallest mask first.

    Ties, of which there are many at 0 and 1, go by the layers' execution order and the index.

    Args:
        model: whose neurons these are.
        masks: ``(D_total,)``, the sites one after another.
        threshold: tau in [0, 1].
    """
    return _ascending(model, masks)[: int((masks <= threshold).sum())]


def lowest_neurons(model: Suspect, masks: Tensor, number: int) -> list[Neuron]:
    """Return the `number` neurons with the smallest masks, ordered as `neurons_below` orders them.

    Args:
        model: whose neurons these are.
        masks: as in `neurons_below`.
        number: how many, see `missing_neurons`.
    """
    return _ascending(model, masks)[:number]


def missing_neurons(model: Suspect, number: int | None) -> str | None:
    """Return in words that a model has fewer neurons than are to go, or None."""
    neurons = sum(site.channels for site in model.sites)
    if number is None or number <= neurons:
        return None
    return f"needs {number} neurons to prune (number), the model has {neurons}"


def _ascending(model: Suspect, masks: Tensor) -> list[Neuron]:
    neurons = [(site.name, k) for site in model.sites for k in range(site.channels)]
    return [neurons[i] for i in masks.sort(stable=True).indices.tolist()]


def check_search(config: object) -> None:
    """Check the fields that both presets' configurations share.

    Raises:
        ConfigError: one is out of range.
    """
    require_range(config, "epsilon", low=0)
    require_range(config, "alpha", low=0, high=1)
    require_range(config, "ascent_steps", low=1)
    require_range(config, "learning_rate", low=0)
    require_range(config, "momentum", low=0, high=1)
    require_range(config, "iterations", low=1)
    require_range(config, "batch", low=2)
    require_range(config, "number", low=1)
