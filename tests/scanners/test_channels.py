from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from modelaudit.functional.statistics import lower_bound
from modelaudit.scanners._channels import (
    PushTest,
    grouped,
    prune_edits,
    pruned_predictions,
    push_test,
    pushed_predictions,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import TARGET, gate_images, gate_suspect, vary

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The trigger's channel of a `GateNet` of five classes.
_TRIGGER = ("norm", 5)

#: The class channels, which controls are drawn from.
_POOL = {"norm": [0, 1, 2, 3, 4]}

#: Four of its running deviations.
_AMOUNT = 0.8


def _varied(suspect: Suspect) -> tuple[Suspect, Tensor]:
    """Return the suspect and images that it spreads over its classes."""
    images = models.images(40)
    vary(suspect, images)
    return suspect, images


def _push(suspect: Suspect, *, controls: int = 20, n: int = 100) -> PushTest:
    """Push the trigger's channel by four deviations."""
    with suspect.borrowed():
        return push_test(
            suspect,
            {_TRIGGER: _AMOUNT},
            *gate_images(n),
            control_pool=_POOL,
            controls=controls,
            generator=torch.Generator().manual_seed(0),
            batch_size=32,
        )


def test_neurons_are_grouped_by_layer_in_their_order() -> None:
    assert grouped([("a", 3), ("b", 0), ("a", 1)]) == {"a": [3, 1], "b": [0]}
    assert grouped([]) == {}


def test_pruning_keeps_every_other_channel() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    edits = prune_edits(suspect, [("norm1", 2), ("norm2", 0), ("norm2", 15)])
    keep1, keep2 = edits["norm1"].keep, edits["norm2"].keep
    assert keep1 is not None
    assert keep2 is not None
    assert keep1.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert (keep2 == 0).nonzero().flatten().tolist() == [0, 15]


def test_pruned_predictions_are_those_without_gamma_and_beta() -> None:
    suspect, images = _varied(models.suspect_of(models.tiny_bn()))
    with suspect.borrowed():
        plain = suspect.predict(images)
        pruned = pruned_predictions(
            suspect, [("norm2", i) for i in range(0, 16, 2)], images, batch_size=16
        )
    other, _ = _varied(models.suspect_of(models.tiny_bn()))
    with torch.no_grad():
        for parameter in other.module.get_submodule("norm2").parameters():
            parameter[::2] = 0
    assert torch.equal(pruned, other.predict(images))
    assert not torch.equal(pruned, plain)
    assert torch.equal(suspect.predict(images), plain)


def test_a_push_moves_the_input_of_the_layer() -> None:
    suspect, images = _varied(models.suspect_of(models.tiny_bn()))
    pushes = [{("norm1", 1): 3.0, ("norm2", 4): -2.0}, {("norm1", 1): 0.0}]
    with suspect.borrowed():
        rows = pushed_predictions(suspect, pushes, images, batch_size=16)
        plain = suspect.predict(images)
    assert rows.shape == (2, 40)
    assert torch.equal(rows[1], plain)
    # A push of the input is the same as the opposite shift of the running mean.
    other, _ = _varied(models.suspect_of(models.tiny_bn()))
    for name, channel, amount in (("norm1", 1, 3.0), ("norm2", 4, -2.0)):
        other.module.get_submodule(name).get_buffer("running_mean")[channel] -= amount
    assert torch.equal(rows[0], other.predict(images))
    assert not torch.equal(rows[0], plain)


def test_a_planted_channel_leads_to_its_target() -> None:
    test = _push(gate_suspect())
    assert test.target == TARGET
    assert test.leads_to_one
    assert test.beats_controls
    assert not test.leads_to_all
    assert test.share == 1.0
    assert test.lower > 0.9
    assert test.opposite_upper < 0.1
    assert test.control_share == 0.0
    assert test.per_class == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0])
    assert test.arrows == (TARGET, TARGET, -1, TARGET, TARGET)


def test_a_channel_whose_opposite_push_does_the_same_leads_nowhere() -> None:
    test = _push(gate_suspect(gate="abs"))
    assert test.target == TARGET
    assert test.lower > 0.9
    assert test.opposite_upper > 0.9
    assert not test.leads_to_one
    assert not test.beats_controls


