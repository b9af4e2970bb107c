"""Mode connectivity repair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelaudit.errors import ConfigError, RepairError, UnmetNeedError
from modelaudit.functional.curve import bezier_point
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._curve import (
    Curve,
    Place,
    choose_place,
    set_weights,
    visit,
    weights_of,
)
from modelaudit.repairs._training import Schedule, constant, train
from modelaudit.repairs.mcr import (
    McrConfig,
    McrPaperCodeConfig,
    McrPaperCodeRepair,
    McrRepair,
    released_rate,
)
from modelaudit.suspect import Suspect, state_digest
from tests.helpers.models import images, tiny_bn
from tests.helpers.training import (
    context_of,
    copy_of,
    is_well_formed,
    same_state,
    tiny_data,
    tiny_suspect,
)

QUICK = McrConfig(finetune_epochs=2, epochs=2, batch=32, places=(0.2, 0.5, 0.9))


def curve_of(model: Suspect, **changes: object) -> Curve:
    """Return a curve from the default net to another."""
    settings: dict[str, object] = {
        "dtype": None,
        "weight_decay": 0.01,
        "draws": torch.Generator().manual_seed(0),
    }
    end = weights_of(tiny_suspect(5).module)
    return Curve(model, weights_of(model.module), end, **(settings | changes))  # type: ignore[arg-type]  # a shorthand


def test_the_ends_are_the_networks_with_their_own_statistics() -> None:
    model = copy_of(tiny_suspect())
    curve = curve_of(model)
    pictures = images(5)
    start, other = tiny_suspect(), tiny_suspect(5)
    curve.move_to(0.0)
    assert torch.equal(model.logits(pictures), start.logits(pictures))
    curve.move_to(1.0)
    model.module.load_state_dict(dict(other.module.named_buffers()), strict=False)
    assert torch.equal(model.logits(pictures), other.logits(pictures))


def test_the_curve_begins_as_the_straight_line() -> None:
    model = copy_of(tiny_suspect())
    curve = curve_of(model)
    curve.move_to(0.5)
    middle = [(a + b) / 2 for a, b in zip(curve.start, curve.end, strict=True)]
    for found, expected in zip(weights_of(model.module), middle, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_inner_gradient_is_that_of_the_whole_loss() -> None:
    model = copy_of(tiny_suspect())
    curve = curve_of(model)
    labels = torch.arange(6) % 4
    loss = curve.loss(images(6), labels)
    curve.backward(loss)
    t = float(torch.rand((), generator=torch.Generator().manual_seed(0)))
    inner = [value.clone().requires_grad_() for value in curve.inner]
    weights = bezier_point(curve.start, inner, curve.end, t)
    names = [name for name, _ in model.module.named_parameters()]
    logits = torch.func.functional_call(
        model.module, dict(zip(names, weights, strict=True)), ((images(6) - 0.5) / 0.5,)
    )
    whole = torch.nn.functional.cross_entropy(logits, labels)
    whole = whole + 0.5 * 0.01 * sum(w.square().sum() for w in weights)
    for value, slope in zip(curve.inner, torch.autograd.grad(whole, inner), strict=True):
        assert value.grad is not None
        torch.testing.assert_close(value.grad, slope, atol=1e-5, rtol=1e-4)


def test_training_moves_the_inner_point_alone() -> None:
    model = copy_of(tiny_suspect())
    curve = curve_of(model)
    start, end = ([v.clone() for v in part] for part in (curve.start, curve.end))
    inner = [v.clone() for v in curve.inner]
    train(
        model,
        tiny_data(),
        context_of(),
        schedule=Schedule(epochs=1, batch=32, rate=constant(0.05), weight_decay=0.0),
        objective=curve,
        augmentation=Augmentation(),
        draws=torch.Generator().manual_seed(0),
        name="test",
        trained=curve.inner,
    )
    assert all(torch.equal(a, b) for a, b in zip(start, curve.start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(end, curve.end, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(inner, curve.inner, strict=True))


def test_a_visit_re_estimates_the_statistics() -> None:
    model, data = copy_of(tiny_suspect()), tiny_data()
    curve = curve_of(model)
    place = visit(curve, data, context_of(), 0.4, batch=32)
    buffers = {name: value.clone() for name, value in model.module.named_buffers()}
    visit(curve, data, context_of(batch_size=5), 0.8, batch=32)
    again = visit(curve, data, context_of(batch_size=5), 0.4, batch=32)
    assert again.accuracy == place.accuracy
    assert again.loss == pytest.approx(place.loss, rel=1e-5)
    assert all(torch.equal(buffers[name], v) for name, v in model.module.named_buffers())


def test_the_place_with_the_lowest_loss_within_the_budget_is_taken() -> None:
    places = [
        Place(t=0.1, accuracy=0.9, loss=0.5),
        Place(t=0.5, accuracy=0.88, loss=0.3),
        Place(t=0.7, accuracy=0.88, loss=0.3),
        Place(t=0.9, accuracy=0.6, loss=0.1),
    ]
    assert choose_place(places, floor=0.88).t == 0.7
    assert choose_place(places, floor=0.89).t == 0.1
    assert choose_place(places, floor=0.95).t == 0.1
    assert choose_place(places, floor=0.5).t == 0.9


@pytest.mark.parametrize("kind", [McrRepair, McrPaperCodeRepair])
def test_the_suspect_stays_and_the_result_is_well_formed(
    kind: type[McrRepair] | type[McrPaperCodeRepair],
) -> None:
    suspect, data = tiny_suspect(), tiny_data()
    before = state_digest(suspect.module)
    config = QUICK if kind is McrRepair else McrPaperCodeConfig(finetune_epochs=1, epochs=2)
    repair = kind(config)  # type: ignore[arg-type]  # its own
    result = repair.repair(suspect, data, context=context_of())
    assert state_digest(suspect.module) == before
    assert is_well_formed(result, suspect)
    assert not same_state(result.module, suspect.module)
    most = repair.estimate(suspect, data)
    assert result.cost.forward_backward == most.forward_backward
    assert result.cost.forward <= most.forward + 2 * len(data.validation)
    if kind is McrRepair:
        assert result.details["t"] in QUICK.places
        accuracies = result.details["validation_accuracies"]
        assert isinstance(accuracies, list)
        chosen = accuracies[QUICK.places.index(float(str(result.details["t"])))]
        assert result.measurements.accuracy_after == chosen
    else:
        assert result.details["t"] == 0.3


def test_same_seed_same_weights() -> None:
    one, other = (
        McrRepair(QUICK).repair(tiny_suspect(), tiny_data(), context=context_of(seed=1))
        for _ in range(2)
    )
    assert same_state(one.module, other.module)


def test_ends_that_are_equal_are_refused() -> None:
    config = replace(QUICK, finetune_learning_rate=1e-30)
    with pytest.raises(RepairError, match="move the weights"):
        McrRepair(config).repair(tiny_suspect(), tiny_data(), context=context_of())


def test_it_asks_for_labels() -> None:
    data = replace(tiny_data(), has_labels=False)
    with pytest.raises(UnmetNeedError, match="labelled"):
        McrRepair(QUICK).repair(tiny_suspect(), data, context=context_of())


def test_weights_are_set_and_read_in_the_module_s_order() -> None:
    one, other = tiny_bn(1), tiny_bn(2)
    kept = weights_of(one)
    set_weights(other, kept)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert kept[0].data_ptr() != next(iter(one.parameters())).data_ptr()


def test_the_released_schedule() -> None:
    rate = released_rate(0.1)
    assert rate(0.0) == rate(0.5) == 0.1
    assert rate(0.7) == pytest.approx(0.1 * 0.505)
    assert [rate(0.9), rate(0.99)] == pytest.approx([0.001, 0.001])
    assert McrPaperCodeConfig().t == 0.3


@pytest.mark.parametrize("field", ["finetune_epochs", "epochs", "learning_rate", "batch"])
def test_values_out_of_range_are_refused(field: str) -> None:
    for kind in (McrConfig, McrPaperCodeConfig):
        with pytest.raises(ConfigError, match=field):
            kind(**{field: -1})  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("places", [(), (0.0,), (0.5, 1.0)])
def test_places_at_or_beyond_the_ends_are_refused(places: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="places"):
        McrConfig(places=places)
