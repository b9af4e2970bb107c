from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modelaudit.errors import BudgetExceededError
from modelaudit.functional.margin import margin_to
from modelaudit.scanners import ScanContext
from modelaudit.scanners._noise_search import (
    NeuronNoise,
    batches,
    first_order_profile,
    judge,
    maximise,
    neuron_count,
    search_mode,
    site_edits,
    targeted_noise,
    untargeted_noise,
)
from modelaudit.suspect import BatchNormMode, Profile, Suspect
from tests.helpers import models
from tests.helpers.planted import every_parameter_is_free, profile_of, vary

_EPSILON = 0.3


def _context(
    suspect: Suspect, *, batch_size: int = 256, deadline: float | None = None
) -> ScanContext:
    shared: Profile = profile_of(suspect, models.images(4))
    return ScanContext(profile=shared, batch_size=batch_size, deadline=deadline)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _untargeted(
    suspect: Suspect,
    *,
    epsilon: float = _EPSILON,
    restarts: int = 3,
    batch_size: int = 256,
    steps: int = 6,
) -> NeuronNoise:
    images, labels = models.images(40), models.labels(40)
    context = _context(suspect, batch_size=batch_size)
    with suspect.borrowed():
        return untargeted_noise(
            suspect,
            images,
            labels,
            epsilon=epsilon,
            steps=steps,
            restarts=restarts,
            batch=16,
            generator=_generator(),
            context=context,
        )


def _loss_objective(labels: Tensor) -> object:
    return lambda logits: F.cross_entropy(logits[0], labels).unsqueeze(0)


def _zero(suspect: Suspect) -> NeuronNoise:
    zeros = torch.zeros((1, neuron_count(suspect)))
    return NeuronNoise(weight=zeros, bias=zeros)


def test_noise_is_clipped_exactly_at_epsilon() -> None:
    noise = _untargeted(models.suspect_of(models.tiny_bn()))
    limit = torch.tensor(_EPSILON)
    for part in (noise.weight, noise.bias):
        assert part.abs().max() == limit
    assert not torch.equal(noise.weight[0], noise.weight[1])


def test_unclipped_noise_goes_beyond_epsilon_and_stays_below_twice_as_far() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images, labels = models.images(16), models.labels(16)
    size = (1, neuron_count(suspect))
    start = NeuronNoise(
        weight=torch.rand(size, generator=_generator(1)) * _EPSILON,
        bias=torch.rand(size, generator=_generator(2)) * _EPSILON,
    )
    with suspect.borrowed():
        noise = maximise(
            suspect,
            images.unsqueeze(0),
            _loss_objective(labels),  # type: ignore[arg-type]  # a lambda
            start=start,
            epsilon=None,
            step=_EPSILON / 6,
            steps=6,
            mode=BatchNormMode.TRAIN,
            context=_context(suspect),
        )
    farthest = torch.cat([noise.weight, noise.bias]).abs().max()
    assert _EPSILON < farthest <= 2 * _EPSILON + 1e-6


def test_epsilon_zero_is_no_noise_and_the_same_logits() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    noise = _untargeted(suspect, epsilon=0.0)
    assert not noise.weight.any()
    assert not noise.bias.any()
    images = models.images(8)
    with suspect.borrowed(), torch.no_grad():
        plain = suspect.logits(images)
        with suspect.edited(site_edits(suspect, noise.weight[0], noise.bias[0])):
            noisy = suspect.logits(images)
    assert torch.allclose(plain, noisy, atol=1e-6)


def test_ascent_raises_the_loss_and_leaves_no_gradient_on_the_weights() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images, labels = models.images(16), models.labels(16)

    def loss(noise: NeuronNoise) -> float:
        edits = site_edits(suspect, noise.weight[0], noise.bias[0])
        with torch.no_grad(), suspect.edited(edits, mode=BatchNormMode.BATCH):
            return float(F.cross_entropy(suspect.logits(images), labels))

    with suspect.borrowed():
        start = _zero(suspect)
        found = maximise(
            suspect,
            images.unsqueeze(0),
            _loss_objective(labels),  # type: ignore[arg-type]  # a lambda
            start=start,
            epsilon=_EPSILON,
            step=_EPSILON / 6,
            steps=6,
            mode=BatchNormMode.BATCH,
            context=_context(suspect),
        )
        assert loss(found) > loss(start) + 0.1
        assert all(p.grad is None for p in suspect.module.parameters())
    assert not start.weight.any()
    assert every_parameter_is_free(suspect)