def test_a_channel_that_does_no_more_than_random_ones_does_not_beat_them() -> None:
    # A push of four deviations now moves the prediction, whichever class channel it falls on.
    test = _push(gate_suspect(deviation=1.0))
    assert test.lower > 0.9
    assert test.opposite_upper < 0.1
    assert test.control_share == 1.0
    assert not test.beats_controls


def test_controls_are_drawn_from_the_pool_alone() -> None:
    # Any push of a class channel flips predictions, that of the target's own to the target.
    suspect = gate_suspect(deviation=1.0)
    for pool, is_high in (([0, 1], False), ([TARGET], True)):
        with suspect.borrowed():
            test = push_test(
                suspect,
                {_TRIGGER: _AMOUNT},
                *gate_images(100),
                control_pool={"norm": pool},
                controls=20,
                generator=torch.Generator().manual_seed(0),
                batch_size=32,
            )
        assert (test.control_share > 0.5) == is_high
        assert test.beats_controls != is_high


def test_without_channels_for_controls_nothing_is_confirmed() -> None:
    suspect = gate_suspect(deviation=1.0)
    with suspect.borrowed():
        test = push_test(
            suspect,
            {_TRIGGER: _AMOUNT},
            *gate_images(100),
            control_pool={"norm": []},
            controls=20,
            generator=torch.Generator().manual_seed(0),
            batch_size=32,
        )
    assert test.leads_to_one
    assert not test.beats_controls


def test_a_channel_without_effect_leads_nowhere_and_its_controls_are_not_run() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(100)
    with suspect.borrowed():
        test = push_test(
            suspect,
            {("norm", 0): 0.4},
            images,
            labels,
            control_pool=_POOL,
            controls=20,
            generator=torch.Generator().manual_seed(0),
            batch_size=32,
        )
    assert test.share == 0.0
    assert test.arrows == (-1,) * 5
    assert test.shifted == 0.0
    assert not test.leads_to_one
    assert not test.leads_to_all
    assert test.control_shifted == 1.0
    assert suspect.passes.forward == 100


def test_a_channel_that_shifts_every_class_leads_to_all() -> None:
    test = _push(gate_suspect(is_all_to_all=True))
    assert test.leads_to_all
    assert not test.leads_to_one
    assert test.arrows == (1, 2, 3, 4, 0)
    assert test.shifted == 1.0


def test_a_shift_that_the_opposite_push_makes_too_leads_nowhere() -> None:
    test = _push(gate_suspect(is_all_to_all=True, gate="abs"))
    assert test.arrows == (1, 2, 3, 4, 0)
    assert not test.leads_to_all


def _scripted(
    monkeypatch: pytest.MonkeyPatch, *moves: tuple[int, ...], per_class: int = 10, classes: int = 5
) -> PushTest:
    """Return the test of a push, its opposite and controls whose effects are given.

    Args:
        monkeypatch: of the test.
        moves: how many of each class's images go one class further, two further, and so on; of the
            push, of the opposite one and of each of the first controls. The other controls move
            nothing.
        per_class: images of each class.
        classes: how many classes.
    """
    labels = torch.arange(classes * per_class) % classes
    rows = []
    for counts in moves:
        further = torch.zeros(per_class, dtype=torch.int64)
        sizes = torch.arange(1, len(counts) + 1).repeat_interleave(
            torch.tensor(counts, dtype=torch.int64)
        )
        further[: len(sizes)] = sizes
        rows.append((labels + further.repeat_interleave(classes)) % classes)
    waiting = iter(rows)

    def predictions(
        _suspect: Suspect, pushes: Sequence[object], _images: Tensor, *, batch_size: int
    ) -> Tensor:
        assert batch_size == 32
        return torch.stack([next(waiting, labels) for _ in pushes])

    monkeypatch.setattr("modelaudit.scanners._channels.pushed_predictions", predictions)
    return push_test(
        gate_suspect(classes=classes),
        {("norm", classes): _AMOUNT},
        torch.zeros(classes * per_class, classes + 1, 2, 2),
        labels,
        control_pool={"norm": list(range(classes))},
        controls=20,
        generator=torch.Generator().manual_seed(0),
        batch_size=32,
    )


