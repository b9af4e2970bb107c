"""Stand-ins for a trigger: what they do to an image, and their search."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.preprocessing import Preprocessing
from modelaudit.repairs.stand_ins import WARP_POINTS, Patch, Warp, search_patch, search_warp
from modelaudit.suspect import Suspect, state_digest
from tests.helpers.planted import TARGET, pattern_images, trained
from tests.helpers.training import backdoored, copy_of


def stand_in_of(
    suspect: Suspect, *, price: float, seed: int = 0, steps: int = 60, start: Patch | None = None
) -> Patch:
    """Search one that leads to the planted target."""
    pictures, truth = pattern_images(200, 8)
    away = truth != TARGET
    return search_patch(
        suspect,
        pictures[away],
        torch.full((int(away.sum()),), TARGET),
        steps=steps,
        batch=32,
        price=price,
        dtype=None,
        generator=torch.Generator().manual_seed(seed),
        start=start,
    )


def test_a_stand_in_mixes_by_its_mask() -> None:
    mask = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
    found = Patch(mask=mask, pattern=torch.full((1, 3, 2, 2), 0.8))
    under = found.put_on(torch.full((2, 3, 2, 2), 0.4))
    torch.testing.assert_close(under[1, 2], torch.tensor([[0.4, 0.5], [0.6, 0.8]]))
    assert found.extent == 1.75


def test_a_backdoor_takes_fewer_pixels() -> None:
    planted, clean = (stand_in_of(trained(is_backdoored=b), price=20.0) for b in (True, False))
    assert planted.success > 0.9
    assert planted.extent < 0.8 * clean.extent


def test_what_is_not_worth_its_price_fades() -> None:
    found = stand_in_of(backdoored(), price=1000.0)
    assert found.success < 0.1
    assert found.extent < 1


def test_a_search_goes_on_from_a_patch_and_from_masks_that_are_saturated() -> None:
    found = stand_in_of(backdoored(), price=20.0)
    kept = stand_in_of(backdoored(), price=20.0, steps=0, start=found)
    torch.testing.assert_close(kept.mask, found.mask, rtol=0, atol=1.1e-3)
    torch.testing.assert_close(kept.pattern, found.pattern, rtol=0, atol=1.1e-3)
    hard = Patch(mask=(found.mask > 0.5).float(), pattern=found.pattern.round())
    further = stand_in_of(backdoored(), price=20.0, steps=20, start=hard)
    assert bool(further.mask.isfinite().all())
    assert bool(((further.mask - hard.mask).abs() > 0.01).any())
    assert further.success > 0.8


def test_a_search_leaves_the_model_as_it_is() -> None:
    suspect = copy_of(backdoored())
    before = state_digest(suspect.module)
    stand_in_of(suspect, price=20.0)
    assert state_digest(suspect.module) == before
    assert all(p.grad is None and p.requires_grad for p in suspect.module.parameters())
    assert suspect.passes.forward_backward == 60 * 32


def flow_of(x: float, y: float, points: int = 4) -> Tensor:
    """Return a flow that looks aside alike everywhere."""
    return torch.tensor([float(x), float(y)])[None, :, None, None].expand(1, 2, points, points)


def test_a_warp_shows_what_lies_aside() -> None:
    picture = torch.rand((2, 3, 6, 8), generator=torch.Generator().manual_seed(0))
    right = Warp(flow=flow_of(1 / 8, 0), side=8)
    torch.testing.assert_close(right.put_on(picture)[..., :-1], picture[..., 1:])
    torch.testing.assert_close(right.put_on(picture)[..., -1], picture[..., -1])
    down = Warp(flow=flow_of(0, 0.5 / 6), side=8)
    between = (picture[..., :-1, :] + picture[..., 1:, :]) / 2
    torch.testing.assert_close(down.put_on(picture)[..., :-1, :], between)
    torch.testing.assert_close(Warp(flow=flow_of(0, 0), side=8).put_on(picture), picture)


def test_the_extent_of_a_warp_is_its_mean_displacement() -> None:
    flow = torch.tensor([[[[0.0, 0.1]], [[-0.3, 0.0]]]])
    assert Warp(flow=flow, side=10).extent == pytest.approx(1.0)
    assert str(Warp(flow=flow, side=10)) == "a warp by 1.0 pixels"


class Line(nn.Module):
    """Sees class 1 where the bright column is `place`, class 0 elsewhere."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, images: Tensor) -> Tensor:
        there = images[..., self.place].mean((1, 2))
        return torch.stack([torch.full_like(there, 0.5), there], 1) * 20


def lines(place: int) -> tuple[Suspect, Tensor]:
    """Return the net, and images with a line at column 4 on various ground."""
    ground = torch.rand((40, 1, 1, 1), generator=torch.Generator().manual_seed(1)) * 0.3
    pictures = ground.expand(-1, 3, 16, 16).clone()
    pictures[..., 4] = 1.0
    suspect = Suspect(
        Line(place).eval(),
        preprocessing=Preprocessing(id="none", mean=(0.0,) * 3, std=(1.0,) * 3),
        input_size=16,
        input_channels=3,
        num_classes=2,
        device=torch.device("cpu"),
    )
    return suspect, pictures


def warp_to(place: int, *, limit: float) -> Warp:
    suspect, pictures = lines(place)
    return search_warp(
        suspect,
        pictures,
        torch.ones(40, dtype=torch.int64),
        steps=40,
        batch=16,
        limit=limit,
        dtype=None,
        generator=torch.Generator().manual_seed(0),
    )


def farthest(warp: Warp) -> float:
    """Return how many pixels a point is moved by at most, as a ramp of columns shows it."""
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    return float((warp.put_on(ramp) - ramp)[..., 2:-2].abs().max()) * 15


def test_a_warp_finds_what_a_shift_leads_to_within_its_limit() -> None:
    found = warp_to(5, limit=1.5 / 16)
    assert found.success == 1.0
    assert found.flow.shape == (1, 2, WARP_POINTS, WARP_POINTS)
    assert not found.flow.requires_grad
    assert 1.0 < farthest(found) <= 1.5 + 1e-4


def test_between_its_points_a_warp_moves_no_further_than_at_them() -> None:
    flow = (torch.randn((1, 2, 8, 8), generator=torch.Generator().manual_seed(3)) * 5).tanh() / 16
    assert farthest(Warp(flow=flow, side=16)) <= 1 + 1e-4


@pytest.mark.parametrize("limit", [0.1, 0.2])
def test_what_lies_beyond_the_limit_is_not_reached(limit: float) -> None:
    assert warp_to(5, limit=limit / 16).success == 0.0
