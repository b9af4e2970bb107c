from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from modelaudit.functional.paired import (
    expected_largest,
    paired_interval,
    paired_standard_error,
    trials_to_settle,
)


def interval(both: int, first_only: int, second_only: int, neither: int) -> tuple[float, float]:
    return paired_interval(
        both=both, first_only=first_only, second_only=second_only, neither=neither
    )


def test_the_standard_error_by_hand() -> None:
    # √(14 + 10 - 16/200) / 200
    assert paired_standard_error(14, 10, 200) == pytest.approx(math.sqrt(23.92) / 200)


def test_the_standard_error_is_that_of_the_differences() -> None:
    # Each trial counts +1, -1 or 0; the error is the deviation of these over √n.
    values = np.array([1.0] * 30 + [-1.0] * 12 + [0.0] * 158)
    expected = values.std() / math.sqrt(len(values))
    assert paired_standard_error(30, 12, 200) == pytest.approx(expected, rel=1e-12)


def test_one_sided_losses_have_the_binomial_error() -> None:
    assert paired_standard_error(30, 0, 200) == pytest.approx(math.sqrt(0.15 * 0.85 / 200))


@pytest.mark.parametrize("counts", [(0, 0, 1), (0, 0, 200), (1, 0, 1), (0, 7, 7)])
def test_the_error_is_zero_where_all_trials_are_alike(counts: tuple[int, int, int]) -> None:
    assert paired_standard_error(*counts) == 0.0


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        # [NEWCOMBE98] Table III, method 10, as others quote it.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3292)),
        ((18, 12, 2, 18), (0.0562, 0.3290)),
        ((36, 14, 0, 0), (0.1528, 0.4167)),
        ((18, 14, 0, 18), (0.1441, 0.3963)),
        ((0, 29, 1, 0), (0.6666, 0.9882)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
        ((53, 0, 0, 1), (-0.0729, 0.0729)),
        ((30, 0, 0, 24), (-0.0358, 0.0358)),
        # Complete response before and after a therapy, as the R package contingencytables has it.
        ((59, 6, 16, 80), (-0.1186, -0.0046)),
    ],
)
def test_the_interval_is_the_published_one(
    counts: tuple[int, int, int, int], published: tuple[float, float]
) -> None:
    assert interval(*counts) == pytest.approx(published, abs=1e-4)


def test_the_interval_turns_with_its_models() -> None:
    low, high = interval(140, 14, 10, 36)
    assert interval(140, 10, 14, 36) == pytest.approx((-high, -low))


def test_pairs_that_never_differ_leave_a_width_that_shrinks() -> None:
    widths = []
    for scale in (1, 10, 100):
        low, high = interval(17 * scale, 0, 0, 3 * scale)
        assert low == pytest.approx(-high)
        widths.append(high)
    assert 0.0 < widths[2] < widths[1] < widths[0]


@pytest.mark.parametrize("cell", range(4))
def test_one_trial_has_an_interval_around_what_it_says(cell: int) -> None:
    counts = [0, 0, 0, 0]
    counts[cell] = 1
    low, high = interval(*counts)
    difference = counts[1] - counts[2]
    assert -1.0 <= low <= difference <= high <= 1.0
    assert high - low > 0.8


def test_with_many_trials_it_is_1_96_standard_errors_wide() -> None:
    low, high = interval(74_000, 3_000, 2_000, 21_000)
    error = 1.959964 * paired_standard_error(3_000, 2_000, 100_000)
    assert (low, high) == pytest.approx((0.01 - error, 0.01 + error), rel=0.01)


def test_it_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    shares = [0.72, 0.07, 0.05, 0.16]
    found = [interval(*map(int, draw.multinomial(200, shares))) for _ in range(2000)]
    covered = sum(low <= 0.02 <= high for low, high in found)
    # The binomial standard error of the rate is 0.005.
    assert 0.935 <= covered / 2000 <= 0.97


def test_more_confidence_is_wider() -> None:
    ends = [
        paired_interval(both=140, first_only=14, second_only=10, neither=36, confidence=level)
        for level in (0.5, 0.9, 0.99)
    ]
    assert all(wide[0] < slim[0] and slim[1] < wide[1] for slim, wide in pairwise(ends))


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (-1, 1, 1, 1), (1, -1, 1, 1), (1, 1, 1, -1)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="counts"):
        interval(*counts)


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_impossible_differences_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="counts of at least 0"):
        paired_standard_error(*counts)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        paired_interval(both=1, first_only=0, second_only=0, neither=0, confidence=confidence)


@pytest.mark.parametrize(
    ("count", "mean"),
    [
        (2, 1 / math.sqrt(math.pi)),
        (3, 1.5 / math.sqrt(math.pi)),
        # as tabulated in [HARTER61]
        (4, 1.02938),
        (5, 1.16296),
        (10, 1.53875),
        (20, 1.86748),
        (100, 2.50759),
    ],
)
def test_the_largest_of_several_lies_where_the_tables_say(count: int, mean: float) -> None:
    assert expected_largest(count) == pytest.approx(mean, abs=1e-12 if count < 4 else 5e-6)


def test_one_alone_has_no_luck() -> None:
    assert expected_largest(1) == 0.0


def test_no_variable_has_no_largest() -> None:
    with pytest.raises(ValueError, match="at least one"):
        expected_largest(0)


def test_trials_to_settle_by_hand() -> None:
    # 200 · (0.044 / 0.01)² = 3872: half the limit is the least distance.
    assert trials_to_settle(0.02, (-0.024, 0.064), limit=0.02, trials=200) == 3900
    # 200 · (0.03 / 0.02)² = 450
    assert trials_to_settle(0.0, (-0.03, 0.03), limit=0.02, trials=200) == 450
    # Over the limit the lower end counts: 200 · (0.05 / 0.04)² = 312.5
    assert trials_to_settle(0.06, (0.01, 0.2), limit=0.02, trials=200) == 320


@pytest.mark.parametrize(
    ("estimate", "interval_"),
    [(0.0, (-0.01, 0.02)), (0.0, (-0.01, 0.01)), (0.05, (0.03, 0.07))],
)
def test_what_is_settled_needs_no_more(estimate: float, interval_: tuple[float, float]) -> None:
    assert trials_to_settle(estimate, interval_, limit=0.02, trials=200) is None


def test_what_is_too_close_names_no_number() -> None:
    # The end is 0.008 away, less than half the limit: more trials promise nothing.
    assert trials_to_settle(0.019, (0.011, 0.027), limit=0.02, trials=5000) is None
    assert trials_to_settle(0.0, (-0.01, 0.01), limit=0.0, trials=200) is None


def test_the_number_is_larger_than_what_there_is() -> None:
    for high in (0.0201, 0.03, 0.1, 0.5):
        needed = trials_to_settle(0.001, (-high, high), limit=0.02, trials=137)
        assert needed is not None
        assert needed > 137