def test_one_step_follows_the_sign_of_the_gradient() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images, labels = models.images(16), models.labels(16)
    with suspect.borrowed():
        found = maximise(
            suspect,
            images.unsqueeze(0),
            _loss_objective(labels),  # type: ignore[arg-type]  # a lambda
            start=_zero(suspect),
            epsilon=_EPSILON,
            step=0.1,
            steps=1,
            mode=BatchNormMode.RUNNING,
            context=_context(suspect),
        )
        weight = torch.zeros(neuron_count(suspect), requires_grad=True)
        bias = torch.zeros(neuron_count(suspect), requires_grad=True)
        with suspect.edited(site_edits(suspect, weight, bias)):
            loss = F.cross_entropy(suspect.logits(images), labels)
        grads = torch.autograd.grad(loss, [weight, bias])
    assert torch.allclose(found.weight[0], 0.1 * grads[0].sign())
    assert torch.allclose(found.bias[0], 0.1 * grads[1].sign())


def test_restarts_do_not_depend_on_how_many_are_computed_together() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    together = _untargeted(suspect)
    one_by_one = _untargeted(suspect, batch_size=16)
    two = _untargeted(suspect, batch_size=32)
    for other in (one_by_one, two):
        # A gradient near zero may round to the other sign in a batch of another size.
        same = (together.weight - other.weight).abs() < 1e-5
        assert same.double().mean() > 0.98


def test_the_first_restarts_are_those_of_a_longer_search() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    assert _untargeted(suspect, restarts=3).weight.shape == (3, neuron_count(suspect))
    restart = _untargeted(suspect, restarts=3).restart(1)
    assert restart.weight.shape == restart.bias.shape == (1, neuron_count(suspect))


def test_every_image_of_a_search_is_counted() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    _untargeted(suspect)
    assert suspect.passes.forward_backward == 3 * 16 * 6


def test_each_finished_group_of_restarts_is_reported() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    done: list[int] = []
    with suspect.borrowed():
        untargeted_noise(
            suspect,
            models.images(40),
            models.labels(40),
            epsilon=_EPSILON,
            steps=1,
            restarts=5,
            batch=16,
            generator=_generator(),
            context=_context(suspect, batch_size=32),
            on_restart=done.append,
        )
    assert done == [2, 2, 1]


