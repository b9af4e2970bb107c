from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.errors import ConfigError, ShapeError
from modelaudit.preprocessing import PRESETS, Preprocessing
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.models import images, suspect_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

CIFAR = next(p for p in PRESETS if p.id == "cifar10_0.2023")


def counted(suspect: Suspect) -> tuple[int, int]:
    return suspect.passes.forward, suspect.passes.forward_backward


def test_a_new_suspect_has_counted_nothing() -> None:
    assert counted(suspect_of(models.tiny_bn())) == (0, 0)


def test_passes_without_gradients_count_as_forward() -> None:
    suspect = suspect_of(models.tiny_bn())
    with suspect.borrowed():
        suspect.logits(images(3))
        with torch.no_grad():
            suspect.features(images(2))
    assert counted(suspect) == (5, 0)


def test_passes_that_record_gradients_count_as_forward_and_backward() -> None:
    suspect = suspect_of(models.tiny_bn())
    with suspect.borrowed():
        suspect.logits(images(3).requires_grad_())
        suspect.features(images(2).requires_grad_())
        with torch.no_grad():
            suspect.logits(images(4).requires_grad_())
    assert counted(suspect) == (4, 5)


def test_a_head_that_is_cut_off_costs_no_pass() -> None:
    suspect = suspect_of(models.tiny_bn())
    with suspect.borrowed():
        suspect.head(torch.zeros((7, 16, 4, 4)).requires_grad_())
    assert counted(suspect) == (0, 0)


def test_a_head_that_runs_the_network_is_counted() -> None:
    suspect = suspect_of(models.tiny_untraceable())
    with suspect.borrowed():
        suspect.head(torch.zeros((7, 16, 4, 4)))
        suspect.head(torch.zeros((2, 16, 4, 4)).requires_grad_())
    assert counted(suspect) == (7, 2)


def test_prediction_counts_every_image_once_and_records_nothing() -> None:
    suspect = suspect_of(models.tiny_bn())
    batch = images(10)
    found = suspect.predict(batch, batch_size=4)
    assert counted(suspect) == (10, 0)
    assert found.dtype is torch.int64
    assert torch.equal(found, suspect.logits(batch).argmax(1))


def test_pixels_are_normalised_by_channel() -> None:
    module = models.tiny_bn()
    batch = images(4)
    expected = module(
        torch.stack([(batch[:, c] - CIFAR.mean[c]) / CIFAR.std[c] for c in range(3)], dim=1)
    )
    suspect = suspect_of(module, preprocessing=CIFAR)
    torch.testing.assert_close(suspect.logits(batch), expected)


def test_a_model_of_one_channel_takes_the_mean_of_a_colour_normalisation() -> None:
    suspect = suspect_of(models.tiny_grey(), channels=1, preprocessing=CIFAR)
    assert suspect.preprocessing.mean == (sum(CIFAR.mean) / 3,)
    assert suspect.logits(images(2, channels=1)).shape == (2, 4)
    assert suspect.split is not None
    assert [site.name for site in suspect.sites] == ["norm1", "norm2"]


def test_a_normalisation_of_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model takes 3 channels, the preprocessing has 2"):
        suspect_of(
            models.tiny_bn(), preprocessing=Preprocessing(id="two", mean=(0.0, 0.0), std=(1.0, 1.0))
        )


def test_images_of_another_size_are_resized() -> None:
    suspect = suspect_of(models.tiny_bn())
    large = images(2, size=19)
    small = torch.nn.functional.interpolate(large, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(suspect.logits(large), suspect.logits(small))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 4, 8, 8)])
def test_images_of_the_wrong_shape_are_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    suspect = suspect_of(models.tiny_bn())
    with pytest.raises(ShapeError, match=r"expected images of shape \(N, 3, H, W\), got \("):
        suspect.logits(torch.zeros(shape))
    assert counted(suspect) == (0, 0)


def test_a_tuple_as_output_gives_its_first_part() -> None:
    module = models.tiny_tuple()
    suspect = suspect_of(module)
    batch = images(3)
    torch.testing.assert_close(suspect.logits(batch), module((batch - 0.5) / 0.5)[0])
    assert suspect.split is not None
    with torch.no_grad():
        again = suspect.head(suspect.features(batch))
    torch.testing.assert_close(again, suspect.logits(batch))


@pytest.mark.parametrize("call", ["features", "head"])
def test_without_a_split_features_and_head_are_refused(call: str) -> None:
    suspect = suspect_of(models.tiny_without_split())
    assert suspect.split is None
    with pytest.raises(ShapeError, match="expected a model with a features/head split"):
        getattr(suspect, call)(images(2))


def test_statistics_are_the_running_ones_in_float64() -> None:
    module = models.tiny_bn()
    suspect = suspect_of(module)
    mean, var = suspect.statistics(suspect.sites[1])
    assert mean.dtype is var.dtype is torch.float64
    assert torch.equal(mean.float(), module.get_buffer("norm2.running_mean"))
    assert torch.equal(var.float(), module.get_buffer("norm2.running_var"))


@pytest.mark.parametrize("build", [models.tiny_plain, models.tiny_batch_statistics])
def test_statistics_of_a_layer_without_any_are_refused(build: Callable[[], nn.Module]) -> None:
    suspect = suspect_of(build())
    name = suspect.sites[0].name
    with pytest.raises(ShapeError, match=f"running statistics, '{name}' has none"):
        suspect.statistics(suspect.sites[0])


def test_autocast_holds_for_its_context_alone_and_logits_stay_float32() -> None:
    suspect = suspect_of(models.tiny_bn())
    batch = images(3)
    with torch.no_grad():
        plain = suspect.logits(batch)
        with suspect.autocast(torch.bfloat16):
            coarse = suspect.logits(batch)
            with suspect.autocast(None):
                assert torch.equal(suspect.logits(batch), plain)
            assert torch.equal(suspect.logits(batch), coarse)
        assert torch.equal(suspect.logits(batch), plain)
    assert coarse.dtype is torch.float32
    assert not torch.equal(coarse, plain)
    torch.testing.assert_close(coarse, plain, rtol=0.05, atol=0.05)


def test_autocast_ends_with_an_error() -> None:
    suspect = suspect_of(models.tiny_bn())
    with torch.no_grad():
        plain = suspect.logits(images(2))
        with pytest.raises(RuntimeError), suspect.autocast(torch.bfloat16):
            raise RuntimeError
        assert torch.equal(suspect.logits(images(2)), plain)


def test_a_borrow_that_fails_restores_the_module() -> None:
    module = models.tiny_bn()
    module.train()
    suspect = suspect_of(module)

    def interrupted() -> None:
        with suspect.borrowed():
            assert not module.training
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert module.training


def test_a_suspect_neither_uses_nor_moves_the_global_random_state() -> None:
    module = models.tiny_bn()
    before = torch.random.get_rng_state()
    suspect_of(module)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_module_without_parameters_lives_on_the_cpu() -> None:
    suspect = suspect_of(torch.nn.Flatten(), classes=192)
    assert suspect.device == torch.device("cpu")
    assert suspect.sites == ()
    assert suspect.split is None


def test_the_device_may_be_given() -> None:
    suspect = Suspect(
        models.tiny_bn(),
        preprocessing=models.HALF,
        input_size=8,
        num_classes=4,
        device=torch.device("cpu"),
    )
    assert suspect.logits(images(1)).device == suspect.device
