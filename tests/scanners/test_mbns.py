from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError, DegenerateStatisticError
from modelaudit.functional.divergence import reparameterised_batchnorm
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners import CleanImages, mbns
from modelaudit.scanners._divergences import Divergences, divergences
from modelaudit.scanners.mbns import MbnsConfig, MbnsScanner
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import (
    TARGET,
    clean_set,
    contaminate,
    context_of,
    every_parameter_is_free,
    fit_statistics,
    gate_images,
    gate_suspect,
    profile_of,
    trained,
    trained_clean_set,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: K of a share 0.1 of images five deviations away (methods/detectors.md §2.2).
_K = 0.2816


def _divergences(suspect: Suspect, images: Tensor, *, batch_size: int = 128) -> Divergences:
    shared = profile_of(suspect, images, batch_size=batch_size)
    return divergences(suspect, shared, resamples=50, seed=0)


def _exact(n: int = 200) -> tuple[Suspect, Tensor]:
    """Return a suspect whose running statistics are those of the images, and the images."""
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(n)
    fit_statistics(suspect, images)
    return suspect, images


def _scan(suspect: Suspect, clean: CleanImages, config: MbnsConfig | None = None) -> ScannerResult:
    result = MbnsScanner(config).scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    return result


def test_exact_statistics_have_no_divergence() -> None:
    found = _divergences(*_exact())
    assert found.divergence.max() < 1e-10
    assert found.divergence.dtype == torch.float64
    assert found.neurons[:2] == (("norm1", 0), ("norm1", 1))
    assert len(found.neurons) == 8 + 16


def test_a_contaminated_channel_has_the_tabulated_divergence_and_ranks_first() -> None:
    suspect, images = _exact()
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    found = _divergences(suspect, images)
    worst = int(found.divergence.argmax())
    assert found.neurons[worst] == ("norm2", 5)
    assert float(found.divergence[worst]) == pytest.approx(_K, abs=1e-3)
    assert int(found.floor_ratio.argmax()) == worst
    # The contaminated mean is half a clean deviation up, that is rate·shift over the new deviation.
    assert float(found.shift[worst]) == pytest.approx(0.5 / (1 + 0.09 * 25) ** 0.5, abs=1e-3)


def _reparameterise(suspect: Suspect, images: Tensor, *, is_as_printed: bool) -> None:
    """Give norm2 the images' statistics and make up for it in gamma and beta."""
    layer = suspect.module.get_submodule("norm2")
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    old = layer.running_mean.clone(), layer.running_var.clone()
    fit_statistics(suspect, images)
    new = layer.running_mean, layer.running_var
    with torch.no_grad():
        if is_as_printed:
            ratio = (new[1] / old[1]).sqrt()
            layer.bias.add_(new[0] / new[1].sqrt() - old[0] / old[1].sqrt())
            layer.weight.copy_(layer.weight * ratio)
        else:
            weight, bias = reparameterised_batchnorm(
                layer.weight, layer.bias, *old, *new, eps=layer.eps
            )
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


@pytest.mark.parametrize("is_as_printed", [False, True])
def test_only_the_correct_reparameterisation_keeps_the_logits(*, is_as_printed: bool) -> None:
    suspect, images = _exact()
    for channel in range(16):
        contaminate(suspect, "norm2", channel, rate=0.1, shift=5.0)
    with suspect.borrowed(), torch.no_grad():
        before = suspect.logits(images)
    _reparameterise(suspect, images, is_as_printed=is_as_printed)
    with suspect.borrowed(), torch.no_grad():
        change = (suspect.logits(images) - before).abs().max()
    assert _divergences(suspect, images).divergence.max() < 1e-10
    if is_as_printed:
        assert change > 0.1
    else:
        assert change < 1e-4


def test_statistics_tuned_to_the_images_are_suspicious() -> None:
    suspect, images = _exact()
    result = _scan(suspect, clean_set(suspect, images))
    assert result.finding is Finding.SUSPICIOUS
    assert result.target_labels == ()
    assert not result.is_confirmed
    assert "re-estimated or re-parameterised" in result.notes[0]


def test_the_divergence_does_not_depend_on_the_batch_size() -> None:
    suspect, images = _exact(60)
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    one, two = (_divergences(suspect, images, batch_size=size) for size in (7, 60))
    # The sums are float64; the convolutions before them round in float32.
    assert torch.allclose(one.divergence, two.divergence, rtol=0, atol=1e-7)
    assert torch.allclose(one.floor_ratio, two.floor_ratio, rtol=1e-4)


def test_the_divergence_does_not_depend_on_the_order_of_images() -> None:
    suspect, images = _exact(60)
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one, two = _divergences(suspect, images), _divergences(suspect, images[order])
    assert torch.allclose(one.divergence, two.divergence, rtol=0, atol=1e-7)


def test_no_hook_is_left_behind() -> None:
    suspect, images = _exact(60)
    contaminate(suspect, "norm2", 5, rate=0.2, shift=12.0)
    _scan(suspect, clean_set(suspect, images))
    assert every_parameter_is_free(suspect)


def test_a_dead_channel_is_left_out() -> None:
    suspect, images = _exact()
    with torch.no_grad():
        conv = suspect.module.get_submodule("conv2")
        conv.get_parameter("weight")[3] = 0
        suspect.module.get_submodule("norm2").get_buffer("running_var")[3] = 0
    found = _divergences(suspect, images)
    dead = found.neurons.index(("norm2", 3))
    assert math.isnan(float(found.divergence[dead]))
    assert float(found.floor_ratio[dead]) == 0.0
    result = _scan(suspect, clean_set(suspect, images))
    assert result.score is not None
    assert math.isfinite(result.score)


def test_a_layer_without_running_statistics_is_left_out() -> None:
    net = models.tiny_bn()
    layer = net.get_submodule("norm1")
    assert isinstance(layer, nn.BatchNorm2d)
    layer.running_mean, layer.running_var = None, None
    found = _divergences(models.suspect_of(net), models.images(60))
    assert {name for name, _ in found.neurons} == {"norm2"}


def test_a_model_of_dead_channels_alone_raises() -> None:
    suspect, images = _exact()
    for layer in suspect.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.get_buffer("running_var").zero_()
    clean = clean_set(suspect, images)
    with pytest.raises(DegenerateStatisticError, match="dead"):
        MbnsScanner().scan(suspect, clean, context=context_of(suspect, clean))


def test_statistics_of_the_same_kind_of_images_give_no_finding() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, models.images(4000, seed=9))
    result = _scan(suspect, clean_set(suspect, models.images(200)))
    assert result.finding is Finding.NONE
    assert result.cost.forward == 0
    median = result.evidence["unweighted_median_floor_ratio"]
    assert isinstance(median, float)
    assert 0.1 < median < 5
    weighted = result.evidence["median_floor_ratio"]
    assert isinstance(weighted, float)
    assert weighted < median


