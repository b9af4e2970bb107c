from __future__ import annotations

import math

import pytest
import torch

from modelaudit.attacks.sig import SigAttack, SigConfig
from modelaudit.errors import ConfigError, ShapeError
from tests.helpers.attacks import random_images


def sig(*, size: int = 32, **config: object) -> SigAttack:
    return SigAttack(
        SigConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=5,
    )


@pytest.mark.parametrize("size", [32, 64, 224])
def test_column_j_moves_by_the_sine_of_six_periods(size: int) -> None:
    change = sig(size=size).trigger.apply(torch.full((1, 3, size, size), 127 / 255)) - 127 / 255
    for j in (0, 1, 2, 5, size - 1):
        expected = round(127 + 40 * math.sin(2 * math.pi * 6 * j / size)) - 127
        assert torch.allclose(change[0, :, :, j] * 255, torch.tensor(float(expected)), atol=1e-3)


def test_rows_and_channels_change_alike_and_column_zero_not_at_all() -> None:
    images = torch.full((2, 3, 32, 32), 0.5).mul(255).round() / 255
    change = sig().trigger.apply(images) - images
    assert (change == change[:1, :1, :1]).all()
    assert torch.equal(change[..., 0], torch.zeros(2, 3, 32))


def test_there_are_six_periods() -> None:
    signal = sig(size=64).trigger.state()["signal"]
    spectrum = torch.fft.rfft(signal).abs()
    assert int(spectrum.argmax()) == 6
    assert float(signal.max()) == pytest.approx(40 / 255, rel=0.02)


def test_amplitude_zero_is_the_identity() -> None:
    images = random_images()
    assert torch.allclose(sig(amplitude=0.0).trigger.apply(images), images, atol=1e-7)


def test_only_the_target_class_is_poisoned_and_keeps_its_label() -> None:
    attack = sig(target=3)
    labels = torch.arange(1000) % 10
    poison, cover = attack.plan.draw(labels)
    assert labels[poison].tolist() == [3] * 80
    assert len(cover) == 0
    assert not attack.plan.relabel
    assert not attack.label_map.test_eligible(torch.tensor([3])).any()


def test_wrong_image_size_raises() -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3, 32, 32\)"):
        sig().trigger.apply(random_images(size=16))


@pytest.mark.parametrize(
    ("field", "value"),
    [("amplitude", -1.0), ("cycles", 0.0), ("rate", 0.0), ("rate", 1.1), ("stage", "mid")],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SigConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
