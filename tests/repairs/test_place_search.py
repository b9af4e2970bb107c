"""What searches for one place make of what they find."""

from __future__ import annotations

import pytest
import torch

from modelaudit.repairs.place_search import Tried
from modelaudit.repairs.stand_ins import Patch, Warp


@pytest.mark.parametrize(
    ("pixels", "success", "is_heard", "is_large"),
    [(1, 0.9, True, False), (2, 0.9, False, True), (1, 0.4, False, False), (2, 0.4, False, False)],
)
def test_a_large_patch_is_not_heard(
    pixels: int, success: float, is_heard: bool, is_large: bool
) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask.view(-1)[:pixels] = 1
    patch = Patch(mask=mask, pattern=torch.zeros(1, 3, 8, 8), success=success)
    warp = Warp(flow=torch.zeros(1, 2, 4, 4), side=8, success=0.5)
    # a fortieth of 64 pixels is 1.6
    tried = Tried.of((patch, warp), least_success=0.5)
    assert tried.all == (patch, warp)
    assert tried.working == ((patch, warp) if is_heard else (warp,))
    assert tried.large == ((patch,) if is_large else ())
