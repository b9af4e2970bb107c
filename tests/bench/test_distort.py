from __future__ import annotations

import pytest
import torch

from modelaudit.bench.distort import (
    DISTORTIONS,
    color_jitter,
    polar_warp,
    salt_and_pepper,
    snow,
    turned_hue,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand((channels, height, width), generator=generator(7))


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 64), (3, 8, 8)])
def test_every_distortion_stays_in_range_changes_pixels_and_follows_its_generator(
    name: str, shape: tuple[int, int, int]
) -> None:
    image = picture(*shape)
    before = image.clone()
    for seed in range(4):
        out = DISTORTIONS[name](image, generator(seed))
        expected = (shape[0], shape[2], shape[1]) if name == "color_jitter" else shape
        assert out.shape == expected
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1
        assert torch.equal(out, DISTORTIONS[name](image, generator(seed)))
    assert not torch.equal(out, DISTORTIONS[name](image, generator(99)))
    assert torch.equal(image, before)


def test_jitter_turns_by_ninety_degrees() -> None:
    image = torch.zeros(3, 16, 16)
    image[:, 0, :] = 1.0
    out = color_jitter(image, generator())
    # The white top row ends as the left column; black stays darker than white.
    assert out[:, :, 0].mean() > out[:, :, 1:].mean() + 0.2


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.45])
def test_hue_turns_as_in_the_library_that_the_paper_used(turn: float) -> None:
    from torchvision.transforms import functional

    image = picture()
    image[:, 0, 0] = 0.5
    assert torch.allclose(turned_hue(image, turn), functional.adjust_hue(image, turn), atol=1e-5)


def test_jitter_is_the_librarys_changes_in_the_drawn_order() -> None:
    from torchvision.transforms import functional

    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    for seed in range(6):
        draws = generator(seed)
        amounts = (torch.rand(4, generator=draws) - 0.5).tolist()
        expected = picture()
        for index in torch.randperm(4, generator=draws).tolist():
            expected = changes[index](expected, amounts[index] + (index != 3))
        found = color_jitter(picture(), generator(seed))
        assert torch.allclose(found, expected.rot90(1, (1, 2)), atol=1e-5)


def test_pepper_covers_three_tenths_of_the_cells_with_black_and_white() -> None:
    image = torch.full((3, 64, 64), 0.4)
    shares, whites = [], []
    for seed in range(60):
        out = salt_and_pepper(image, generator(seed))
        covered = out != 0.4
        assert set(out[covered].unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(out[0], out[1])
        shares.append(float(covered.float().mean()))
        whites.append(float(out[covered].mean()) if covered.any() else 0.5)
    assert sum(shares) / 60 == pytest.approx(0.3, abs=0.05)
    assert sum(whites) / 60 == pytest.approx(0.5, abs=0.05)


def test_warp_without_translation_is_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelaudit.bench.distort._TRANSLATION", 0.0)
    image = picture()
    assert torch.allclose(polar_warp(image, generator()), image, atol=1e-5)


def test_warp_of_rings_moves_them_outward_or_inward_only() -> None:
    side = torch.arange(65) - 32.0
    radius = torch.hypot(side[:, None], side[None, :])
    ring = ((radius > 15) & (radius < 18)).float().expand(3, -1, -1)
    for seed in range(5):
        out = polar_warp(ring, generator(seed))[0]
        bright = radius[out > 0.5]
        assert bright.numel()
        # A ring stays a ring, at another radius.
        assert bright.max() - bright.min() < 5


def test_snow_only_brightens_and_falls_on_part_of_the_image() -> None:
    image = picture()
    for seed in range(5):
        out = snow(image, generator(seed))
        assert (out >= image - 1e-6).all()
        brightened = ((out - image).amax(0) > 0.05).float().mean()
        assert 0.0 < brightened < 0.9
