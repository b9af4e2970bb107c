from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from modelaudit.attacks import clb as clb_module
from modelaudit.attacks.base import Batch
from modelaudit.attacks.clb import ClbAttack, ClbConfig, CornersTrigger, perturb
from modelaudit.bench.batches import augment, prepare_batch
from modelaudit.errors import ConfigError
from tests.helpers.attacks import random_images

LABELS = torch.arange(40) % 4
IMAGES = (random_images(40, size=16, seed=3) * 255).round().to(torch.uint8)
WEIGHTS = torch.randn(3 * 16 * 16, 4, generator=torch.Generator().manual_seed(0))


def surrogate(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) @ WEIGHTS


def clb(**config: object) -> ClbAttack:
    return ClbAttack(
        ClbConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, 16, 16),
        num_classes=4,
        seed=5,
    )


def prepared(**config: object) -> ClbAttack:
    attack = clb(**config)
    attack.prepare(IMAGES, LABELS, surrogate=surrogate, generator=torch.Generator())
    return attack


def off_the_corners() -> torch.Tensor:
    is_inner = torch.ones(16, 16, dtype=torch.bool)
    is_inner[:3, :3] = is_inner[:3, 13:] = is_inner[13:, :3] = is_inner[13:, 13:] = False
    return is_inner


