"""Neural attention distillation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from modelaudit.errors import ConfigError, UnmetNeedError
from modelaudit.functional.attention import attention_distance
from modelaudit.repairs import nad
from modelaudit.repairs._augment import Augmentation
from modelaudit.repairs._stages import find_stages, recorded
from modelaudit.repairs._training import Objective, Schedule, constant, train
from modelaudit.repairs.nad import (
    AttentionObjective,
    NadConfig,
    NadPaperCodeConfig,
    NadPaperCodeRepair,
    NadRepair,
    released_rate,
    stage_weights,
)
from modelaudit.suspect import state_digest
from tests.helpers.models import images, suspect_of, tiny_bn, tiny_resnet
from tests.helpers.training import (
    context_of,
    copy_of,
    is_well_formed,
    same_state,
    tiny_data,
    tiny_suspect,
)

QUICK = NadConfig(teacher_epochs=2, epochs=2, batch=32)


def trained_with(weights: tuple[float, ...] | None) -> dict[str, torch.Tensor]:
    """Return a student's state after two epochs towards another net; None trains without one."""
    model = copy_of(tiny_suspect())
    teacher = suspect_of(tiny_bn(5))
    stages = find_stages(model)
    before = state_digest(teacher.module)
    with (
        recorded(model.module, stages) as student_maps,
        recorded(teacher.module, stages) as teacher_maps,
    ):
        hooked = state_digest(teacher.module)
        objective = Objective(model, dtype=None)
        if weights is not None:
            objective = AttentionObjective(
                model,
                dtype=None,
                teacher=teacher,
                student_maps=student_maps,
                teacher_maps=teacher_maps,
                weights=weights,
            )
        train(
            model,
            tiny_data(),
            context_of(),
            schedule=Schedule(epochs=2, batch=32, rate=constant(0.02)),
            objective=objective,
            augmentation=Augmentation(),
            draws=torch.Generator().manual_seed(0),
            name="test",
        )
        assert state_digest(teacher.module) == hooked
    assert state_digest(teacher.module) == before
    return model.module.state_dict()


def test_without_weights_the_updates_are_those_of_fine_tuning() -> None:
    plain, none, some = trained_with(None), trained_with((0.0, 0.0)), trained_with((50.0, 100.0))
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert not torch.equal(plain["conv1.weight"], some["conv1.weight"])


def test_the_loss_is_the_sum_of_its_terms() -> None:
    model, teacher = copy_of(tiny_suspect()), suspect_of(tiny_bn(5))
    stages = find_stages(model)
    with (
        recorded(model.module, stages) as student_maps,
        recorded(teacher.module, stages) as teacher_maps,
    ):
        objective = AttentionObjective(
            model,
            dtype=None,
            teacher=teacher,
            student_maps=student_maps,
            teacher_maps=teacher_maps,
            weights=(5.0, 7.0),
        )
        labels = torch.arange(6) % 4
        total = objective.loss(images(6), labels)
        terms = [
            attention_distance(*pair) for pair in zip(student_maps(), teacher_maps(), strict=True)
        ]
        expected = functional.cross_entropy(model.logits(images(6)), labels)
        expected = expected + 5 * terms[0] + 7 * terms[1]
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("make", [tiny_bn, tiny_resnet])
def test_every_stage_teaches(make: object) -> None:
    assert callable(make)
    model, teacher = copy_of(suspect_of(make(), size=16)), suspect_of(make(5), size=16)
    stages = find_stages(model)
    with (
        recorded(model.module, stages) as student_maps,
        recorded(teacher.module, stages) as teacher_maps,
    ):
        objective = AttentionObjective(
            model,
            dtype=None,
            teacher=teacher,
            student_maps=student_maps,
            teacher_maps=teacher_maps,
            weights=(1.0,) * len(stages),
        )
        objective.loss(images(4, size=16), torch.arange(4))
        first = next(p for p in model.module.parameters() if p.dim() == 4)
        for distance in objective.distances():
            (slope,) = torch.autograd.grad(distance, [first], retain_graph=True)
            assert float(slope.abs().sum()) > 0


def test_weights_go_to_the_last_stages() -> None:
    stages = find_stages(suspect_of(tiny_bn()))
    assert stage_weights((1.0, 2.0, 3.0), stages) == (2.0, 3.0)
    with pytest.raises(ConfigError, match="attention_weights"):
        stage_weights((), stages)


def test_the_suspect_stays_and_the_result_is_well_formed() -> None:
    suspect, data = tiny_suspect(), tiny_data()
    before = state_digest(suspect.module)
    released = NadPaperCodeConfig(teacher_epochs=1, epochs=2, learning_rate=0.01)
    for repair in (NadRepair(QUICK), NadPaperCodeRepair(released)):
        result = repair.repair(suspect, data, context=context_of())
        assert state_digest(suspect.module) == before
        assert is_well_formed(result, suspect)
        assert not same_state(result.module, suspect.module)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in result.module.modules())
        assert result.details["stage_sizes"] == [[8, 8, 8], [16, 4, 4]]
        most = repair.estimate(suspect, data)
        assert result.cost.forward_backward == most.forward_backward
        assert result.cost.forward <= most.forward + 2 * len(data.validation)


def test_same_seed_same_weights() -> None:
    one, other = (
        NadRepair(QUICK).repair(tiny_suspect(), tiny_data(), context=context_of(seed=1))
        for _ in range(2)
    )
    assert same_state(one.module, other.module)


def test_the_teacher_is_fine_tuned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    def watched(*args: object, **settings: object) -> object:
        names.append(settings["name"])
        return train(*args, **settings)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(nad, "train", watched)
    NadRepair(QUICK).repair(tiny_suspect(), tiny_data(), context=context_of())
    assert names == ["nad teacher", "nad"]


def test_it_asks_for_labels() -> None:
    data = replace(tiny_data(), has_labels=False)
    with pytest.raises(UnmetNeedError, match="labelled"):
        NadRepair(QUICK).repair(tiny_suspect(), data, context=context_of())


def test_the_released_schedule() -> None:
    rate = released_rate(0.1, 20)
    assert [rate(e / 20) for e in (0, 1, 1.9)] == [0.1] * 3
    assert rate(2 / 20) == rate(18.9 / 20) == pytest.approx(0.01)
    assert rate(19 / 20) == pytest.approx(1e-4)
    config = NadPaperCodeConfig()
    assert (config.teacher_epochs, config.epochs, config.batch) == (10, 20, 64)
    assert config.attention_weights == (500.0, 1000.0, 1000.0)


@pytest.mark.parametrize("field", ["teacher_epochs", "epochs", "learning_rate", "batch"])
def test_values_out_of_range_are_refused(field: str) -> None:
    for kind in (NadConfig, NadPaperCodeConfig):
        with pytest.raises(ConfigError, match=field):
            kind(**{field: -1})  # type: ignore[arg-type]  # on purpose
