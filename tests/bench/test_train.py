from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.attacks.iad import IadAttack, IadConfig
from modelaudit.attacks.plan import PoisonPlan
from modelaudit.bench.evaluate import accuracy
from modelaudit.bench.train import (
    build_model,
    learning_rate,
    normalise,
    normaliser,
    train,
)
from modelaudit.errors import ConfigError
from tests.helpers.attacks import badnets, random_images, tiny_data, tiny_plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from modelaudit.attacks.base import Attack


class Killed(Exception):  # noqa: N818 - it is no error
    pass


def stop_after(epochs: int) -> Callable[[int], None]:
    def after_epoch(done: int) -> None:
        if done == epochs:
            raise Killed

    return after_epoch


def make_attack(id_: str | None) -> Attack[Any] | None:
    if id_ == "badnets":
        return badnets(classes=4, rate=0.3)
    if id_ == "iad":
        config = IadConfig(widths=(4,), rate=0.3, cross_rate=0.3, mask_epochs=1)
        return IadAttack(config, shape=(3, 32, 32), num_classes=4, seed=5)
    return None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_training_runs_in_the_dtype_that_the_hardware_computes_fast_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr("modelaudit.bench.train.fast_dtype", lambda _device: dtype)
    seen: set[torch.dtype] = set()

    def watch(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.add(output.dtype)

    def build(*arguments: Any, **keywords: Any) -> nn.Module:
        model = build_model(*arguments, **keywords)
        model.get_submodule("conv1").register_forward_hook(watch)
        return model

    monkeypatch.setattr("modelaudit.bench.train.build_model", build)
    run = train(tiny_plan(epochs=1), tiny_data(), None, state_path=tmp_path / "state")
    assert seen == {dtype or torch.float32}
    assert run.precision == ("float32" if dtype is None else "bfloat16")


def test_a_run_of_another_precision_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, plan, path = tiny_data(), tiny_plan(epochs=2), tmp_path / "state"
    monkeypatch.setattr("modelaudit.bench.train.fast_dtype", lambda _device: torch.bfloat16)
    with pytest.raises(Killed):
        train(plan, data, None, state_path=path, after_epoch=stop_after(1))
    monkeypatch.setattr("modelaudit.bench.train.fast_dtype", lambda _device: None)
    epochs: list[int] = []
    train(plan, data, None, state_path=path, after_epoch=epochs.append)
    assert epochs == [1, 2]


@pytest.mark.parametrize("attack_id", [None, "badnets", "iad"])
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, attack_id: str | None
) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=3)

    def make() -> Attack[Any] | None:
        return make_attack(attack_id)

    first = make()
    whole = train(plan, data, first, state_path=tmp_path / "whole")
    for epoch in (1, 2):
        with pytest.raises(Killed):
            train(plan, data, make(), state_path=tmp_path / "killed", after_epoch=stop_after(epoch))
    second = make()
    resumed = train(plan, data, second, state_path=tmp_path / "killed")
    again = train(plan, data, make(), state_path=tmp_path / "killed")
    if first is not None and second is not None:
        assert first.trigger.state_hash() == second.trigger.state_hash()
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
    data, plan = tiny_data(n_train=80), tiny_plan(epochs=12)
    run = train(plan, data, None, state_path=tmp_path / "s")
    preprocessing = normaliser(plan.normaliser)
    assert run.final_loss is not None
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


def test_run_starts_from_given_weights(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=1)
    first = train(plan, data, None, state_path=tmp_path / "first").model.state_dict()
    last = replace(plan, peak_learning_rate=1e-12)
    second = train(last, data, None, state_path=tmp_path / "second", initial=first)
    for name, tensor in second.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, first[name], rtol=0.0, atol=1e-9)


def test_run_without_epochs_returns_what_it_starts_from(tmp_path: Path) -> None:
    data, plan = tiny_data(), tiny_plan(epochs=1)
    first = train(plan, data, None, state_path=tmp_path / "first").model.state_dict()
    object.__setattr__(plan, "epochs", 0)
    run = train(plan, data, badnets(classes=4), state_path=tmp_path / "second", initial=first)
    assert run.final_loss is None
    assert all(torch.equal(t, first[name]) for name, t in run.model.state_dict().items())
    with pytest.raises(ConfigError, match="nothing to start from"):
        train(plan, data, None, state_path=tmp_path / "third")


def test_weights_of_another_architecture_raise(tmp_path: Path) -> None:
    other = build_model(tiny_plan(width=8), num_classes=4, in_channels=3).state_dict()
    with pytest.raises(ConfigError, match="tensors differ, such as"):
        train(tiny_plan(), tiny_data(), None, state_path=tmp_path / "s", initial=other)


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


def test_dynamic_plan_trains(tmp_path: Path) -> None:
    attack = badnets(classes=4)
    attack.plan = PoisonPlan(label_map=attack.label_map, rate=0.25, granularity="per_batch")
    run = train(tiny_plan(epochs=1), tiny_data(), attack, state_path=tmp_path / "s")
    assert run.final_loss is not None
    assert math.isfinite(run.final_loss)


def test_normaliser_is_a_preset() -> None:
    images = random_images(2)
    assert torch.equal(normalise(images, normaliser("none")), images)
    standard = normalise(images, normaliser("half"))
    assert torch.allclose(standard, (images - 0.5) / 0.5)
    with pytest.raises(ConfigError, match="normaliser must be one of"):
        normaliser("other")


@pytest.mark.gpu
def test_training_on_the_gpu_learns_the_same_task(tmp_path: Path) -> None:
    data, plan = tiny_data(n_train=80), tiny_plan(epochs=6)
    attack = badnets(classes=4, rate=0.3)
    run = train(plan, data, attack, state_path=tmp_path / "s", device=torch.device("cuda"))
    assert {tensor.device.type for tensor in run.model.state_dict().values()} == {"cpu"}
    preprocessing = normaliser(plan.normaliser)
    assert accuracy(run.model, data.test_images, data.test_labels, preprocessing) > 0.5
    resumed = train(plan, data, attack, state_path=tmp_path / "s", device=torch.device("cuda"))
    assert torch.equal(run.model.linear.weight, resumed.model.linear.weight)
