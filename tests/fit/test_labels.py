from __future__ import annotations

import itertools

import numpy as np
import pytest

from modelaudit.errors import DataError
from modelaudit.fit.labels import (
    LabelMap,
    contradictions,
    distinct_agreement,
    given_map,
    integer_map,
    majority_map,
    most_agreement,
    sorted_maps,
)


def test_class_file_needs_a_line_per_output() -> None:
    with pytest.raises(DataError, match="the model has 3 outputs, the class file 2 names"):
        given_map(("a", "b"), ("a", "b"), 3)


def test_class_file_may_not_repeat_a_name() -> None:
    with pytest.raises(DataError, match="names 'a' twice"):
        given_map(("a", "b"), ("a", "b", "a"), 3)


def test_class_file_must_name_every_folder() -> None:
    with pytest.raises(DataError, match="lacks the clean folder's class 'c'"):
        given_map(("a", "c"), ("a", "b"), 2)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("0", "2"), (0, 2)),
        (("00000", "00007"), (0, 7)),
        (("1", "8"), (0, 7)),
        (("0", "8"), None),
        (("9",), None),
        (("1", "b"), None),
        (("1", "-2"), None),
        (("1", "²"), None),
        (("1", "9999999999"), None),
    ],
)
def test_numbers_are_outputs_or_outputs_plus_one(
    folders: tuple[str, ...], expected: tuple[int, ...] | None
) -> None:
    found = integer_map(folders, 8)
    assert (None if found is None else found.outputs) == expected


def test_two_names_of_one_number_raise() -> None:
    with pytest.raises(DataError, match="mean the same output"):
        integer_map(("7", "07"), 8)


def test_code_point_order_comes_before_natural_order() -> None:
    by_code, natural = sorted_maps(("c1", "c2", "c10"))
    assert by_code.outputs == (0, 2, 1)
    assert natural.outputs == (0, 1, 2)
    assert len(sorted_maps(("a", "b"))) == 1


def test_majority_needs_half_of_every_folder_and_an_output_each() -> None:
    labels = np.array([0, 0, 1, 1])
    half = majority_map(np.array([3, 0, 2, 2]), labels, 2)
    assert half is not None
    assert half.outputs == (0, 2)  # a tie within a folder takes the lower output
    assert majority_map(np.array([3, 3, 3, 3]), labels, 2) is None
    assert majority_map(np.array([0, 1, 2, 3, 4]), np.array([0, 0, 0, 1, 1]), 2) is None
    assert majority_map(np.array([0, 0, 1, 1]), labels, 3) is None


def test_agreement_counts_an_output_for_one_folder_only() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    assert distinct_agreement(np.array([4, 4, 4, 4, 4]), labels) == 3
    assert distinct_agreement(np.array([4, 4, 2, 2, 2]), labels) == 4


def test_contradiction_needs_a_majority_of_five_images() -> None:
    label_map = LabelMap(rule="x", outputs=(0, 1))
    labels = np.repeat([0, 1], [5, 4])
    outputs = np.array([2, 2, 2, 0, 0, 3, 3, 3, 3])
    (note,) = contradictions(label_map, outputs, labels, ("a", "b"))
    assert note == "60% of the images in 'a' lead to output 2, not to 0; check the folder's label"
    split = np.array([2, 2, 2, 0, 0, 0, 3, 3, 3, 3])
    assert contradictions(label_map, split, np.repeat([0, 1], [6, 4]), ("a", "b")) == ()


def test_a_constant_prediction_agrees_with_one_folder_at_most() -> None:
    labels = np.repeat([0, 1, 2], [5, 7, 4])
    assert most_agreement(np.full(16, 2), labels) == 7


def test_one_output_may_serve_one_folder_only() -> None:
    # Folder 0: three times output 0, once 1; folder 1: twice 0, twice 1. A map gets 3 + 2.
    outputs = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    assert most_agreement(outputs, np.repeat([0, 1], 4)) == 5


def test_no_map_agrees_more_than_the_bound_says() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        outputs, labels = generator.integers(5, size=30), generator.integers(3, size=30)
        best = max(
            int((np.array(to)[labels] == outputs).sum())
            for to in itertools.permutations(range(5), 3)
        )
        assert best <= most_agreement(outputs, labels) <= 30