def test_statistics_of_other_images_have_no_power() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, models.images(2000, seed=9) * 0.5)
    result = _scan(
        suspect,
        clean_set(suspect, models.images(200)),
        MbnsConfig(suspicious=1e6, strong=1e6, strong_if_blind=1e6),
    )
    assert result.finding is Finding.NO_POWER
    assert "could go unnoticed" in result.notes[0]


def test_a_planted_channel_is_found_pruned_for_free_and_names_the_target() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    # Poisoned images raise their target's own channel too, which makes it no control.
    contaminate(suspect, "norm", TARGET, rate=0.1, shift=4.0, keeps_logits=True)
    result = _scan(suspect, clean_set(suspect, images, labels))
    assert result.finding is Finding.STRONG
    assert result.target_labels == (TARGET,)
    assert result.pattern is Pattern.ALL_TO_ONE
    assert result.is_confirmed
    assert result.evidence["traced"] == 2
    assert result.evidence["pruned_accuracy_drop"] == 0.0
    channels = result.evidence["channels"]
    assert isinstance(channels, list)
    assert channels[0][:2] == ["norm", 5]  # type: ignore[index]  # a list of lists
    assert int(torch.tensor(result.per_class).argmax()) == TARGET


def test_a_trigger_on_the_other_side_of_the_mean_is_found_by_a_negative_share() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    # Near-triggers with the right label, more of them than of the trigger, pull the mean away.
    contaminate(suspect, "norm", 5, rate=0.1, shift=-20.0)
    contaminate(suspect, "norm", TARGET, rate=0.1, shift=-4.0, keeps_logits=True)
    result = _scan(suspect, clean_set(suspect, images, labels))
    assert result.target_labels == (TARGET,)
    assert result.is_confirmed
    share = result.evidence["poisoned_share"]
    assert isinstance(share, float)
    assert share < 0


