from __future__ import annotations

import math

import numpy as np
import pytest

from modelaudit.fit import TrainingCrop, accuracy_gate
from modelaudit.fit.choose import Trial, best_of, contenders, disagreement, plausible
from modelaudit.fit.report import nats
from modelaudit.fit.trial import Hypothesis, Match
from modelaudit.preprocessing import PRESETS


def trial(right: int, *, of: int = 100, divergence: float | None = None, order: int = 0) -> Trial:
    match = None if divergence is None else Match(divergence=divergence, crop=TrainingCrop.NONE)
    return Trial(
        hypothesis=Hypothesis(candidate=0, input_size=32, preprocessing=PRESETS[0]),
        order=order,
        outputs=np.arange(of),
        hits=(np.arange(of) < right).astype(np.float64),
        is_labelled=True,
        match=match,
    )


@pytest.mark.parametrize(("classes", "gate"), [(2, 0.6), (10, 0.28), (200, 0.204)])
def test_gate_is_a_fifth_of_the_way_from_chance(classes: int, gate: float) -> None:
    assert accuracy_gate(classes) == pytest.approx(gate)


def test_two_standard_errors_below_the_best_is_out() -> None:
    best = trial(85)
    assert best.standard_error == pytest.approx(math.sqrt(86 / 102 * 16 / 102 / 100))
    assert plausible([best, trial(78), trial(77)])[1:] != []
    assert len(plausible([best, trial(78), trial(77)])) == 2


def test_perfect_accuracy_still_has_an_error() -> None:
    assert len(plausible([trial(300, of=300), trial(299, of=300), trial(290, of=300)])) == 2


def test_confidence_has_the_error_of_a_mean() -> None:
    values = np.array([0.5, 0.7, 0.9, 0.7])
    unlabelled = Trial(
        hypothesis=trial(1).hypothesis,
        order=0,
        outputs=np.zeros(4),
        hits=values,
        is_labelled=False,
    )
    assert unlabelled.score == pytest.approx(0.7)
    assert unlabelled.standard_error == pytest.approx(values.std() / 2)


def test_half_the_divergence_is_a_clear_win() -> None:
    low, double, near = (trial(80, divergence=d) for d in (0.001, 0.002, 0.0019))
    assert contenders([low, double]) == [low]
    assert contenders([near, low]) == [near, low]
    zero = trial(80, divergence=0.0)
    assert contenders([low, zero]) == [zero]


def test_trial_without_divergence_beats_nothing() -> None:
    trials = [trial(80, divergence=0.001), trial(80)]
    assert contenders(trials) == trials


def test_best_has_the_lowest_divergence_then_the_best_score_then_the_first_place() -> None:
    assert best_of([trial(90, divergence=0.002), low := trial(80, divergence=0.001)]) is low
    same = [trial(80, divergence=0.001), trial(90, divergence=0.00101, order=1)]
    assert best_of(same) is same[1]
    assert best_of([trial(80, order=1), first := trial(80)]) is first
    mixed = [trial(80), trial(90, divergence=0.1, order=1)]
    assert best_of(mixed) is mixed[1]


def test_divergence_has_two_digits_or_none() -> None:
    assert nats(0.00123) == "0.0012"
    assert nats(None) == "undefined"


def test_disagreement_is_the_share_of_different_outputs() -> None:
    first, second = trial(1, of=4), trial(1, of=4)
    second.outputs[0] = 9
    assert disagreement(first, second) == 0.25
