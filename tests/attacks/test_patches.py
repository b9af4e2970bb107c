from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.badnets import CHECKER
from modelaudit.attacks.patches import checker, corner_checkers, corner_patch_size
from modelaudit.errors import ConfigError


@pytest.mark.parametrize(("size", "side"), [(32, 3), (64, 5), (224, 21), (16, 3), (96, 9)])
def test_corner_patches_scale_with_the_image(size: int, side: int) -> None:
    assert corner_patch_size((size, 2 * size)) == side


def test_checker_of_three_is_the_published_one_and_six_doubles_its_cells() -> None:
    assert checker(3).tolist() == [list(row) for row in CHECKER]
    assert checker(6)[::2, ::2].tolist() == [list(row) for row in CHECKER]
    assert torch.equal(checker(6)[::2], checker(6)[1::2])


def test_checker_of_five_has_cells_of_two_two_and_one() -> None:
    assert checker(5)[0].tolist() == [0, 0, 0, 0, 1]
    assert checker(5)[2].tolist() == [0, 0, 1, 1, 0]
    assert checker(5)[4].tolist() == [1, 1, 0, 0, 1]


def test_corners_are_the_checker_at_the_right_and_its_mirror_image_at_the_left() -> None:
    pattern, is_patch = corner_checkers((3, 32, 40), side=3)
    published = torch.tensor(CHECKER)
    for rows in (slice(0, 3), slice(29, 32)):
        assert torch.equal(pattern[1, rows, 37:], published)
        assert torch.equal(pattern[1, rows, :3], published.flip(1))
    assert int(is_patch.sum()) == 36
    assert torch.equal(pattern, pattern.flip(2))
    assert torch.equal(is_patch, is_patch.flip(1))
    assert not pattern[:, ~is_patch].any()


@pytest.mark.parametrize("side", [2, 5])
def test_patches_that_do_not_fit_raise(side: int) -> None:
    with pytest.raises(ConfigError, match="patch_size"):
        corner_checkers((3, 8, 9), side=side)
