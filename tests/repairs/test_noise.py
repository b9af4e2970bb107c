"""The noise of one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelaudit.repairs._noise import adversarial_noise
from modelaudit.scanners._noise_search import neuron_count, site_edits
from modelaudit.suspect import BatchNormMode, Suspect
from tests.helpers.models import images, suspect_of, tiny_plain, tiny_tokens
from tests.helpers.training import backdoored, copy_of, pattern_data, tiny_suspect

EPSILON = 0.3


def search(
    model: Suspect,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: int,
    clip: bool = True,
    seed: int = 0,
) -> Tensor:
    """Return the noise of a batch."""
    return adversarial_noise(
        model,
        pictures,
        labels,
        epsilon=EPSILON,
        steps=steps,
        is_clipped=clip,
        mode=BatchNormMode.BATCH if model.has_batchnorm else BatchNormMode.RUNNING,
        dtype=None,
        generator=torch.Generator().manual_seed(seed),
    )


def noisy_loss(model: Suspect, noise: Tensor, pictures: Tensor, labels: Tensor) -> float:
    """Return the cross-entropy under `noise`, with batch statistics."""
    edits = site_edits(model, noise[0], noise[1])
    with torch.no_grad(), model.edited(edits, mode=BatchNormMode.BATCH):
        return float(functional.cross_entropy(model.logits(pictures), labels))


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_raise_the_loss_over_that_of_the_random_start(steps: int) -> None:
    model, data = copy_of(backdoored()), pattern_data()
    rises = []
    for seed, rows in enumerate(torch.arange(400).split(20)):
        batch = data.images[rows], data.labels[rows]
        start = search(model, *batch, steps=0, seed=seed)
        found = search(model, *batch, steps=steps, seed=seed)
        rises.append(noisy_loss(model, found, *batch) > noisy_loss(model, start, *batch))
    assert sum(rises) >= 0.95 * len(rises)


@pytest.mark.parametrize(("is_clipped", "limit"), [(True, 1.0), (False, 2.0)])
def test_noise_stays_in_its_box(is_clipped: bool, limit: float) -> None:
    model, data = copy_of(backdoored()), pattern_data()
    noise = search(model, data.images[:50], data.labels[:50], steps=1, clip=is_clipped)
    assert noise.shape == (2, neuron_count(model))
    assert noise.dtype == torch.float32
    assert float(noise.abs().max()) <= limit * EPSILON + 1e-6
    outside = float((noise.abs() > EPSILON + 1e-6).double().mean())
    assert outside == 0 if is_clipped else outside > 0.4


def test_no_weight_gets_a_gradient_and_no_statistic_moves() -> None:
    model = copy_of(tiny_suspect())
    before = {name: value.clone() for name, value in model.module.named_buffers()}
    search(model, images(6), torch.arange(6) % 4, steps=2)
    assert all(p.grad is None for p in model.module.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.module.named_buffers())
    assert model.passes.forward_backward == 12
    assert model.passes.forward == 0


@pytest.mark.parametrize("make", [tiny_plain, tiny_tokens])
def test_models_without_batchnorm_get_noise_too(make: object) -> None:
    assert callable(make)
    model = copy_of(suspect_of(make()))
    start = search(model, images(6), torch.arange(6) % 4, steps=0)
    noise = search(model, images(6), torch.arange(6) % 4, steps=1)
    assert noise.shape == (2, neuron_count(model))
    assert not torch.equal(noise, start)


def test_noise_is_float32_under_autocast() -> None:
    model, data = copy_of(backdoored()), pattern_data()
    noise = adversarial_noise(
        model,
        data.images[:30],
        data.labels[:30],
        epsilon=EPSILON,
        steps=1,
        is_clipped=False,
        mode=BatchNormMode.BATCH,
        dtype=torch.bfloat16,
        generator=torch.Generator().manual_seed(0),
    )
    start = search(model, data.images[:30], data.labels[:30], steps=0)
    # A step is +-epsilon or nothing, to float32's precision: bfloat16 would miss by a thousandth.
    moved = (noise - start).abs()
    assert bool(((moved - EPSILON).abs() < 1e-6).double().mean() > 0.95)


def test_aimed_noise_leads_to_its_class() -> None:
    model, data = copy_of(backdoored()), pattern_data()
    labels = data.labels[:60]
    for target in (0, 5):
        settings = {
            "epsilon": EPSILON,
            "is_clipped": True,
            "mode": BatchNormMode.BATCH,
            "dtype": None,
            "target": target,
        }
        goal = torch.full_like(labels, target)
        losses = []
        for steps in (0, 1, 3):
            noise = adversarial_noise(
                model,
                data.images[:60],
                labels,
                steps=steps,
                generator=torch.Generator().manual_seed(0),
                **settings,  # type: ignore[arg-type]  # by name
            )
            losses.append(noisy_loss(model, noise, data.images[:60], goal))
        # One step of epsilon or three of a third end alike; random noise alone does not.
        assert max(losses[1:]) < losses[0] - 1
