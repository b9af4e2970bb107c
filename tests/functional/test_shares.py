from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modelaudit.errors import DtypeError, ShapeError
from modelaudit.functional.shares import (
    NO_ARROW,
    arrow_map,
    control_leads_as_far,
    error_concentration,
    is_permutation_like,
    off_class_counts,
    off_class_share,
)


def classes(*shape: int, num_classes: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_classes, shape, generator=generator)


def naive_shares(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float]:
    shares = []
    for t in range(num_classes):
        sent = [p == t for p, y in zip(predictions, labels, strict=True) if y != t]
        shares.append(sum(sent) / len(sent))
    return shares


def test_shares_equal_the_naive_loop() -> None:
    predictions, labels = classes(200, seed=1), classes(200, seed=2)
    got = off_class_share(predictions, labels, 7)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(naive_shares(predictions.numpy(), labels.numpy(), 7))


def test_batched_shares_equal_those_of_each_row() -> None:
    predictions, labels = classes(5, 60, seed=1), classes(60, seed=2)
    for function in (off_class_share, error_concentration):
        batched = function(predictions, labels, 7)
        assert batched.shape == (5, 7)
        rows = torch.stack([function(row, labels, 7) for row in predictions])
        assert torch.equal(batched, rows)
    successes, trials = off_class_counts(predictions, labels, 7)
    assert successes.shape == trials.shape == (5, 7)


def test_everything_sent_to_one_class_has_share_one() -> None:
    labels = classes(100, seed=3)
    assert off_class_share(torch.full((100,), 4), labels, 7).tolist() == [0, 0, 0, 0, 1, 0, 0]


def test_right_predictions_have_no_share_and_no_concentration() -> None:
    labels = classes(100, seed=3)
    assert off_class_share(labels, labels, 7).tolist() == [0.0] * 7
    assert error_concentration(labels, labels, 7).tolist() == [0.0] * 7


def test_counts_are_the_fractions_of_the_share() -> None:
    predictions, labels = classes(200, seed=1), classes(200, seed=2)
    successes, trials = off_class_counts(predictions, labels, 7)
    assert successes.dtype == trials.dtype == torch.int64
    assert torch.equal(successes / trials.double(), off_class_share(predictions, labels, 7))
    assert trials.tolist() == [int((labels != t).sum()) for t in range(7)]


def test_single_class_has_no_share_of_itself() -> None:
    labels = torch.full((10,), 2)
    predictions = torch.tensor([2] * 6 + [0] * 4)
    assert off_class_share(predictions, labels, 3).tolist() == [0.4, 0.0, 0.0]


def test_no_images_have_no_shares() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert off_class_share(empty, empty, 3).tolist() == [0.0] * 3
    assert error_concentration(empty, empty, 3).tolist() == [0.0] * 3
    arrows = arrow_map(empty, empty, 3)
    assert arrows.targets.tolist() == [NO_ARROW] * 3
    assert off_class_share(torch.zeros(4, 0, dtype=torch.int64), empty, 3).shape == (4, 3)


def test_concentration_is_the_histogram_of_wrong_predictions() -> None:
    predictions, labels = classes(200, seed=1), classes(200, seed=2)
    wrong = predictions[predictions != labels].numpy()
    expected = np.bincount(wrong, minlength=7) / len(wrong)
    got = error_concentration(predictions, labels, 7)
    assert got.tolist() == pytest.approx(expected.tolist())
    assert float(got.sum()) == pytest.approx(1.0)


def test_small_integer_dtypes_do_not_overflow() -> None:
    predictions, labels = classes(3, 90, num_classes=200), classes(90, num_classes=200, seed=1)
    narrow = off_class_share(predictions.to(torch.uint8), labels.to(torch.uint8), 200)
    assert torch.equal(narrow, off_class_share(predictions, labels, 200))
    arrows = arrow_map(predictions.to(torch.uint8), labels.to(torch.uint8), 200)
    assert torch.equal(arrows.targets, arrow_map(predictions, labels, 200).targets)


def test_arrows_equal_the_naive_loop() -> None:
    predictions, labels = classes(300, seed=4), classes(300, seed=5)
    arrows = arrow_map(predictions, labels, 7)
    for c in range(7):
        wrong = predictions[(labels == c) & (predictions != c)].numpy()
        histogram = np.bincount(wrong, minlength=7)
        assert int(arrows.targets[c]) == int(histogram.argmax())
        assert float(arrows.shares[c]) == pytest.approx(histogram.max() / histogram.sum())
        assert int(arrows.errors[c]) == len(wrong)


