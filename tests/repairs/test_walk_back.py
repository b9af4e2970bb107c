"""How much of a training run is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs import _views, _walk_back, fine_pruning, finetune, finetune_noise, nad
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._training import module_state
from modelaudit.repairs._walk_back import (
    SHARES,
    Standing,
    WayBack,
    between,
    passes,
    standing,
    standing_like,
    walk_back,
)
from tests.helpers.models import suspect_of
from tests.helpers.training import (
    context_of,
    copy_of,
    data_of,
    same_state,
    tiny_data,
    tiny_suspect,
)

if TYPE_CHECKING:
    from types import ModuleType

    from modelaudit.repairs import Repair
    from modelaudit.suspect import Suspect

PLAIN = Augmentation()
BEFORE = Standing(accuracy=0.9, plain=0.9, probability=0.8, confidence=0.85, seen=PLAIN)


def moved() -> tuple[Suspect, dict[str, Tensor]]:
    """Return a copy whose every weight has moved by a half, and where it was."""
    model = copy_of(tiny_suspect())
    start = module_state(model.module)
    with torch.no_grad():
        for tensor in model.module.state_dict().values():
            tensor += 0.5 if tensor.is_floating_point() else 3
    return model, start


def is_at(model: Suspect, state: dict[str, Tensor]) -> bool:
    """Return whether a network holds a state bit for bit."""
    return all(torch.equal(t, state[name]) for name, t in module_state(model.module).items())


def walked(
    monkeypatch: pytest.MonkeyPatch,
    places: dict[float, tuple[float, float]],
    *,
    accuracy_before: float | None = None,
) -> tuple[WayBack, Suspect, dict[str, Tensor], dict[str, Tensor]]:
    """Walk back over places whose accuracy and probability are given.

    What is nearer than all of them loses nothing, what lies elsewhere everything.
    """
    model, start = moved()
    end = module_state(model.module)

    original = None if accuracy_before is None else tiny_suspect()

    def scripted(asked: Suspect, *_: object) -> Standing:
        if asked is original:
            assert accuracy_before is not None
            return replace(BEFORE, accuracy=accuracy_before, plain=0.0, probability=0.0)
        (share,) = (s for s in SHARES if is_at(asked, between(start, end, s)))
        nothing = (0.9, 0.8) if share < min(places) else (0.0, 0.0)
        accuracy, probability = places.get(share, nothing)
        return replace(BEFORE, accuracy=accuracy, plain=accuracy, probability=probability)

    monkeypatch.setattr(_walk_back, "standing_like", scripted)
    context = context_of(max_accuracy_drop=0.02, original=original)
    return walk_back(model, start, tiny_data(), context, before=BEFORE), model, start, end


def test_the_line_between_two_states() -> None:
    start = {"weight": torch.tensor([1.0, 0.0]), "count": torch.tensor(1)}
    end = {"weight": torch.tensor([3.0, 0.0]), "count": torch.tensor(7)}
    quarter = between(start, end, 0.25)
    assert quarter["weight"].tolist() == [1.5, 0.0]
    assert int(quarter["count"]) == 7
    assert torch.equal(between(start, end, 1.0)["weight"], end["weight"])
    mask = {"mask": torch.tensor([-math.inf, math.inf, 2.0])}
    assert torch.equal(between(mask, mask, 0.3)["mask"], mask["mask"])


def test_what_costs_little_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    way, model, _, end = walked(monkeypatch, {1.0: (0.89, 0.79)})
    assert way == WayBack(kept=1.0, tried=((1.0, 0.89, 0.89, 0.79),))
    assert is_at(model, end)
    assert way.notes == ()


def test_the_furthest_place_within_half_of_the_budget_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The whole way has the accuracy and not the probability, 0.8 the other way round.
    places = {1.0: (0.9, 0.78), 0.8: (0.88, 0.8), 0.7: (0.89, 0.79)}
    way, model, start, end = walked(monkeypatch, places)
    assert way.kept == 0.7
    assert [place[0] for place in way.tried] == [1.0, 0.4, 0.7, 0.8]
    assert is_at(model, between(start, end, 0.7))
    assert way.notes == ("70% of what training changed is kept, for the accuracy",)
    assert way.details["kept_share"] == 0.7


@pytest.mark.parametrize("measure", ["accuracy", "plain", "probability"])
def test_the_measure_that_shows_most_decides(measure: str) -> None:
    now = replace(BEFORE, **{measure: getattr(BEFORE, measure) - 0.03})
    assert now.loss_from(BEFORE) == pytest.approx(0.03)
    assert BEFORE.loss_from(now) == pytest.approx(0.0)


def test_half_of_what_an_earlier_repair_has_left_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {0.5: (0.89, 0.79), 0.4: (0.895, 0.8), 0.3: (0.9, 0.796), 0.2: (0.899, 0.8)}
    assert walked(monkeypatch, places)[0].kept == 0.5
    # A point and more of two is gone: four tenths of one are left.
    assert walked(monkeypatch, places, accuracy_before=0.912)[0].kept == 0.3
    # All of it is.
    way = walked(monkeypatch, places, accuracy_before=0.95)[0]
    assert way.kept == 0.1
    assert way.is_within


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_answers_that_are_no_numbers_are_none(factor: float) -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = data_of(images, images[:, :, 0, 0].argmax(1))
    broken = standing_like(suspect_of(_Fixed(factor), classes=3), data, context_of(), BEFORE)
    assert broken.probability == 0.0


def test_where_nothing_is_within_the_budget_the_best_place_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Halving the way looks at these.
    places = {1.0: (0.85, 0.7), 0.4: (0.85, 0.77), 0.1: (0.85, 0.78), 0.02: (0.7, 0.8)}
    way, model, start, end = walked(monkeypatch, places)
    assert way.kept == 0.4
    assert not way.is_within
    assert "more than half of the accuracy budget" in way.notes[0]
    assert way.details["is_within_half_of_budget"] is False
    # Halving finds none, and so the others are looked at.
    assert [place[0] for place in way.tried[:6]] == [1.0, 0.4, 0.1, 0.02, 0.9, 0.8]
    assert len(way.tried) == len(SHARES)
    assert is_at(model, between(start, end, 0.4))


def test_what_only_training_mends_is_found_between(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where pruning has cost something before the training.
    places = {0.3: (0.89, 0.8), 0.2: (0.9, 0.8), 0.02: (0.85, 0.8)}
    way, model, start, end = walked(monkeypatch, places)
    assert way.kept == 0.3
    assert way.is_within
    assert is_at(model, between(start, end, 0.3))


def test_all_that_is_measured_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = data_of(images, images.mean((2, 3)).argmax(1))
    model = suspect_of(_Mean(), classes=3)
    borne, context = Augmentation(padding=1, flip=True), context_of(original=model)
    monkeypatch.setattr(_views, "_DEFICIT", 1.0)
    before, start = standing(model, data, context, borne), module_state(model.module)
    assert before.seen == borne
    with torch.no_grad():
        model.module.factor.neg_()  # type: ignore[operator]  # a parameter
    # Whatever is kept of the way, the labels are not met before nothing is.
    way = walk_back(model, start, data, context, before=before)
    assert model.passes.forward <= passes(data)
    assert way.kept < 0.6


@pytest.mark.parametrize("furthest", SHARES)
def test_every_place_can_be_found(monkeypatch: pytest.MonkeyPatch, furthest: float) -> None:
    way, model, start, end = walked(monkeypatch, {furthest: (0.9, 0.8)})
    assert way.kept == furthest
    assert is_at(model, between(start, end, furthest))
    assert len(way.tried) <= 5


class _Fixed(nn.Module):
    """Gives its images' first pixels of each channel as logits, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, 3)``."""
        return self.factor * images.flatten(2)[..., 0]


