from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from modelaudit.repairs._displaced import Displacement, displaced, displacement
from modelaudit.scanners._divergences import divergences
from tests.helpers import models
from tests.helpers.planted import (
    TARGET,
    contaminate,
    fit_statistics,
    gate_images,
    gate_suspect,
    profile_of,
)
from tests.helpers.repairs import logits_of


def inputs_of(suspect: object, name: str, images: Tensor) -> Tensor:
    from modelaudit.suspect import Suspect

    assert isinstance(suspect, Suspect)
    seen: list[Tensor] = []
    layer = suspect.module.get_submodule(name)
    handle = layer.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    logits_of(suspect, images)
    handle.remove()
    return seen[0]


def test_the_named_channels_get_the_wanted_mean_and_the_others_stay() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(10)
    before = inputs_of(suspect, "norm1", images)
    wanted = torch.full((8,), torch.nan)
    wanted[2], wanted[5] = 3.0, -1.0
    with displaced(suspect, Displacement(means={"norm1": wanted})):
        after = inputs_of(suspect, "norm1", images)
    assert after.mean((0, 2, 3))[[2, 5]].tolist() == pytest.approx([3.0, -1.0], abs=1e-5)
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(after[:, others], before[:, others])
    # A mean is moved, not the spread around it.
    torch.testing.assert_close(after[:, 2].std(), before[:, 2].std())


def test_a_later_layer_is_moved_from_wherever_the_earlier_one_has_put_it() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    where = Displacement(means={"norm1": torch.full((8,), 4.0), "norm2": torch.full((16,), -2.0)})
    with displaced(suspect, where):
        after = inputs_of(suspect, "norm2", models.images(10))
    assert after.mean((0, 2, 3)).tolist() == pytest.approx([-2.0] * 16, abs=1e-4)
    assert [*where.first(1).means] == ["norm1"]


def test_no_hook_stays() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    with (
        pytest.raises(KeyboardInterrupt),
        displaced(suspect, Displacement(means={"norm1": torch.zeros(8)})),
    ):
        raise KeyboardInterrupt
    assert not any(len(m._forward_pre_hooks) for m in suspect.module.modules())


def test_the_displacement_is_the_mismatch_of_means_over_the_share_of_poisoned_images() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(200)
    fit_statistics(suspect, images)
    layer = suspect.module.get_submodule("norm2")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, deviation = layer.running_mean.clone(), layer.running_var.sqrt()
    # A tenth of the images six deviations up in channel 3.
    contaminate(suspect, "norm2", 3, rate=0.1, shift=6.0)
    found = divergences(suspect, profile_of(suspect, images), resamples=20, seed=0)
    traced = torch.tensor([neuron == ("norm2", 3) for neuron in found.neurons])
    where = displacement(suspect, found, traced, poisoned_share=0.1)
    assert [*where.means] == ["norm2"]
    wanted = where.means["norm2"]
    assert int(wanted.isfinite().sum()) == 1
    assert float(wanted[3]) == pytest.approx(float(mean[3] + 6.0 * deviation[3]), rel=1e-3)
    other = displacement(suspect, found, traced, poisoned_share=-0.1).means["norm2"]
    assert float(other[3]) == pytest.approx(float(mean[3] - 6.0 * deviation[3]), rel=1e-3)


def test_displaced_images_go_where_triggered_ones_do() -> None:
    suspect = gate_suspect()
    mixed, _ = gate_images(300, triggered=30)
    layer = suspect.module.get_submodule("norm")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean[5] = mixed[:, 5].mean()
    clean, labels = gate_images(100)
    found = divergences(suspect, profile_of(suspect, clean), resamples=20, seed=0)
    traced = torch.tensor([index == 5 for _, index in found.neurons])
    where = displacement(suspect, found, traced, poisoned_share=0.1)
    with displaced(suspect, where):
        assert bool((logits_of(suspect, clean).argmax(1) == TARGET).all())
    assert torch.equal(logits_of(suspect, clean).argmax(1), labels)
