from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from modelaudit.attacks.badnets import BadNetsAttack, BadNetsConfig
from modelaudit.attacks.base import Batch, PoisonedBatch
from modelaudit.attacks.plan import Granularity, PoisonPlan, Stage
from modelaudit.bench.evaluate import accuracy
from modelaudit.bench.train import (
    augment,
    build_model,
    learning_rate,
    normalise,
    normaliser,
    prepare_batch,
    train,
)
from modelaudit.errors import ConfigError
from tests.helpers.attacks import badnets, random_images, tiny_data, tiny_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Generator, Tensor, nn


class Killed(Exception):  # noqa: N818 - it is no error
    pass


class Hooked(BadNetsAttack):
    """Uses every hook."""

    id: ClassVar[str] = "hooked"

    def prepare(self, images: Tensor, labels: Tensor, *, generator: Generator) -> None:
        self.extra = torch.nn.Parameter(torch.rand(3, generator=generator))

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        poisoned = super().on_batch(batch, donors=donors, generator=generator)
        return replace(poisoned, auxiliary_loss=(self.extra - 1.0).square().sum())

    def extra_parameters(self) -> Sequence[Mapping[str, object]]:
        return [{"params": [self.extra], "rate_factor": 0.5}]

    def finalize(self, model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
        self.is_finalized = True
        return model


def stop_after(epochs: int) -> object:
    def after_epoch(done: int) -> None:
        if done == epochs:
            raise Killed

    return after_epoch


@pytest.mark.parametrize("attacked", [False, True])
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, attacked: bool
) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=3)

    def make() -> BadNetsAttack | None:
        return badnets(classes=4, rate=0.3) if attacked else None

    whole = train(plan, data, make(), state_path=tmp_path / "whole")
    for epoch in (1, 2):
        with pytest.raises(Killed):
            train(
                plan,
                data,
                make(),
                state_path=tmp_path / "killed",
                after_epoch=stop_after(epoch),  # type: ignore[arg-type]  # a test's stub
            )
    resumed = train(plan, data, make(), state_path=tmp_path / "killed")
    again = train(plan, data, make(), state_path=tmp_path / "killed")
    for run in (resumed, again):
        for one, two in zip(
            whole.model.state_dict().values(), run.model.state_dict().values(), strict=True
        ):
            assert torch.equal(one, two)
        assert run.final_loss == whole.final_loss
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_state_of_another_plan_is_not_continued(tmp_path: Path) -> None:
    data = tiny_data()
    train(tiny_plan(), data, None, state_path=tmp_path / "state")
    other = tiny_plan(seed=4)
    continued = train(other, data, None, state_path=tmp_path / "state")
    fresh = train(other, data, None, state_path=tmp_path / "fresh")
    assert continued.final_loss == fresh.final_loss


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(tiny_plan(epochs=1), tiny_data(), None, state_path=tmp_path / "state")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_never_sees_held_out_images(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=1)
    spoiled = data.train_images.clone()
    spoiled[data.attacker_count :] = 255
    one = train(plan, data, None, state_path=tmp_path / "one")
    two = train(plan, replace(data, train_images=spoiled), None, state_path=tmp_path / "two")
    assert one.final_loss == two.final_loss
    assert torch.equal(one.model.linear.weight, two.model.linear.weight)


def test_training_learns(tmp_path: Path) -> None:
    data, plan = tiny_data(n_train=80), tiny_plan(epochs=6)
    run = train(plan, data, None, state_path=tmp_path / "s")
    preprocessing = normaliser(plan.normaliser)
    assert run.final_loss < 1.0 < math.log(4)
    assert accuracy(run.model, data.test_images, data.test_labels, preprocessing) > 0.5


@pytest.mark.parametrize("architecture", ["cifar_resnet18", "cifar_vgg16"])
def test_initial_weights_are_of_the_seed_alone(architecture: str) -> None:
    def make(seed: int) -> nn.Module:
        plan = tiny_plan(architecture=architecture, seed=seed)
        return build_model(plan, num_classes=4, in_channels=3)

    one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
    assert all(bool(t.isfinite().all()) for t in one.values())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one[next(iter(one))], other[next(iter(one))])
    logits = make(1).eval()(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 4)