class _Mean(_Fixed):
    """Gives the mean of each channel, times a factor."""

    def __init__(self) -> None:
        super().__init__(4.0)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, 3)``."""
        return self.factor * images.mean((2, 3))


def test_a_standing_is_measured_on_the_validation_images() -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = images[:, :, 0, 0].argmax(1)
    labels[:20] = (labels[:20] + 1) % 3
    data = data_of(images, labels)
    model = suspect_of(_Fixed(4.0), classes=3)
    now = standing(model, data, context_of(batch_size=7), PLAIN)
    rows = data.validation
    # Normalised by a mean and deviation of a half, whose mean no softmax sees.
    probabilities = (4.0 * 2 * images[rows, :, 0, 0]).double().softmax(1)
    right = probabilities.argmax(1) == labels[rows]
    assert now.accuracy == pytest.approx(float(right.double().mean()))
    assert now.confidence == pytest.approx(float(probabilities.max(1).values.mean()))
    expected = probabilities.gather(1, labels[rows, None]).mean()
    assert now.probability == pytest.approx(float(expected))
    assert now.plain == now.accuracy
    assert model.passes.forward == 2 * len(rows)


@pytest.mark.parametrize("factor", [0.5, 40.0])
def test_how_sure_a_network_is_does_not_count(factor: float) -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = data_of(images, images[:, :, 0, 0].argmax(1))
    wanted = standing(suspect_of(_Fixed(4.0), classes=3), data, context_of(), PLAIN)
    other = suspect_of(_Fixed(factor), classes=3)
    own = standing(other, data, context_of(), PLAIN)
    assert not math.isclose(own.probability, wanted.probability)
    now = standing_like(other, data, context_of(), wanted)
    assert now.probability == pytest.approx(wanted.probability, abs=1e-6)
    assert now.accuracy == wanted.accuracy


def test_a_network_without_an_opinion_is_measured_too() -> None:
    data = tiny_data()
    flat = suspect_of(_Fixed(0.0), classes=3)
    now = standing_like(flat, data_of(data.images, data.labels % 3), context_of(), BEFORE)
    assert now.probability == pytest.approx(1 / 3)


HARSH = {"learning_rate": 0.3, "epochs": 2, "batch": 32, "crop": False, "flip": False}


@pytest.mark.parametrize(
    ("module", "repair"),
    [
        (finetune, finetune.FinetuneRepair(finetune.FinetuneConfig(**HARSH))),  # type: ignore[arg-type]  # by name
        (
            fine_pruning,
            fine_pruning.FinePruningRepair(fine_pruning.FinePruningConfig(max_drop=0.4, **HARSH)),  # type: ignore[arg-type]  # by name
        ),
        (
            finetune_noise,
            finetune_noise.FinetuneNoiseRepair(
                finetune_noise.FinetuneNoiseConfig(is_distilled=False, **HARSH)  # type: ignore[arg-type]  # by name
            ),
        ),
        (nad, nad.NadRepair(nad.NadConfig(teacher_epochs=1, **HARSH))),  # type: ignore[arg-type]  # by name
    ],
    ids=["finetune", "fine_pruning", "finetune_noise", "nad"],
)
def test_what_trains_walks_back_to_where_its_training_began(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, repair: Repair[Any]
) -> None:
    suspect, data = tiny_suspect(), tiny_data()
    seen: dict[str, Any] = {}

    def watched(
        model: Suspect, start: dict[str, Tensor], *rest: object, **given: object
    ) -> WayBack:
        seen.update(given, start=start, end=module_state(model.module))
        return walk_back(model, start, *rest, **given)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(module, "walk_back", watched)
    context = context_of(max_accuracy_drop=0.02)
    result = repair.repair(suspect, data, context=context)
    kept = result.details["kept_share"]
    assert isinstance(kept, float)
    assert 0 < kept < 1
    assert seen["before"] == standing(suspect, data, context, PLAIN)
    begun, old = seen["start"], suspect.module.state_dict()
    changed = {name for name, tensor in begun.items() if not torch.equal(tensor, old[name])}
    # Fine-pruning has cut its channels out of the classifier before it trains.
    assert changed == ({"head.weight"} if module is fine_pruning else set())
    state = result.module.state_dict()
    for name, tensor in between(begun, seen["end"], kept).items():
        assert torch.equal(state[name], tensor)
    assert any("of what training changed" in note for note in result.notes)
    if module is fine_pruning:
        pruned = begun["head.weight"] == 0
        assert pruned.any()
        assert not state["head.weight"][pruned].any()


def test_nobody_has_walked() -> None:
    assert WayBack().kept == 1.0
    assert WayBack().notes == ()


def test_training_that_costs_nothing_is_left_alone() -> None:
    model = copy_of(tiny_suspect())
    start = module_state(model.module)
    before = standing(model, tiny_data(), context_of(), PLAIN)
    way = walk_back(model, start, tiny_data(), context_of(), before=before)
    assert way.kept == 1.0
    assert same_state(model.module, tiny_suspect().module)
