from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from modelaudit.attacks.base import Batch
from modelaudit.attacks.iad import IadAttack, IadConfig
from modelaudit.attacks.input_aware import InputAwareTrigger, diversity_loss
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images

if TYPE_CHECKING:
    from torch import Tensor


class Constant(nn.Module):
    """Puts out one value everywhere, as a network would."""

    def __init__(self, value: float, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return self.value.expand(len(images), self.channels, *images.shape[2:])


def iad(*, size: int = 16, **config: object) -> IadAttack:
    values = {"widths": (4, 8), **config}
    return IadAttack(
        IadConfig(**values),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=10,
        seed=5,
    )


def constant(pattern: float, mask: float) -> InputAwareTrigger:
    trigger = iad().trigger
    trigger.pattern_net = Constant(pattern, 3)  # type: ignore[assignment]  # a test's stub
    trigger.mask_net = Constant(mask, 1)  # type: ignore[assignment]  # a test's stub
    return trigger


def batch_of(images: Tensor, *, n_poison: int, n_cover: int) -> Batch:
    places = torch.arange(len(images))
    return Batch(
        images=images,
        labels=places % 10,
        indices=places,
        is_poison=places < n_poison,
        is_cover=(places >= n_poison) & (places < n_poison + n_cover),
    )


@pytest.mark.parametrize(("raw", "mask"), [(0.45, 0.1192), (0.5, 0.5), (0.55, 0.8808)])
def test_mask_is_a_steep_tanh_of_the_network(raw: float, mask: float) -> None:
    masks = constant(0.5, raw).masks(random_images(2, size=16))
    assert masks.shape == (2, 1, 16, 16)
    torch.testing.assert_close(masks, torch.full_like(masks, mask), atol=1e-4, rtol=0.0)


def test_trigger_mixes_pattern_and_image_by_the_mask() -> None:
    images = torch.full((1, 3, 16, 16), 0.2)
    # 0.2 + (0.8 - 0.2) * 0.5 = 0.5, which rounds to 128/255 (half to even).
    mixed = constant(0.8, 0.5).apply(images)
    assert torch.equal(mixed, torch.full_like(images, 128 / 255))


def test_rounding_passes_gradients_to_the_pattern_and_none_to_the_mask() -> None:
    trigger = constant(0.8, 0.5)
    triggered, _ = trigger.mix(torch.full((1, 3, 2, 2), 0.2), torch.zeros(1, 3, 2, 2))
    triggered.sum().backward()
    pattern, mask = trigger.pattern_net.value, trigger.mask_net.value  # stubs
    assert float(pattern.grad) == pytest.approx(12 * 0.5)  # type: ignore[arg-type, union-attr]
    assert mask.grad is None  # type: ignore[union-attr]


def test_cover_takes_pattern_and_mask_of_the_donor() -> None:
    trigger = iad().trigger
    images, donors = random_images(3, size=16, seed=1), random_images(3, size=16, seed=2)
    trigger.pattern_net.eval()
    with torch.no_grad():
        patterns, masks = trigger.pattern_net(donors), trigger.masks(donors)
    expected = images + (patterns - images) * masks
    torch.testing.assert_close(
        trigger.cover(images, donors=donors), expected, atol=0.51 / 255, rtol=0.0
    )
    with pytest.raises(ConfigError, match="needs donors"):
        trigger.cover(images)


def test_diversity_equals_a_loop_over_the_items() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 5, 5, generator=generator)
    y = torch.rand(4, 1, 5, 5, generator=generator)
    ratios = []
    for i in range(4):
        apart = float((x[i] - x[i - 1]).square().mean().sqrt())
        made = float((y[i] - y[i - 1]).square().mean().sqrt())
        ratios.append(apart / (made + 1e-7))
    assert float(diversity_loss(x, y)) == pytest.approx(sum(ratios) / 4, rel=1e-5)


