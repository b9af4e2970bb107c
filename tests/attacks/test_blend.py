from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.blend import BlendConfig, BlendTrigger
from modelaudit.errors import ConfigError, ShapeError
from tests.helpers.attacks import blend, random_images


def test_change_is_alpha_times_the_distance_to_the_pattern() -> None:
    trigger = blend(alpha=0.2).trigger
    images = random_images()
    expected = 0.2 * (trigger.state()["pattern"] - images)
    assert (trigger.apply(images) - images - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_alpha_zero_is_the_identity() -> None:
    images = random_images()
    assert torch.allclose(blend(alpha=0.0).trigger.apply(images), images, atol=1e-7)


def test_alpha_one_is_the_pattern() -> None:
    trigger = blend(alpha=1.0).trigger
    triggered = trigger.apply(random_images(2))
    assert torch.allclose(triggered, trigger.state()["pattern"].expand(2, -1, -1, -1), atol=1e-6)


def test_pattern_is_uniform_noise_of_the_seed() -> None:
    one, same, other = (blend(seed=s).trigger for s in (1, 1, 2))
    assert one.state_hash() == same.state_hash() != other.state_hash()
    pattern = one.state()["pattern"] * 255
    assert abs(float(pattern.mean()) - 127.5) < 5
    assert abs(float(pattern.std()) - 74.0) < 3


def test_loaded_state_makes_the_same_trigger() -> None:
    trigger, other = blend(seed=1, alpha=0.1).trigger, blend(seed=2, alpha=0.4).trigger
    other.load(trigger.state())
    images = random_images()
    assert torch.equal(other.apply(images), trigger.apply(images))


def test_wrong_image_size_raises() -> None:
    with pytest.raises(ShapeError, match="expected images"):
        blend().trigger.apply(random_images(size=16))


def test_state_of_another_shape_is_refused() -> None:
    trigger = blend().trigger
    with pytest.raises(ConfigError, match="the trigger needs"):
        trigger.load(BlendTrigger(torch.zeros(3, 8, 8), alpha=0.2).state())


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -0.1), ("alpha", 1.1), ("stage", "mid"), ("rate", 2.0)]
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        BlendConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_target_beyond_the_classes_raises() -> None:
    with pytest.raises(ConfigError, match="target"):
        blend(target=10)
