from __future__ import annotations

import torch

from modelaudit.attacks.pictures import colour_patch, natural_picture


def picture(seed: int = 0, **options: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return natural_picture((3, 64, 64), generator=generator, **options)


def test_picture_uses_the_whole_range_in_steps_of_8_bits() -> None:
    image = picture()
    assert image.shape == (3, 64, 64)
    assert float(image.min()) < 0.05 < 0.95 < float(image.max())
    assert ((image.mean((1, 2)) - 0.5).abs() < 0.05).all()
    assert ((image.std((1, 2)) - 0.289).abs() < 0.04).all()
    assert torch.allclose(image * 255, (image * 255).round(), atol=1e-4)


def test_neighbours_are_alike_and_more_so_with_a_larger_exponent() -> None:
    def roughness(image: torch.Tensor) -> float:
        return float((image[:, :, 1:] - image[:, :, :-1]).square().mean() / image.var())

    noise, photograph, smooth = (picture(exponent=e) for e in (0.0, 1.0, 2.0))
    assert abs(roughness(noise) - 2.0) < 0.1
    assert roughness(smooth) < roughness(photograph) / 2 < 0.5


def test_power_falls_with_frequency_at_the_given_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    image = natural_picture((1, 256, 256), generator=generator, exponent=1.0)
    power = torch.fft.fft2(image - image.mean())[0].abs().square()
    frequency = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(256)] * 2, indexing="ij"))
    low = power[(frequency > 0.02) & (frequency < 0.03)].mean()
    high = power[(frequency > 0.2) & (frequency < 0.3)].mean()
    # Ten times the frequency: a tenth of the amplitude, a hundredth of the power.
    assert 60 < float(low / high) < 170


def test_share_of_common_variance_sets_how_grey_it_is() -> None:
    grey, colourful = picture(shared=1.0), picture(shared=0.0)
    assert torch.equal(grey[0], grey[1])
    assert float((colourful[0] - colourful[1]).abs().mean()) > 0.2


def test_pictures_follow_the_generator() -> None:
    assert torch.equal(picture(1), picture(1))
    assert not torch.equal(picture(1), picture(2))


def test_colour_patch_is_the_sigmoid_of_normal_noise() -> None:
    patch = colour_patch((3, 40, 40), generator=torch.Generator().manual_seed(0))
    logits = torch.logit(patch.clamp(1e-3, 1 - 1e-3))
    assert abs(float(logits.mean())) < 0.05
    assert abs(float(logits.std()) - 1.0) < 0.05
