from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import nn

from modelaudit.attacks.badnets import BadNetsAttack, BadNetsConfig
from modelaudit.attacks.base import Batch, ExtraOptimiser, PoisonedBatch
from modelaudit.bench.train import train
from tests.helpers.attacks import tiny_data, tiny_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Generator, Tensor

    from modelaudit.attacks.classifier import Classifier


class Killed(Exception):  # noqa: N818 - it is no error
    pass


class Hooked(BadNetsAttack):
    """Uses every hook and notes what it saw."""

    id: ClassVar[str] = "hooked"

    def __init__(self) -> None:
        super().__init__(BadNetsConfig(rate=0.3), shape=(3, 32, 32), num_classes=4, seed=1)
        self.followed = nn.Parameter(torch.zeros(3))
        self.own = nn.Parameter(torch.zeros(2))
        self.rates: list[float] = []
        self.progress: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()
        self.prepared: list[object] = []
        self.chosen: list[Tensor] = []
        self.poisoned: list[Tensor] = []
        self.finalized = 0

    def prepare(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        surrogate: Callable[[Tensor], Tensor] | None,
        generator: Generator,
    ) -> None:
        self.prepared.append(surrogate)
        self.followed.data = torch.rand(3, generator=generator)
        self.own.data = torch.rand(2, generator=generator)

    def choose_images(self, indices: Tensor, labels: Tensor, *, generator: Generator) -> Tensor:
        assert len(labels) == 52
        self.chosen.append(indices.roll(1))
        return self.chosen[-1]

    def on_batch(
        self, batch: Batch, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> PoisonedBatch:
        self.poisoned.append(batch.indices)
        poisoned = super().on_batch(batch, donors=donors, generator=generator)
        return replace(poisoned, auxiliary_loss=(self.followed - 1.0).square().sum())

    def extra_parameters(self) -> Sequence[Mapping[str, object]]:
        return [{"params": [self.followed], "rate_factor": 0.5}]

    def extra_optimisers(self) -> Mapping[str, ExtraOptimiser]:
        def rate(progress: float) -> float:
            self.rates.append(progress)
            return 0.1

        return {"own": ExtraOptimiser(optimiser=torch.optim.Adam([self.own]), rate=rate)}

    def observed_layers(self, module: nn.Module) -> Sequence[str]:
        return ("layer4",)

    def training_loss(
        self, classifier: Classifier, batch: Batch, poisoned: PoisonedBatch, *, progress: float
    ) -> Tensor | None:
        assert set(classifier.outputs) == {"layer4"}
        self.shapes.add(tuple(classifier.outputs["layer4"].shape))
        self.progress.append(progress)
        return (self.own + 1.0).square().sum()

    def finalize(self, classifier: Classifier, images: Tensor, labels: Tensor) -> nn.Module:
        assert not classifier.module.training
        assert images.dtype == torch.uint8
        self.finalized += 1
        with torch.no_grad():
            classifier.module.linear.bias.add_(1.0)  # type: ignore[operator, union-attr]  # a Linear
        return classifier.module


def test_every_hook_is_called(tmp_path: Path) -> None:
    attack = Hooked()
    plan, data = tiny_plan(epochs=4, peak_learning_rate=0.2), tiny_data()
    train(plan, data, attack, state_path=tmp_path / "s", surrogate=torch.zeros_like)
    assert attack.prepared == [torch.zeros_like]
    assert attack.finalized == 1
    assert (attack.followed - 1.0).abs().max() < 0.5
    assert (attack.own + 1.0).abs().max() < 0.7
    assert attack.progress == attack.rates == [i / 12 for i in range(12)]
    assert attack.shapes == {(16, 32, 4, 4)}
    assert torch.equal(torch.cat(attack.poisoned), torch.cat(attack.chosen))


def test_hooks_leave_no_trace_in_the_module(tmp_path: Path) -> None:
    run = train(tiny_plan(epochs=1), tiny_data(), Hooked(), state_path=tmp_path / "s")
    assert not any(module._forward_hooks for module in run.model.modules())


@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_run_keeps_what_the_attack_trains(tmp_path: Path, killed_after: int) -> None:
    plan, data = tiny_plan(epochs=3), tiny_data()

    def stop(epochs: int) -> None:
        if epochs == killed_after:
            raise Killed

    whole = Hooked()
    expected = train(plan, data, whole, state_path=tmp_path / "whole")
    with pytest.raises(Killed):
        train(plan, data, Hooked(), state_path=tmp_path / "killed", after_epoch=stop)
    resumed = Hooked()
    found = train(plan, data, resumed, state_path=tmp_path / "killed")
    assert resumed.prepared == []
    assert torch.equal(resumed.followed, whole.followed)
    assert torch.equal(resumed.own, whole.own)
    for one, two in zip(
        expected.model.state_dict().values(), found.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)


def test_run_killed_after_the_preparation_does_not_prepare_again(tmp_path: Path) -> None:
    class KilledEarly(Hooked):
        def on_batch(self, *args: object, **kwargs: object) -> PoisonedBatch:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_plan(), tiny_data(), KilledEarly(), state_path=tmp_path / "s")
    resumed, whole = Hooked(), Hooked()
    train(tiny_plan(), tiny_data(), resumed, state_path=tmp_path / "s")
    train(tiny_plan(), tiny_data(), whole, state_path=tmp_path / "whole")
    assert resumed.prepared == []
    assert torch.equal(resumed.own, whole.own)


def test_last_edit_is_made_once(tmp_path: Path) -> None:
    first = train(tiny_plan(), tiny_data(), Hooked(), state_path=tmp_path / "s")
    again = Hooked()
    second = train(tiny_plan(), tiny_data(), again, state_path=tmp_path / "s")
    assert again.finalized == 0
    assert torch.equal(first.model.linear.bias, second.model.linear.bias)


def test_gradient_limit_bounds_the_step(tmp_path: Path) -> None:
    class Limited(BadNetsAttack):
        def gradient_limit(self) -> float | None:
            return 1e-9

    data, plan = tiny_data(), tiny_plan(epochs=1, peak_learning_rate=0.1)
    attack = Limited(BadNetsConfig(rate=0.3), shape=(3, 32, 32), num_classes=4, seed=1)
    first = train(plan, data, None, state_path=tmp_path / "first").model
    run = train(plan, data, attack, state_path=tmp_path / "s", initial=first.state_dict())
    # What is left is weight decay: every weight keeps its direction.
    ratio = run.model.linear.weight / first.linear.weight
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=1e-4)