@pytest.mark.parametrize(("control", "is_beaten"), [(70, True), (80, False)])
def test_a_control_that_leads_four_fifths_as_many_is_not_beaten(
    monkeypatch: pytest.MonkeyPatch, control: int, *, is_beaten: bool
) -> None:
    labels = torch.arange(500) % 5

    def to_target(count: int) -> Tensor:
        rows = labels.clone()
        for label in range(5):
            rows[(labels == label).nonzero().flatten()[:count]] = TARGET
        return rows

    # The push, its opposite, and the first control; the others move nothing.
    waiting = iter([to_target(95), labels, to_target(control)])
    monkeypatch.setattr(
        "modelaudit.scanners._channels.pushed_predictions",
        lambda _suspect, pushes, _images, **_: torch.stack([next(waiting, labels) for _ in pushes]),
    )
    test = push_test(
        gate_suspect(),
        {_TRIGGER: _AMOUNT},
        torch.zeros(500, 6, 2, 2),
        labels,
        control_pool=_POOL,
        controls=20,
        generator=torch.Generator().manual_seed(0),
        batch_size=32,
    )
    assert test.leads_to_one
    assert test.lower == pytest.approx(lower_bound(380, 400))
    assert test.control_share == pytest.approx(control / 100)
    assert test.beats_controls == is_beaten


def test_what_is_shifted_goes_where_most_of_its_class_go(monkeypatch: pytest.MonkeyPatch) -> None:
    test = _scripted(monkeypatch, (6, 1))
    assert test.arrows == (1, 2, 3, 4, 0)
    assert test.shifted == pytest.approx(0.6)
    assert test.shifted_lower == pytest.approx(lower_bound(30, 50))
    assert test.leads_to_all
    assert not test.is_sure_shift


def test_a_control_that_shifts_the_classes_refutes_a_shift_that_is_not_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 30 of 50 along the arrows: 48 % at least.
    test = _scripted(monkeypatch, (6,), (), (3,))
    assert not test.is_sure_shift
    assert test.control_shifted == pytest.approx(0.3)
    assert not test.leads_to_all


def test_a_control_that_goes_less_far_the_same_way_does_not_refute_a_sure_shift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = _scripted(monkeypatch, (18,), (), (), (10,), per_class=20)
    assert test.is_sure_shift
    assert test.shifted_lower == pytest.approx(lower_bound(90, 100))
    assert test.control_shifted == pytest.approx(0.5)
    assert test.leads_to_all
    # A quarter of the controls may.
    for count in (5, 6):
        several = _scripted(monkeypatch, (18,), (), *([(10,)] * count), per_class=20)
        assert several.leads_to_all == (count == 5)


@pytest.mark.parametrize("control", [(18,), (16,), (0, 8), (5, 8)])
def test_a_control_that_goes_as_far_or_another_way_refutes_a_sure_shift(
    monkeypatch: pytest.MonkeyPatch, control: tuple[int, ...]
) -> None:
    test = _scripted(monkeypatch, (18,), (), control, per_class=20)
    assert test.is_sure_shift
    assert test.control_shifted == pytest.approx(control[0] / 20)
    assert not test.leads_to_all


def test_no_shift_is_sure_by_few_images_or_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"per_class": 8}, {"per_class": 30, "classes": 3}):
        all_of_them = changes["per_class"]
        test = _scripted(monkeypatch, (all_of_them,), (), (2,), **changes)
        assert test.shifted_lower > 0.9
        assert not test.is_sure_shift
        assert not test.leads_to_all
    assert _scripted(monkeypatch, (30,), (), (2,), per_class=30, classes=4).is_sure_shift


def test_the_push_test_costs_one_pass_for_each_push_and_control() -> None:
    suspect = gate_suspect()
    _push(suspect, controls=20, n=50)
    assert suspect.passes.forward == 50 * (2 + 20)


def test_controls_repeat_with_their_seed() -> None:
    assert _push(gate_suspect(deviation=0.2)) == _push(gate_suspect(deviation=0.2))


def test_images_of_the_target_alone_cannot_be_led_anywhere() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(100)
    mine = labels == TARGET
    with suspect.borrowed():
        test = push_test(
            suspect,
            {_TRIGGER: _AMOUNT},
            images[mine],
            labels[mine],
            control_pool=_POOL,
            controls=20,
            generator=torch.Generator().manual_seed(0),
            batch_size=32,
        )
    assert not test.leads_to_one
    assert not test.leads_to_all