def test_one_step_goes_along_the_sign_of_the_gradient() -> None:
    images = torch.full((1, 3, 16, 16), 0.5)
    label = torch.tensor([2])
    moved = perturb(images, label, surrogate, epsilon=0.1, step_size=0.03, steps=1)
    probabilities = surrogate(images).softmax(1)
    gradient = WEIGHTS @ (probabilities[0] - torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert torch.allclose(moved, images + 0.03 * gradient.sign().view(1, 3, 16, 16))


def test_steps_are_projected_onto_the_ball_and_the_range() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    moved = perturb(images, torch.tensor([1]), surrogate, epsilon=0.1, step_size=0.07, steps=4)
    assert float((moved - images).abs().max()) <= 0.1 + 1e-6
    assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 1.0
    # Two steps of 0.07 in one direction end at the bound, not at 0.14.
    assert float((moved - images).abs()[:, 1].min()) == pytest.approx(0.1, abs=1e-6)


def test_perturbation_raises_the_loss_and_leaves_the_input() -> None:
    images, labels = IMAGES.float() / 255, LABELS
    before = images.clone()
    moved = perturb(images, labels, surrogate, epsilon=0.06, step_size=0.02, steps=5)
    loss = cross_entropy(surrogate(images), labels)
    assert float(cross_entropy(surrogate(moved), labels)) > float(loss) + 1.0
    assert torch.equal(images, before)
    assert not moved.requires_grad


@pytest.mark.parametrize("epsilon", [16.0, 2.5])
def test_poisoned_images_stay_within_epsilon_off_the_corners(epsilon: float) -> None:
    attack = prepared(epsilon=epsilon)
    chosen, _ = attack.plan.draw(LABELS)
    images = IMAGES[chosen].float() / 255
    change = (attack.trigger.apply_train(images, indices=chosen) - images)[..., off_the_corners()]
    assert 1.0 <= float(change.abs().max()) * 255 <= epsilon + 1e-3
    assert float((change != 0).float().mean()) > 0.9


def test_corners_are_the_same_after_a_flip() -> None:
    triggered = clb().trigger.apply(random_images(2, size=16))
    corners = ~off_the_corners()
    assert torch.equal(triggered.flip(3)[..., corners], triggered[..., corners])
    assert triggered[..., corners].unique().tolist() == [0.0, 1.0]


def test_test_trigger_changes_corners_only_even_after_preparation() -> None:
    images = random_images(2, size=16)
    trigger = prepared().trigger
    triggered = trigger.apply(images, indices=torch.tensor([0, 4]))
    assert torch.equal(triggered[..., off_the_corners()], images[..., off_the_corners()])


def test_smaller_amplitude_shifts_instead_of_overwriting() -> None:
    grey = torch.full((1, 3, 16, 16), 100 / 255)
    corner = clb(amplitude=0.2).trigger.apply(grey)[0, 0, 13:, 13:] * 255
    assert torch.allclose(
        corner, torch.tensor([[49.0, 49, 151], [49, 151, 49], [151, 49, 151]]), atol=1e-3
    )


def test_only_images_of_the_target_class_are_perturbed_and_labels_stay() -> None:
    attack = prepared(target=2, rate=0.5)
    indices = attack.trigger.state()["indices"]
    assert LABELS[indices].tolist() == [2] * 5
    batch = Batch(
        images=IMAGES[indices].float() / 255,
        labels=LABELS[indices],
        indices=indices,
        is_poison=torch.ones(5, dtype=torch.bool),
        is_cover=torch.zeros(5, dtype=torch.bool),
    )
    assert attack.on_batch(batch).labels.tolist() == [2] * 5


def test_corners_after_crop_and_flip_stand_where_the_test_trigger_has_them() -> None:
    attack = prepared(stage="post", rate=1.0)
    indices = attack.trigger.state()["indices"]
    is_poison = torch.tensor([True] * 8 + [False] * 2)
    batch = Batch(
        images=IMAGES[indices].float() / 255,
        labels=LABELS[indices],
        indices=indices,
        is_poison=is_poison,
        is_cover=~is_poison,
    )
    copies = attack.trigger.copies(batch.images, indices=indices)
    assert not torch.equal(copies[..., ~off_the_corners()], batch.images[..., ~off_the_corners()])
    stored = torch.cat([copies[:8], batch.images[8:]])
    assert torch.equal(attack.stored_images(batch), stored)

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    made = prepare_batch(
        batch, attack, flip=True, generator=draws(), attack_generator=torch.Generator()
    )
    moved = augment(stored, flip=True, generator=draws())
    assert not torch.equal(moved, stored)
    assert torch.equal(made.images[:8], attack.trigger.apply(moved[:8]))
    assert torch.equal(made.images[8:], moved[8:])
    assert made.labels.tolist() == [0] * 10


def test_stage_moves_the_corners_alone() -> None:
    pre, post = prepared(), prepared(stage="post")
    assert (pre.plan.stage, post.plan.stage) == ("pre", "post")
    assert pre.trigger.state_hash() == post.trigger.state_hash()


def test_size_of_the_mini_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared().trigger.state_hash()
    monkeypatch.setattr(clb_module, "PGD_BATCH", 3)
    assert prepared().trigger.state_hash() == whole


def test_images_come_by_index_in_any_order() -> None:
    attack = prepared()
    chosen, _ = attack.plan.draw(LABELS)
    images = IMAGES[chosen].float() / 255
    there = attack.trigger.apply_train(images, indices=chosen)
    back = attack.trigger.apply_train(images.flip(0), indices=chosen.flip(0))
    assert torch.equal(back.flip(0), there)


def test_state_of_another_number_of_images_is_taken_over() -> None:
    few, many = prepared(rate=0.2).trigger, prepared(rate=1.0).trigger
    few.load(many.state())
    assert few.state_hash() == many.state_hash()


def test_state_without_indices_is_refused() -> None:
    state = dict(prepared().trigger.state())
    del state["indices"]
    with pytest.raises(ConfigError, match="needs tensors"):
        clb().trigger.load(state)


def test_preparation_without_a_surrogate_raises() -> None:
    with pytest.raises(ConfigError, match="surrogate"):
        clb().prepare(IMAGES, LABELS, surrogate=None, generator=torch.Generator())


def test_training_trigger_before_preparation_raises() -> None:
    with pytest.raises(ConfigError, match="prepare first"):
        clb().trigger.apply_train(random_images(1, size=16), indices=torch.tensor([0]))


@pytest.mark.parametrize("indices", [torch.tensor([1]), torch.tensor([39]), None])
def test_training_trigger_of_another_image_raises(indices: torch.Tensor | None) -> None:
    with pytest.raises(ConfigError, match="expected indices"):
        prepared().trigger.apply_train(random_images(1, size=16), indices=indices)


def test_patches_that_do_not_fit_raise() -> None:
    with pytest.raises(ConfigError, match="patch_size"):
        CornersTrigger((3, 8, 8), patch_size=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -1.0),
        ("steps", 0),
        ("step_size", 0.0),
        ("amplitude", 0.0),
        ("amplitude", 1.5),
        ("patch_size", 2),
        ("rate", 1.2),
        ("stage", "never"),
    ],
)
def test_config_out_of_range_raises(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ClbConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