def test_trained_model_is_contiguous_float32_and_in_evaluation_mode(tmp_path: Path) -> None:
    model = train(tiny_plan(epochs=1), tiny_data(), None, state_path=tmp_path / "s").model
    assert not any(module.training for module in model.modules())
    for tensor in model.state_dict().values():
        assert tensor.is_contiguous()
        assert tensor.dtype in (torch.float32, torch.int64)


def test_hooks_of_the_attack_are_called(tmp_path: Path) -> None:
    attack = Hooked(BadNetsConfig(rate=0.3), shape=(3, 32, 32), num_classes=4, seed=1)
    plan, data = tiny_plan(epochs=4, peak_learning_rate=0.2), tiny_data()
    train(plan, data, attack, state_path=tmp_path / "s")
    assert attack.is_finalized
    assert (attack.extra - 1.0).abs().max() < 0.5


def test_batch_larger_than_the_data_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at most the 52"):
        train(tiny_plan(batch_size=60), tiny_data(), None, state_path=tmp_path / "s")


def test_learning_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.008)
    assert max(rates) == rates[25] == pytest.approx(0.2)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] < 0.001
    assert all(math.isfinite(learning_rate(0, total, 0.2)) for total in (1, 2))


def test_crop_and_flip_equal_a_loop_over_the_images() -> None:
    images = random_images(12)
    got = augment(images, flip=True, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    top = torch.randint(9, (12, 1), generator=generator)
    left = torch.randint(9, (12, 1), generator=generator)
    mirrored = torch.rand(12, 1, generator=generator) < 0.5
    assert 0 < int(mirrored.sum()) < 12
    for i, image in enumerate(images):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crop = padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        assert torch.equal(got[i], crop.flip(-1) if mirrored[i] else crop)


def test_unflipped_images_are_only_shifted() -> None:
    ramp = torch.arange(32.0).expand(3, 32, 32)[None].repeat(20, 1, 1, 1)
    row = augment(ramp, flip=False, generator=torch.Generator().manual_seed(0))[:, 0, 16, 4:28]
    assert (row.diff(dim=1) == 1).all()


def batch_of(n: int) -> Batch:
    return Batch(
        images=torch.full((n, 3, 32, 32), 0.4),
        labels=torch.arange(n) % 4,
        indices=torch.arange(n),
        is_poison=torch.ones(n, dtype=torch.bool),
        is_cover=torch.zeros(n, dtype=torch.bool),
    )


@pytest.mark.parametrize("stage", ["pre", "post"])
def test_stage_decides_whether_augmentation_moves_the_trigger(stage: Stage) -> None:
    attack = badnets(classes=4, pattern="white", stage=stage, target=2)
    prepared = prepare_batch(
        batch_of(64),
        attack,
        flip=True,
        generator=torch.Generator().manual_seed(0),
        attack_generator=torch.Generator(),
    )
    in_corner = (prepared.images[:, :, 29:, 29:] == 1.0).flatten(1).all(1)
    assert prepared.labels.tolist() == [2] * 64
    assert in_corner.all() if stage == "post" else 0 < int(in_corner.sum()) < 40


@pytest.mark.parametrize(
    ("granularity", "low", "high"), [("per_batch", 16, 16), ("per_access", 5, 30)]
)
def test_dynamic_plans_draw_within_the_batch(granularity: Granularity, low: int, high: int) -> None:
    attack = badnets(classes=4, target=2)
    attack.plan = PoisonPlan(label_map=attack.label_map, rate=0.25, granularity=granularity)
    prepared = prepare_batch(
        batch_of(64),
        attack,
        flip=False,
        generator=torch.Generator().manual_seed(0),
        attack_generator=torch.Generator().manual_seed(0),
    )
    assert low <= int((prepared.labels != torch.arange(64) % 4).sum()) <= high


def test_dynamic_plan_trains(tmp_path: Path) -> None:
    attack = badnets(classes=4)
    attack.plan = PoisonPlan(label_map=attack.label_map, rate=0.25, granularity="per_batch")
    run = train(tiny_plan(epochs=1), tiny_data(), attack, state_path=tmp_path / "s")
    assert math.isfinite(run.final_loss)


def test_normaliser_is_a_preset() -> None:
    images = random_images(2)
    assert torch.equal(normalise(images, normaliser("none")), images)
    standard = normalise(images, normaliser("half"))
    assert torch.allclose(standard, (images - 0.5) / 0.5)
    with pytest.raises(ConfigError, match="normaliser must be one of"):
        normaliser("other")
