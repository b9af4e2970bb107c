"""The adversarial neuron noise of BAN, shared by its scanner and its profiles ([BAN24] Eq. 3-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from modelaudit.functional.margin import margin_to
from modelaudit.functional.noise import random_start, sign_step
from modelaudit.suspect import BatchNormMode, SiteEdit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from modelaudit.scanners.base import ScanContext
    from modelaudit.suspect import Suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronNoise:
    """Noise on every neuron for R restarts.

    Attributes:
        weight: delta, ``(R, D_total)`` on the suspect's device.
        bias: xi, same shape.
    """

    weight: Tensor
    bias: Tensor

    def restart(self, index: int) -> NeuronNoise:
        """Return one restart's noise, kept 2-D."""
        chosen = slice(index, index + 1)
        return NeuronNoise(weight=self.weight[chosen], bias=self.bias[chosen])


def paper_epsilon(input_size: int) -> float:
    """Return the noise box's half-width for an input of `input_size` pixels ([BAN24] §5.1)."""
    if input_size <= 40:
        return 0.3
    return 0.2 if input_size <= 96 else 0.1


def neuron_count(suspect: Suspect) -> int:
    """Return the number of neurons over all sites."""
    return sum(site.channels for site in suspect.sites)


def site_edits(suspect: Suspect, weight: Tensor, bias: Tensor) -> dict[str, SiteEdit]:
    """Spread noise ``(R, D_total)`` over the sites, keeping it differentiable."""
    sizes = [site.channels for site in suspect.sites]
    return {
        site.name: SiteEdit(weight_noise=w, bias_noise=b)
        for site, w, b in zip(
            suspect.sites, weight.split(sizes, -1), bias.split(sizes, -1), strict=True
        )
    }


def search_mode(suspect: Suspect) -> BatchNormMode:
    """Batch statistics while searching, where there is BatchNorm (detectors.md §1.4, rows 4-5)."""
    return BatchNormMode.BATCH if suspect.has_batchnorm else BatchNormMode.RUNNING


def maximise(
    suspect: Suspect,
    images: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    start: NeuronNoise,
    epsilon: float | None,
    step: float,
    steps: int,
    mode: BatchNormMode,
    context: ScanContext,
    on_step: Callable[[], None] = lambda: None,
) -> NeuronNoise:
    """Ascend `objective` by sign steps on the noise of R restarts at once.

    Args:
        suspect: in a borrow.
        images: ``(R, B, C, H, W)`` in [0, 1], one batch for each restart.
        objective: logits ``(R, B, K)`` to a value per restart ``(R,)``.
        start: where to start; not changed.
        epsilon: half-width of the box that the noise is clipped to, or None.
        step: step size on the noise, dimensionless.
        steps: number of steps T; R·B·T forward+backward passes are counted.
        mode: BatchNorm statistics.
        context: gives autocast dtype and deadline.
        on_step: called after every step.

    Returns:
        The noise after the last step.
    """
    restarts, batch = images.shape[:2]
    flat = images.flatten(0, 1)
    weight, bias = start.weight, start.bias
    for _ in range(steps):
        context.check_deadline()
        weight = weight.detach().requires_grad_()
        bias = bias.detach().requires_grad_()
        edits = site_edits(suspect, weight, bias)
        with (
            suspect.edited(edits, mode=mode, groups=restarts),
            suspect.autocast(context.search_dtype),
        ):
            logits = suspect.logits(flat).unflatten(0, (restarts, batch))
        grads = torch.autograd.grad(
            objective(logits).sum(), [weight, bias], allow_unused=True, materialize_grads=True
        )
        weight = sign_step(weight.detach(), grads[0], step, epsilon=epsilon)
        bias = sign_step(bias.detach(), grads[1], step, epsilon=epsilon)
        on_step()
    return NeuronNoise(weight=weight.detach(), bias=bias.detach())


def batches(count: int, size: int, restarts: int, generator: torch.Generator) -> list[Tensor]:
    """Draw one batch of `size` distinct positions below `count` for each restart."""
    size = min(size, count)
    return [torch.randperm(count, generator=generator)[:size] for _ in range(restarts)]


