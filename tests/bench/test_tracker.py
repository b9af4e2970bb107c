from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modelaudit.bench.cards import ModelCard, read_card
from modelaudit.bench.events import Event
from modelaudit.bench.forecast import Forecast, duration
from modelaudit.bench.scan import ScanEvent
from modelaudit.bench.tracker import ScanTracker, TrainTracker
from tests.helpers.attacks import tiny_plan

CARD = Path("benchmarks/results/cards")


def card(**changes: object) -> ModelCard:
    some = read_card(sorted(CARD.glob("*.json"))[0])
    return replace(some, **changes)  # type: ignore[arg-type]  # a test's shorthand


def test_forecast_takes_the_likest_kind_that_is_known() -> None:
    forecast = Forecast()
    assert forecast.seconds([(("a", "b"), 1)]) is None
    forecast.observe(("a", "b"), units=2, seconds=20)
    forecast.observe(("a", "c"), units=2, seconds=60)
    assert forecast.seconds([(("a", "b"), 3)]) == 30
    assert forecast.seconds([(("a", "d"), 3)]) == 60  # the mean of both
    assert forecast.seconds([(("z", "z"), 1), (("a", "b"), 1)]) == 30
    assert forecast.seconds([]) == 0
    assert forecast.seconds([(("q",), 0)]) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (12_345, "3 h 26 min")],
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_epochs_models_and_time_are_counted() -> None:
    plans = [tiny_plan("a", epochs=2), tiny_plan("b", epochs=4), tiny_plan("c", epochs=2)]
    known = card(
        dataset="cifar10", architecture="cifar_resnet18", width=4, attack=None, epochs=2, seconds=20
    )
    tracker = TrainTracker(plans, {"c": known}, workers=2)
    start = tracker.status()
    assert (start.done, start.total, start.models, start.all_models) == (2, 8, 1, 3)
    assert start.remaining == "30 s"  # six epochs of ten seconds, two at once
    after = tracker.update(Event(kind="epoch", id="b", epochs=3, seconds=10))
    assert after.done == 5
    assert after.line == "b: epoch 3 of 4, 10 s (1 of 3 models, 15 s left)"
    done = tracker.update(Event(kind="trained", id="b", epochs=4, text="ACC 0.5"))
    assert (done.done, done.models) == (6, 2)
    assert done.said == "b: trained: ACC 0.5"
    assert tracker.update(Event(kind="failed", id="a", text="broke")).remaining == "0 s"


def test_models_that_were_not_chosen_are_told_of_and_not_counted() -> None:
    tracker = TrainTracker([tiny_plan("a")], {}, workers=1)
    status = tracker.update(Event(kind="epoch", id="other", epochs=1, seconds=2))
    assert (status.done, status.said) == (0, "other: epoch 1, 2 s")


def test_scans_are_counted_by_model() -> None:
    cards = [card(id=id_, dataset="d", architecture="n", width=1) for id_ in "abc"]
    tracker = ScanTracker(cards, workers=1)
    assert tracker.status().remaining == ""
    tracker.update(ScanEvent(id="a", text="nothing missing"))
    status = tracker.update(ScanEvent(id="b", rows=2, seconds=7, text="mbns none"))
    assert (status.done, status.models, status.remaining) == (2, 2, "7 s")
    assert status.said == "b: mbns none"