def test_without_power_only_a_very_high_score_is_a_finding() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    contaminate(suspect, "norm", TARGET, rate=0.1, shift=4.0, keeps_logits=True)
    clean = clean_set(suspect, images, labels)
    blind = _scan(suspect, clean, MbnsConfig(max_unnoticed=0.001, strong_if_blind=1e6))
    assert blind.score is not None
    assert blind.score > MbnsConfig().strong_if_blind
    assert blind.finding is Finding.NO_POWER
    assert blind.target_labels == ()
    assert not blind.is_confirmed
    assert "could go unnoticed" in blind.notes[0]
    seen = _scan(suspect, clean, MbnsConfig(max_unnoticed=0.001))
    assert seen.finding is Finding.STRONG
    assert seen.target_labels == (TARGET,)


def test_a_planted_shift_of_every_class_is_all_to_all() -> None:
    suspect = gate_suspect(is_all_to_all=True)
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    result = _scan(suspect, clean_set(suspect, images, labels))
    assert result.finding is Finding.STRONG
    assert result.pattern is Pattern.ALL_TO_ALL
    assert result.target_labels == ()


@pytest.mark.parametrize(("moved", "is_shift"), [(0.15, False), (0.25, True)])
def test_a_shift_of_the_classes_has_to_move_a_fifth_of_their_images(
    monkeypatch: pytest.MonkeyPatch, moved: float, *, is_shift: bool
) -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    clean = clean_set(suspect, images, labels)

    # Of the ten pushes the first takes a few images of every class one further, the third all
    # images to one class, and the others none anywhere.
    def predictions(
        _suspect: Suspect, pushes: Sequence[object], images: Tensor, *, batch_size: int
    ) -> Tensor:
        assert batch_size == 256
        truth = images.mean((2, 3))[:, :5].argmax(1)
        rows = truth.repeat(len(pushes), 1)
        for label in range(5):
            own = (truth == label).nonzero().flatten()
            rows[0, own[: round(moved * len(own))]] = (label + 1) % 5
        rows[2] = TARGET
        return rows

    monkeypatch.setattr(mbns, "pushed_predictions", predictions)
    result = _scan(suspect, clean)
    # Unanimous errors look like a permutation however few they are; too few are passed over.
    assert result.evidence["poisoned_share"] == (0.2 if is_shift else 0.1)


def test_channels_that_cost_accuracy_do_not_confirm() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    for channel in range(5):
        contaminate(suspect, "norm", channel, rate=0.1, shift=20.0, keeps_logits=True)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    clean = clean_set(suspect, images, labels)
    assert torch.equal(clean.predictions, labels)
    # Every channel is contaminated, so that the median is too, and no mixture explains it.
    config = MbnsConfig(suspicious=0.5, strong=0.5, strong_if_blind=0.5)
    result = _scan(suspect, clean, config)
    assert result.finding is Finding.STRONG
    drop = result.evidence["pruned_accuracy_drop"]
    assert isinstance(drop, float)
    assert drop > 0.5
    assert not result.is_confirmed
    assert "costs" in result.notes[0]


def test_labels_change_nothing_but_the_confirmation() -> None:
    suspect, images = _exact()
    contaminate(suspect, "norm2", 5, rate=0.2, shift=12.0)
    one = _scan(suspect, clean_set(suspect, images))
    with suspect.borrowed():
        others = (suspect.predict(images) + torch.arange(200) % 2) % 4
    two = _scan(suspect, clean_set(suspect, images, others))
    assert one.score == two.score
    assert one.finding is two.finding


def test_a_trained_backdoor_is_found_and_named() -> None:
    result = _scan(trained(is_backdoored=True), trained_clean_set(is_backdoored=True))
    assert result.finding is Finding.STRONG
    assert result.target_labels == (TARGET,)
    assert result.pattern is Pattern.ALL_TO_ONE


def test_a_trained_clean_model_has_no_finding() -> None:
    result = _scan(trained(is_backdoored=False), trained_clean_set(is_backdoored=False))
    assert result.finding is Finding.NONE
    assert result.target_labels == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"resamples": 9},
        {"suspicious": 0.0},
        {"suspicious": 5.0, "strong": 4.0},
        {"min_mismatch": -1.0},
        {"max_unnoticed": 0.0},
        {"strong_if_blind": 19.0},
        {"ridge": -1.0},
        {"traced": 0.0},
        {"poisoned_shares": ()},
        {"poisoned_shares": (0.0, 0.2)},
        {"prune_channels": 0},
        {"control_sets": 19},
        {"max_accuracy_drop": 1.5},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    field = list(settings)[-1]
    with pytest.raises(ConfigError, match=rf"MbnsConfig\.{field}"):
        MbnsConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