def untargeted_noise(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    restarts: int,
    batch: int,
    generator: torch.Generator,
    context: ScanContext,
    on_restart: Callable[[int], None] = lambda _: None,
) -> NeuronNoise:
    """Search R noises that maximise cross-entropy ([BAN24] Eq. 4), clipped to the box.

    Every restart has its own start and its own batch; the draws do not depend on how many are
    computed together.
    """
    neurons = neuron_count(suspect)
    starts = [
        (
            random_start((1, neurons), epsilon, generator),
            random_start((1, neurons), epsilon, generator),
        )
        for _ in range(restarts)
    ]
    chosen = batches(len(images), batch, restarts, generator)
    together = max(1, context.batch_size // len(chosen[0]))
    mode = search_mode(suspect)
    found: list[NeuronNoise] = []
    for first in range(0, restarts, together):
        group = range(first, min(first + together, restarts))
        x = torch.stack([images[chosen[r]] for r in group]).to(suspect.device)
        y = torch.stack([labels[chosen[r]] for r in group]).to(suspect.device)

        def objective(logits: Tensor, y: Tensor = y) -> Tensor:
            losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            return losses.view(y.shape).mean(1)

        start = NeuronNoise(
            weight=torch.cat([starts[r][0] for r in group]).to(suspect.device),
            bias=torch.cat([starts[r][1] for r in group]).to(suspect.device),
        )
        found.append(
            maximise(
                suspect,
                x,
                objective,
                start=start,
                epsilon=epsilon,
                step=epsilon / steps,
                steps=steps,
                mode=mode,
                context=context,
            )
        )
        on_restart(len(group))
    return NeuronNoise(
        weight=torch.cat([n.weight for n in found]), bias=torch.cat([n.bias for n in found])
    )


def targeted_noise(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    *,
    epsilon: float,
    steps: int,
    batch: int,
    generator: torch.Generator,
    context: ScanContext,
) -> NeuronNoise:
    """Search one noise for each target that sends other classes' images there, from zero.

    methods/detectors.md §1.3c: steps of 1.5·epsilon/steps on the same box. Every target sees the
    same batch but for its own images.
    """
    neurons = neuron_count(suspect)
    order = torch.randperm(len(images), generator=generator)
    found: list[NeuronNoise] = []
    for target in targets:
        others = order[labels[order] != target][:batch]
        x = images[others].unsqueeze(0).to(suspect.device)

        def objective(logits: Tensor, target: int = target) -> Tensor:
            goal = torch.full((logits.shape[1],), target, device=logits.device)
            return -F.cross_entropy(logits[0], goal).unsqueeze(0)

        zero = torch.zeros((1, neurons), device=suspect.device)
        found.append(
            maximise(
                suspect,
                x,
                objective,
                start=NeuronNoise(weight=zero, bias=zero),
                epsilon=epsilon,
                step=1.5 * epsilon / steps,
                steps=steps,
                mode=search_mode(suspect),
                context=context,
            )
        )
    return NeuronNoise(
        weight=torch.cat([n.weight for n in found]), bias=torch.cat([n.bias for n in found])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyRun:
    """The suspect under one noise, judged on E.

    Attributes:
        predictions: ``(N,)`` int64, CPU.
        features: g(x; delta, xi), ``(N, *feature_shape)``; None without a cheap head.
    """

    predictions: Tensor
    features: Tensor | None


def judge(
    suspect: Suspect,
    noise: NeuronNoise,
    *,
    calibrate_on: Tensor,
    images: Tensor,
    batch: int,
    chunk: int = 256,
) -> NoisyRun:
    """Predict `images` under one restart's noise, with BatchNorm statistics re-estimated for it.

    Args:
        suspect: in a borrow.
        noise: of one restart, ``(1, D_total)``.
        calibrate_on: images of S that the statistics are re-estimated on, in equal batches near
            `batch`.
        images: images to judge.
        batch: statistical batch size.
        chunk: images computed together; changes no result.
    """
    edits = site_edits(suspect, noise.weight[0], noise.bias[0])
    mode = BatchNormMode.RECAL if suspect.has_batchnorm else BatchNormMode.RUNNING
    has_cheap_head = suspect.split is not None and suspect.split.method == "graph"
    predictions: list[Tensor] = []
    features: list[Tensor] = []
    with torch.no_grad(), suspect.edited(edits, mode=mode) as state:
        if mode is BatchNormMode.RECAL:
            with state.collecting():
                for part in calibrate_on.chunk(max(1, round(len(calibrate_on) / batch))):
                    suspect.logits(part)
        for part in images.split(chunk):
            if has_cheap_head:
                h = suspect.features(part)
                features.append(h)
                predictions.append(suspect.head(h).argmax(1))
            else:
                predictions.append(suspect.logits(part).argmax(1))
    return NoisyRun(
        predictions=torch.cat(predictions).cpu(),
        features=torch.cat(features) if features else None,
    )


def first_order_profile(suspect: Suspect, images: Tensor, labels: Tensor) -> Tensor:
    """Return rho_t, how far a unit of noise moves the mean margin to class t, over its size.

    methods/detectors.md §1.3d: rho_t = (|dM_t/d delta|_1 + |dM_t/d xi|_1) / |M_t| at zero noise,
    with M_t the mean margin to t of images of other classes. 1/rho_t is the box half-width at which
    the linearised margin vanishes.

    Args:
        suspect: in a borrow.
        images: ``(N, C, H, W)`` in [0, 1], one statistical batch.
        labels: ``(N,)`` int64.

    Returns:
        ``(K,)`` float64, CPU; N forward+backward passes for each class are counted.
    """
    neurons = neuron_count(suspect)
    weight = torch.zeros((1, neurons), device=suspect.device, requires_grad=True)
    bias = torch.zeros((1, neurons), device=suspect.device, requires_grad=True)
    with suspect.edited(site_edits(suspect, weight, bias), mode=search_mode(suspect)):
        logits = suspect.logits(images)
    labels = labels.to(suspect.device)
    rho: list[float] = []
    for target in range(suspect.num_classes):
        others = labels != target
        if not bool(others.any()):
            rho.append(0.0)
            continue
        goal = torch.full((int(others.sum()),), target, device=logits.device)
        margin = margin_to(logits[others], goal).mean()
        grads = torch.autograd.grad(
            margin, [weight, bias], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        total = sum(float(g.double().abs().sum()) for g in grads)
        rho.append(total / max(abs(float(margin.detach())), 1e-12))
    suspect.passes.forward_backward += len(images) * (suspect.num_classes - 1)
    return torch.tensor(rho, dtype=torch.float64)
