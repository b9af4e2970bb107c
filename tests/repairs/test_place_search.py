"""What searches for one place make of what they find."""

from __future__ import annotations

import pytest
import torch

from modelaudit.repairs.place_search import Tried
from modelaudit.repairs.stand_ins import Patch, Warp


@pytest.mark.parametrize(
    ("pixels", "success", "warped", "is_heard"),
    [(3, 0.9, 0.5, True), (1, 0.9, 1.0, True), (3, 0.9, 0.9, False), (3, 0.9, None, True)],
)
def test_a_large_patch_is_not_heard_beside_a_warp_that_leads_as_many(
    pixels: int, success: float, warped: float | None, is_heard: bool
) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask.view(-1)[:pixels] = 1
    patch = Patch(mask=mask, pattern=torch.zeros(1, 3, 8, 8), success=success)
    warp = Warp(flow=torch.zeros(1, 2, 4, 4), side=8, success=warped or 0.0)
    # a fortieth of 64 pixels is 1.6
    tried = Tried.of((patch,) if warped is None else (patch, warp), least_success=0.5)
    assert (patch in tried.working) is is_heard
    assert tried.large == (() if is_heard else (patch,))
    assert (warp in tried.working) is (warped is not None)