def test_a_batch_holds_distinct_images_and_no_more_than_there_are() -> None:
    drawn = batches(10, 4, 3, _generator())
    assert [len(set(rows.tolist())) for rows in drawn] == [4, 4, 4]
    assert sorted(batches(5, 128, 1, _generator())[0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("net", "mode"),
    [
        (models.tiny_bn, BatchNormMode.BATCH),
        (models.tiny_batch_statistics, BatchNormMode.BATCH),
        (models.tiny_plain, BatchNormMode.RUNNING),
        (models.tiny_groupnorm, BatchNormMode.RUNNING),
    ],
)
def test_batch_statistics_are_used_where_there_is_batchnorm(
    net: object, mode: BatchNormMode
) -> None:
    assert callable(net)
    assert search_mode(models.suspect_of(net())) is mode


def test_noise_is_spread_over_the_sites_in_their_order() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    weight = torch.arange(neuron_count(suspect)).float()
    edits = site_edits(suspect, weight, -weight)
    assert list(edits) == ["norm1", "norm2"]
    joined = torch.cat([e.weight_noise for e in edits.values() if e.weight_noise is not None])
    assert torch.equal(joined, weight)
    assert edits["norm2"].bias_noise is not None
    assert float(edits["norm2"].bias_noise[0]) == -8.0


def test_a_passed_deadline_ends_the_search_and_the_suspect_is_free() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with pytest.raises(BudgetExceededError), suspect.borrowed():
        maximise(
            suspect,
            models.images(4).unsqueeze(0),
            _loss_objective(models.labels(4)),  # type: ignore[arg-type]  # a lambda
            start=_zero(suspect),
            epsilon=_EPSILON,
            step=0.1,
            steps=3,
            mode=BatchNormMode.BATCH,
            context=_context(suspect, deadline=time.monotonic() - 1),
        )
    assert suspect.passes.forward_backward == 0


def _targeted(suspect: Suspect, labels: Tensor, *, steps: int = 6) -> NeuronNoise:
    images = models.images(len(labels))
    with suspect.borrowed():
        return targeted_noise(
            suspect,
            images,
            labels,
            range(suspect.num_classes),
            epsilon=_EPSILON,
            steps=steps,
            batch=16,
            generator=_generator(),
            context=_context(suspect),
        )


def test_targeted_noise_raises_the_share_of_each_target() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images, labels = models.images(40), models.labels(40)
    noise = _targeted(suspect, labels)
    assert noise.weight.shape == (4, neuron_count(suspect))
    assert noise.weight.abs().max() <= torch.tensor(_EPSILON)
    for target in range(suspect.num_classes):
        others = images[labels != target]
        one = noise.restart(target)
        with suspect.borrowed(), torch.no_grad():
            with suspect.edited({}, mode=BatchNormMode.BATCH):
                before = suspect.logits(others).log_softmax(1)[:, target].mean()
            edits = site_edits(suspect, one.weight[0], one.bias[0])
            with suspect.edited(edits, mode=BatchNormMode.BATCH):
                after = suspect.logits(others).log_softmax(1)[:, target].mean()
        assert after > before


def test_targeted_noise_starts_at_zero_and_goes_half_again_as_far_as_the_box() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    noise = _targeted(suspect, models.labels(40), steps=3)
    # Each entry is a sum of three steps of 1.5 epsilon / 3, clipped.
    step = 1.5 * _EPSILON / 3
    reachable = torch.tensor([0.0, step, _EPSILON, _EPSILON - step])
    distance = (noise.weight.abs().flatten().unsqueeze(1) - reachable).abs().amin(1)
    assert distance.max() < 1e-6


def test_a_target_that_every_image_belongs_to_gets_no_noise() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    noise = _targeted(suspect, torch.zeros(20, dtype=torch.int64), steps=2)
    assert not noise.weight[0].any()
    assert noise.weight[1].any()


def test_judging_follows_re_estimated_statistics() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(24, seed=4)
    vary(suspect, images)
    for layer in ("norm1", "norm2"):
        # What the checkpoint says is not used.
        suspect.module.get_submodule(layer).get_buffer("running_mean").add_(3.0)
    with suspect.borrowed():
        run = judge(suspect, _zero(suspect), calibrate_on=images, images=images, batch=24)
        with torch.no_grad(), suspect.edited({}, mode=search_mode(suspect)):
            expected = suspect.logits(images).argmax(1)
    # One statistical batch: re-estimated statistics are that batch's own, but for the variance's
    # divisor.
    assert (run.predictions == expected).double().mean() > 0.95
    assert len(expected.unique()) > 1
    assert run.features is not None
    assert run.features.shape == (24, 16, 4, 4)


def test_judging_without_batchnorm_needs_no_statistics() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    images = models.images(24)
    with suspect.borrowed():
        run = judge(suspect, _zero(suspect), calibrate_on=images, images=images, batch=24)
        expected = suspect.predict(images)
    assert torch.equal(run.predictions, expected)
    assert suspect.passes.forward == 2 * 24


def test_judging_does_not_depend_on_the_chunk() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(30, seed=4)
    vary(suspect, images)
    noise = _untargeted(suspect, restarts=1)
    with suspect.borrowed():
        runs = [
            judge(suspect, noise, calibrate_on=images, images=images, batch=10, chunk=chunk)
            for chunk in (7, 256)
        ]
    assert torch.equal(runs[0].predictions, runs[1].predictions)
    assert runs[0].features is not None
    assert runs[1].features is not None
    assert torch.allclose(runs[0].features, runs[1].features, atol=1e-5)


def test_judging_without_a_cheap_head_keeps_no_features() -> None:
    suspect = models.suspect_of(models.tiny_untraceable())
    images = models.images(10)
    with suspect.borrowed():
        run = judge(suspect, _zero(suspect), calibrate_on=images, images=images, batch=10)
    assert run.features is None
    assert suspect.passes.forward == 20


def test_the_first_order_profile_equals_finite_differences() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    images, labels = models.images(12), models.labels(12)
    with suspect.borrowed():
        rho = first_order_profile(suspect, images, labels)
        assert suspect.passes.forward_backward == 12 * suspect.num_classes
        neurons = neuron_count(suspect)

        def margin(weight: Tensor, bias: Tensor, target: int) -> float:
            others = labels != target
            goal = torch.full((int(others.sum()),), target)
            with torch.no_grad(), suspect.edited(site_edits(suspect, weight, bias)):
                return float(margin_to(suspect.logits(images)[others], goal).double().mean())

        step = 1e-3
        for target in (0, 3):
            total = 0.0
            for unit in torch.eye(neurons):
                zero = torch.zeros(neurons)
                for plus, minus in (
                    (margin(step * unit, zero, target), margin(-step * unit, zero, target)),
                    (margin(zero, step * unit, target), margin(zero, -step * unit, target)),
                ):
                    total += abs(plus - minus) / (2 * step)
            size = abs(margin(torch.zeros(neurons), torch.zeros(neurons), target))
            assert float(rho[target]) == pytest.approx(total / size, rel=2e-2)


def test_a_class_that_every_image_belongs_to_has_no_first_order_profile() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with suspect.borrowed():
        rho = first_order_profile(suspect, models.images(8), torch.full((8,), 2))
    assert float(rho[2]) == 0.0
    assert all(math.isfinite(x) and x > 0 for x in rho[[0, 1, 3]].tolist())
