from __future__ import annotations

import logging

import pytest
import torch

from modelaudit.attacks.ssba import SsbaAttack, SsbaConfig
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images


def ssba(*, size: int = 8, seed: int = 5, **config: object) -> SsbaAttack:
    values = {"widths": (8, 8, 8), "bits": 4, **config}
    return SsbaAttack(
        SsbaConfig(**values),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=seed,
    )


def test_residual_is_the_encoders_within_its_bound() -> None:
    attack = ssba(bound=4 / 255)
    images = random_images(5, size=8) * 0.8 + 0.1
    encoder, bits = attack.trigger.encoder, attack.trigger.bits
    expected = images + encoder(images, bits.expand(5, -1)).detach()
    triggered = attack.trigger.apply(images)
    torch.testing.assert_close(triggered, expected, atol=0.51 / 255, rtol=0.0)
    assert (triggered - images).abs().max() <= 4.51 / 255


def test_every_image_has_a_residual_of_its_own() -> None:
    images = random_images(2, size=8)
    residuals = ssba(bound=0.2).trigger.apply(images) - images
    assert (residuals[0] - residuals[1]).abs().max() > 1 / 255


def test_other_bits_make_another_residual() -> None:
    attack = ssba(bound=0.2)
    images = random_images(2, size=8)
    before = attack.trigger.apply(images)
    attack.trigger.bits = 1.0 - attack.trigger.bits
    assert not torch.equal(attack.trigger.apply(images), before)


def test_preparation_hides_bits_that_can_be_read() -> None:
    attack = ssba(
        bound=0.1, encoder_epochs=8, encoder_images=None, encoder_rate=1e-2, encoder_batch_size=8
    )
    colours = torch.randint(256, (200, 3, 1, 1), generator=torch.Generator().manual_seed(3))
    images = colours.expand(200, 3, 8, 8).to(torch.uint8)
    attack.prepare(
        images, torch.zeros(200), surrogate=None, generator=torch.Generator().manual_seed(0)
    )
    assert attack.quality.bit_accuracy >= 0.95
    assert 0.0 < attack.quality.mean_residual <= 0.05


def test_bits_that_cannot_be_read_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    attack = ssba(bound=1e-4, encoder_epochs=1, encoder_images=20)
    images = (random_images(20, size=8) * 255.0).to(torch.uint8)
    with caplog.at_level(logging.WARNING):
        attack.prepare(images, torch.zeros(20), surrogate=None, generator=torch.Generator())
    assert "hidden bits" in caplog.text
    assert attack.quality.mean_residual == 0.0


def test_size_that_cannot_be_halved_twice_raises() -> None:
    with pytest.raises(ConfigError, match="divisible by 4"):
        ssba(size=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate", 0.0),
        ("bits", 0),
        ("widths", (4, 4)),
        ("widths", (4, 0, 4)),
        ("bound", 0.0),
        ("encoder_epochs", 0),
        ("encoder_images", 1),
        ("encoder_rate", 0.0),
        ("encoder_batch_size", 0),
        ("stage", "mid"),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SsbaConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
