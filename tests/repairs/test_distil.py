"""Self-distillation: the twin, and both terms of the loss."""

from __future__ import annotations

import pytest
import torch

from modelaudit.repairs._displaced import Displacement, DrawnDisplacements
from modelaudit.repairs._distil import Distilling, teacher_of, twin
from tests.helpers import models
from tests.helpers.training import copy_of, same_state, tiny_suspect


def test_the_twin_shares_nothing_but_the_counter() -> None:
    model = copy_of(tiny_suspect())
    other = twin(model)
    assert same_state(model.module, other.module)
    other.logits(models.images(3))
    assert model.passes.forward_backward == 3
    with torch.no_grad():
        next(iter(other.module.parameters())).add_(1)
    assert not same_state(model.module, other.module)


def test_a_teacher_is_frozen_and_its_passes_count_as_forward() -> None:
    model = copy_of(tiny_suspect())
    teacher = teacher_of(model)
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert all(p.requires_grad for p in model.module.parameters())
    teacher.logits(models.images(3))
    assert (model.passes.forward, model.passes.forward_backward) == (3, 0)


def distilling(weight: float, seed: int = 0) -> tuple[Distilling, torch.Tensor, torch.Tensor]:
    """A student and a teacher whose displacement moves no channel; images and logits of both."""
    student = models.suspect_of(models.tiny_bn(1))
    teacher = models.suspect_of(models.tiny_bn(2))
    nowhere = Displacement(means={"norm1": torch.full((8,), torch.nan)})
    still = DrawnDisplacements(student, (nowhere,), draws=torch.Generator().manual_seed(seed))
    objective = Distilling(
        student,
        teacher,
        disturbed=((still, weight), (still, weight / 2)),
        dtype=None,
    )
    pixels = models.images(6)
    wanted = teacher.logits(pixels).softmax(1)
    expected = -(wanted * student.logits(pixels).log_softmax(1)).sum(1).mean()
    return objective, pixels, expected.detach()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_all_terms_are_cross_entropies_to_the_teachers_answers(weight: float) -> None:
    objective, pixels, expected = distilling(weight)
    loss = objective.loss(pixels, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(loss.detach(), (1 + 1.5 * weight) * expected)


def test_the_teacher_gets_no_gradient() -> None:
    objective, pixels, _ = distilling(0.5)
    objective.loss(pixels, torch.zeros(6, dtype=torch.int64)).backward()
    assert all(p.grad is None for p in objective.teacher.module.parameters())
    assert all(p.grad is not None for p in objective.model.module.parameters())


def test_a_displaced_batch_is_to_keep_its_answers() -> None:
    student = models.suspect_of(models.tiny_bn(1))
    far = Displacement(means={"norm1": torch.full((8,), 9.0)})
    displaced = DrawnDisplacements(student, (far,), draws=torch.Generator().manual_seed(0))
    objective = Distilling(
        student,
        student,
        disturbed=((displaced, 1.0),),
        dtype=None,
    )
    pixels = models.images(6)
    probabilities = student.logits(pixels).softmax(1)
    own = -(probabilities * probabilities.log()).sum(1).mean()
    loss = objective.loss(pixels, torch.zeros(6, dtype=torch.int64))
    assert float(loss.detach()) > 2 * float(own.detach()) + 0.01
