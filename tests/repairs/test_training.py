"""The shared training loop: schedule, epoch that is kept, what it leaves alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError, RepairError
from modelaudit.repairs import PruneMode, _training, _views, prune_mask
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._training import (
    Objective,
    Schedule,
    TrainingConfig,
    TrainingLog,
    choose_epoch,
    constant,
    cosine,
    freeze,
    train,
)
from modelaudit.repairs._views import view_accuracy
from modelaudit.suspect import Suspect
from tests.helpers.models import suspect_of
from tests.helpers.training import context_of, copy_of, same_state, tiny_data, tiny_suspect


def run(
    model: Suspect,
    *,
    objective: Objective | None = None,
    epochs: int = 2,
    rate: float = 0.05,
    batch: int = 40,
    max_gradient: float | None = None,
    augmentation: Augmentation | None = None,
    **changes: object,
) -> TrainingLog:
    """Train `model` on tiny images."""
    return train(
        model,
        tiny_data(),
        context_of(),
        schedule=Schedule(
            epochs=epochs, batch=batch, rate=constant(rate), max_gradient=max_gradient
        ),
        objective=Objective(model, dtype=None) if objective is None else objective,
        augmentation=augmentation or Augmentation(),
        draws=torch.Generator().manual_seed(0),
        name="test",
        **changes,  # type: ignore[arg-type]
    )


class _Watch(Objective):
    """Notes what it is given and can spoil an epoch."""

    def __init__(self, model: Suspect, *, spoil: int | None = None) -> None:
        super().__init__(model, dtype=None)
        self.sizes: list[int] = []
        self.modes: set[bool] = set()
        self.rates: list[float] = []
        self.epochs = 0
        self.spoil = spoil

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.sizes.append(len(images))
        self.modes.add(self.model.module.get_submodule("norm1").training)
        loss = super().loss(images, labels)
        return loss * math.nan if self.epochs == self.spoil else loss

    def after_step(self, optimiser: torch.optim.Optimizer) -> None:
        self.rates.append(optimiser.param_groups[0]["lr"])

    def after_epoch(self) -> None:
        self.epochs += 1


def test_what_was_pruned_before_stays_zero() -> None:
    model = copy_of(tiny_suspect())
    # Without gamma alone a channel has a gradient that would bring it back.
    mask = prune_mask(model, [("norm1", 1), ("norm2", 3)], mode=PruneMode.OFFICIAL)
    with torch.no_grad():
        model.module.get_submodule("norm1").get_parameter("bias")[1] = 0.5
    mask.apply(model.module)
    train(
        model,
        tiny_data(),
        dataclasses.replace(context_of(), pruned=mask),
        schedule=Schedule(epochs=1, batch=40, rate=constant(0.05)),
        objective=Objective(model, dtype=None),
        augmentation=Augmentation(),
        draws=torch.Generator().manual_seed(0),
        name="test",
    )
    assert mask.holds(model.module)
    free = copy_of(tiny_suspect())
    with torch.no_grad():
        free.module.get_submodule("norm1").get_parameter("bias")[1] = 0.5
    mask.apply(free.module)
    run(free, epochs=1)
    assert not mask.holds(free.module)


def test_batches_have_nearly_the_same_size() -> None:
    model = copy_of(tiny_suspect())
    watch = _Watch(model)
    run(model, objective=watch, epochs=1, batch=50)  # 96 work images
    assert watch.sizes == [48, 48]
    assert watch.modes == {True}


def test_the_rate_follows_the_schedule() -> None:
    model = copy_of(tiny_suspect())
    watch = _Watch(model)
    train(
        model,
        tiny_data(),
        context_of(),
        schedule=Schedule(epochs=2, batch=48, rate=cosine(0.1)),
        objective=watch,
        augmentation=Augmentation(),
        draws=torch.Generator().manual_seed(0),
        name="test",
    )
    expected = [0.05 * (1 + math.cos(math.pi * f)) for f in (0.0, 0.25, 0.5, 0.75)]
    assert watch.rates == pytest.approx(expected)


def test_a_configuration_gives_the_schedule_of_its_fields() -> None:
    config = TrainingConfig(
        learning_rate=0.2, batch=7, momentum=0.5, weight_decay=0.25, max_gradient=3.0
    )
    schedule = config.schedule(3)
    assert (schedule.epochs, schedule.batch) == (3, 7)
    assert (schedule.momentum, schedule.weight_decay) == (0.5, 0.25)
    assert schedule.max_gradient == 3.0
    assert TrainingConfig().schedule(3).max_gradient is None
    assert [schedule.rate(f) for f in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert not schedule.is_nesterov
    assert schedule.is_shuffled


def test_a_configuration_says_whether_images_are_cropped_and_mirrored() -> None:
    model, data, context = copy_of(tiny_suspect()), tiny_data(), context_of()
    for crop, flip in [(True, False), (False, True)]:
        found = TrainingConfig(crop=crop, flip=flip).augmentation(model, data, context)
        assert (found.padding > 0, found.flip) == (crop, flip)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _OfARepair(TrainingConfig):
    batch: int = 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -0.1),
        ("batch", 1),
        ("momentum", 1.1),
        ("weight_decay", -1.0),
        ("max_gradient", 0.0),
    ],
)
def test_a_field_out_of_its_range_is_named_with_the_repairs_configuration(
    field: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=rf"_OfARepair\.{field} must be in"):
        _OfARepair(**{field: value})  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize("share", [None, 0.25, 4.0])
def test_one_step_is_that_of_plain_sgd_along_a_gradient_of_bounded_length(
    share: float | None,
) -> None:
    model, other = copy_of(tiny_suspect()), copy_of(tiny_suspect())
    data = tiny_data()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    other.module.train()
    loss = nn.functional.cross_entropy(
        other.logits(data.images[data.work[order]]), data.labels[data.work[order]]
    )
    loss.backward()
    norm = math.sqrt(
        sum(float((p.grad**2).sum()) for p in other.module.parameters() if p.grad is not None)
    )
    bound = None if share is None else share * norm
    run(model, epochs=1, batch=200, rate=0.1, max_gradient=bound)
    left = min(1.0, share or 1.0)
    for one, two in zip(model.module.parameters(), other.module.parameters(), strict=True):
        assert two.grad is not None
        stepped = two.detach() - 0.1 * (left * two.grad + 5e-4 * two.detach())
        torch.testing.assert_close(one.detach(), stepped)
    for mine, theirs in zip(model.module.buffers(), other.module.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_latest_epoch_within_the_budget_is_kept() -> None:
    assert choose_epoch({3: 0.89, 4: 0.87}, before=0.9, drop=0.02) == 3
    assert choose_epoch({3: 0.89, 4: 0.88}, before=0.9, drop=0.02) == 4
    # Where none is within it, the most accurate one.
    assert choose_epoch({3: 0.8, 4: 0.8}, before=0.9, drop=0.02) == 4
    assert choose_epoch({3: 0.81, 4: 0.8}, before=0.9, drop=0.02) == 3


@pytest.mark.parametrize(("epochs", "asked"), [(1, {0, 1}), (2, {0, 2}), (5, {0, 3, 4, 5})])
def test_epochs_that_have_repaired_nothing_yet_are_not_kept(epochs: int, asked: set[int]) -> None:
    log = run(copy_of(tiny_suspect()), epochs=epochs, max_drop=0.02)
    assert set(log.accuracies) == asked
    assert log.kept in asked - {0}


def test_the_weights_of_the_epoch_kept_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, short = copy_of(tiny_suspect()), copy_of(tiny_suspect())
    accuracies = iter([0.9, 0.89, 0.5])
    monkeypatch.setattr(_training, "view_accuracy", lambda *_: next(accuracies))
    log = run(model, epochs=3, max_drop=0.02)
    assert log.kept == 2
    assert log.accuracies == {0: 0.9, 2: 0.89, 3: 0.5}
    run(short, epochs=2)
    assert same_state(model.module, short.module)


def test_an_epoch_is_chosen_by_views_of_the_validation_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data, context = copy_of(tiny_suspect()), tiny_data(), context_of()
    borne = Augmentation(padding=1, flip=True)
    monkeypatch.setattr(_views, "_DEFICIT", 1.0)
    before = view_accuracy(model, data, context, borne)
    log = run(model, epochs=2, max_drop=1.0, augmentation=borne)
    assert log.accuracies == {0: before, 2: view_accuracy(model, data, context, borne)}


def test_views_that_the_network_does_not_bear_choose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data, context = copy_of(tiny_suspect()), tiny_data(), context_of()
    monkeypatch.setattr(_views, "_DEFICIT", -1.0)
    log = run(model, epochs=2, max_drop=1.0, augmentation=Augmentation(padding=1))
    assert log.accuracies[2] == view_accuracy(model, data, context, Augmentation())


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    model = copy_of(tiny_suspect())
    with pytest.raises(RepairError, match="finite loss, it was nan in epoch 2"):
        run(model, objective=_Watch(model, spoil=1), epochs=3)


def test_frozen_statistics_stay() -> None:
    model = copy_of(tiny_suspect())
    before = {name: value.clone() for name, value in model.module.named_buffers()}
    run(model, is_batchnorm_frozen=True)
    assert all(torch.equal(before[name], value) for name, value in model.module.named_buffers())


def test_passes_are_counted() -> None:
    model = copy_of(tiny_suspect())
    run(model, epochs=3, max_drop=1.0)
    assert model.passes.forward_backward == 3 * 96
    # Before the run, and after each epoch of its second half.
    assert model.passes.forward == 3 * 24


def test_dropout_stays_off_and_the_global_generator_untouched() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 4)
    ).eval()
    tiny_data()  # making a net draws
    before = torch.random.get_rng_state()
    states = []
    for _ in range(2):
        model = copy_of(suspect_of(module))
        run(model, epochs=1)
        states.append(model.module)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_state(states[0], states[1])


def test_no_gradient_and_no_train_mode_is_left() -> None:
    model = copy_of(tiny_suspect())
    run(model)
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(child.training for child in model.module.modules())
    assert all(p.is_contiguous() for p in model.module.parameters())


def test_frozen_parameters_stay() -> None:
    model = copy_of(tiny_suspect())
    before = {name: value.clone() for name, value in model.module.named_parameters()}
    freeze(model.module, ("conv1", "norm"))
    run(model)
    changed = {n for n, v in model.module.named_parameters() if not torch.equal(before[n], v)}
    assert changed == {"conv2.weight", "conv2.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(("prefixes", "words"), [(("nowhere",), "nowhere"), (("",), "all of them")])
def test_freezing_nothing_or_everything_is_refused(prefixes: tuple[str, ...], words: str) -> None:
    with pytest.raises(RepairError, match=words):
        freeze(copy_of(tiny_suspect()).module, prefixes)