def test_equal_outputs_have_a_finite_gradient() -> None:
    outputs = torch.zeros(3, 1, 4, 4, requires_grad=True)
    diversity_loss(random_images(3, size=4), outputs).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_mask_network_learns_sparse_masks_that_differ() -> None:
    attack = iad(size=8, widths=(4,), mask_epochs=3, mask_batch_size=8, mask_rate=0.02)
    images = (random_images(800, size=8) * 255.0).to(torch.uint8)
    unseen = random_images(50, size=8, seed=9)
    with torch.no_grad():
        before = attack.trigger.masks(unseen).mean()
    attack.prepare(
        images, torch.zeros(800), surrogate=None, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        masks = attack.trigger.masks(unseen)
    assert before > 0.1
    assert masks.mean() <= 0.05
    assert diversity_loss(unseen, masks) < 10.0


def test_preparation_trains_on_as_many_images_as_asked() -> None:
    attack = iad(mask_epochs=1, mask_batch_size=4, mask_images=8)
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    attack.prepare(images, torch.zeros(40), surrogate=None, generator=torch.Generator())
    counts = {
        int(t) for n, t in attack.trigger.state().items() if n.endswith("num_batches_tracked")
    }
    assert counts == {0, 2}


def test_trigger_does_not_depend_on_the_batch_size_after_training() -> None:
    attack = iad()
    images = random_images(128, size=16)
    attack.on_batch(batch_of(images, n_poison=12, n_cover=12))  # leaves G in training mode
    whole = attack.trigger.apply(images)
    single = torch.cat([attack.trigger.apply(image[None]) for image in images])
    # Sums in another order may round to the next step, on hardly any pixel.
    assert (whole - single).abs().max() <= 1 / 255 + 1e-6
    assert (whole != single).double().mean() < 1e-3


def test_classifiers_loss_reaches_the_pattern_network_only() -> None:
    attack = iad(diversity=0.0)
    poisoned = attack.on_batch(batch_of(random_images(20, size=16), n_poison=2, n_cover=2))
    assert poisoned.auxiliary_loss is None
    weights = torch.randn(768, 10, generator=torch.Generator().manual_seed(0))
    cross_entropy(poisoned.images.flatten(1) @ weights, poisoned.labels).backward()
    assert all(p.grad is not None for p in attack.trigger.pattern_net.parameters())
    assert all(p.grad is None for p in attack.trigger.mask_net.parameters())


def test_diversity_is_part_of_the_loss() -> None:
    batch = batch_of(random_images(20, size=16), n_poison=2, n_cover=2)
    one, two = (iad(diversity=weight).on_batch(batch).auxiliary_loss for weight in (1.0, 3.0))
    assert one is not None
    assert two is not None
    torch.testing.assert_close(two, 3.0 * one)


def test_all_to_all_shifts_the_labels_of_the_first_images() -> None:
    batch = batch_of(random_images(20, size=16), n_poison=3, n_cover=2)
    labels = iad(label_map="all").on_batch(batch).labels
    assert labels.tolist() == [1, 2, 3, *(i % 10 for i in range(3, 20))]


def test_generators_rate_falls_as_half_a_cosine() -> None:
    rate = iad(generator_rate=0.02).extra_optimisers()["pattern_net"].rate
    assert rate(0.0) == pytest.approx(0.02)
    assert rate(0.5) == pytest.approx(0.01)
    assert rate(1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_map", "source"),
        ("rate", 0.0),
        ("cross_rate", 0.95),
        ("mask_epochs", 0),
        ("mask_images", 0),
        ("mask_rate", 0.0),
        ("mask_batch_size", 1),
        ("mask_density", 1.5),
        ("generator_rate", -1.0),
        ("diversity", -1.0),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        IadConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_paper_is_the_default() -> None:
    config = IadConfig()
    assert config.widths == (32, 64, 128)
    assert (config.rate, config.cross_rate, config.mask_density) == (0.1, 0.1, 0.032)
    assert (config.mask_epochs, config.mask_rate, config.generator_rate) == (25, 0.01, 0.01)