def test_arrows_of_a_batch_count_all_rows() -> None:
    predictions, labels = classes(4, 50, seed=4), classes(50, seed=5)
    together = arrow_map(predictions, labels, 7)
    flat = arrow_map(predictions.flatten(), labels.repeat(4), 7)
    assert torch.equal(together.targets, flat.targets)
    assert torch.equal(together.shares, flat.shares)
    assert torch.equal(together.errors, flat.errors)


def test_class_without_errors_has_no_arrow() -> None:
    arrows = arrow_map(torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 2]), 4)
    assert arrows.targets.tolist() == [NO_ARROW, NO_ARROW, 0, NO_ARROW]
    assert arrows.shares.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert arrows.errors.tolist() == [0, 0, 1, 0]


def arrows_to(targets: list[int], wrong_of_ten: int = 6) -> tuple[Tensor, Tensor]:
    """Ten images per class, `wrong_of_ten` of which go to the class's target."""
    labels = torch.arange(len(targets)).repeat_interleave(10)
    predictions = labels.clone()
    for c, target in enumerate(targets):
        predictions[10 * c : 10 * c + wrong_of_ten] = target
    return predictions, labels


def test_next_class_map_is_permutation_like() -> None:
    targets = [(c + 1) % 10 for c in range(10)]
    assert is_permutation_like(arrow_map(*arrows_to(targets), 10))
    targets[3] = targets[4]  # one collision of ten
    assert is_permutation_like(arrow_map(*arrows_to(targets), 10))


def test_all_to_one_map_is_not_permutation_like() -> None:
    assert not is_permutation_like(arrow_map(*arrows_to([0] * 10), 10))


def test_several_collisions_are_not_permutation_like() -> None:
    targets = [(c + 1) % 10 for c in range(10)]
    targets[2] = targets[3] = targets[4] = 0
    arrows = arrow_map(*arrows_to(targets), 10)
    assert not is_permutation_like(arrows)
    assert is_permutation_like(arrows, max_collision_fraction=0.4)


def test_scattered_errors_are_not_permutation_like() -> None:
    labels = torch.arange(10).repeat_interleave(9)
    predictions = (labels + torch.arange(1, 10).repeat(10)) % 10
    arrows = arrow_map(predictions, labels, 10)
    assert arrows.shares.tolist() == pytest.approx([1 / 9] * 10)
    assert not is_permutation_like(arrows)
    targets = arrow_map(*arrows_to([(c + 1) % 10 for c in range(10)]), 10)
    assert not is_permutation_like(targets, min_mean_share=1.01)


def test_model_without_errors_or_with_two_classes_is_not_permutation_like() -> None:
    labels = torch.arange(10)
    assert not is_permutation_like(arrow_map(labels, labels, 10))
    assert not is_permutation_like(arrow_map(labels, labels, 10), min_mean_share=0.0)
    assert not is_permutation_like(arrow_map(*arrows_to([1, 0]), 2))


def test_indices_outside_the_classes_raise() -> None:
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 3])
    for function in (off_class_share, error_concentration, arrow_map, off_class_counts):
        with pytest.raises(ValueError, match="predictions must be class indices from 0 to 2"):
            function(bad, good, 3)
        with pytest.raises(ValueError, match="labels must be class indices"):
            function(good, -bad, 3)
        with pytest.raises(ValueError, match="num_classes must be at least 1"):
            function(good, good, 0)


def test_other_shapes_and_dtypes_raise() -> None:
    labels = torch.tensor([0, 1])
    for function in (off_class_share, error_concentration, arrow_map, off_class_counts):
        with pytest.raises(ShapeError, match=r"predictions must have shape \(N,\) or \(R, N\)"):
            function(torch.tensor([0, 1, 2]), labels, 3)
        with pytest.raises(ShapeError, match=r"predictions must have shape \(N,\) or \(R, N\)"):
            function(torch.zeros(1, 1, 2, dtype=torch.int64), labels, 3)
        with pytest.raises(ShapeError, match="labels must have 1 dimension"):
            function(labels, labels.unsqueeze(0), 3)
        with pytest.raises(DtypeError, match="predictions must be an integer tensor"):
            function(labels.float(), labels, 3)
        with pytest.raises(DtypeError, match="labels must be an integer tensor"):
            function(labels, labels.bool(), 3)


@pytest.mark.parametrize(
    ("control", "lower", "is_as_far"),
    [
        (0.79, 1.0, False),
        (0.8, 1.0, True),
        (0.92, 0.99, True),
        (0.45, 0.6, False),
        (1.0, 0.0, True),
    ],
)
def test_a_control_is_as_good_from_four_fifths_of_the_push_on(
    control: float, lower: float, *, is_as_far: bool
) -> None:
    assert control_leads_as_far(control, lower) == is_as_far
