from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError, DegenerateStatisticError
from modelaudit.functional.divergence import reparameterised_batchnorm
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners import CleanImages, ScanContext, _trace_trials
from modelaudit.scanners._channels import PushTest, push_test
from modelaudit.scanners._divergences import Divergences, divergences
from modelaudit.scanners.mbns import MbnsConfig, MbnsScanner, is_same_lead
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import (
    TARGET,
    clean_set,
    contaminate,
    context_of,
    fit_statistics,
    gate_images,
    gate_suspect,
    profile_of,
    trained,
    trained_clean_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


def _planted(
    *, gate: str = "relu", has_target_trace: bool = True, is_all_to_all: bool = False
) -> tuple[Suspect, Tensor, Tensor]:
    """Return a suspect whose trigger has left its trace, clean images and their labels.

    Poisoned images raise their target's own channel too, which makes it no control.
    """
    suspect = gate_suspect(gate=gate, is_all_to_all=is_all_to_all)
    images, labels = gate_images(200)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 5, rate=0.1, shift=20.0)
    if has_target_trace:
        contaminate(suspect, "norm", TARGET, rate=0.1, shift=4.0, keeps_logits=True)
    return suspect, images, labels


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
    suspect, images = models.suspect_of(models.tiny_bn()), models.images(60)
    fit_statistics(suspect, models.images(400, seed=9))
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one, two = (
        divergences(suspect, profile_of(suspect, batch), resamples=50, seed=0, ridge=3.0)
        for batch in (images, images[order])
    )
    # Each image keeps its weight, and the weights are far from equal.
    assert float((one.image_weights - 1).abs().max()) > 0.5
    assert torch.allclose(one.image_weights[order], two.image_weights, rtol=0, atol=1e-3)
    assert torch.allclose(one.divergence, two.divergence, rtol=0, atol=1e-5)


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
    assert found.alive.nonzero().flatten().tolist() == [i for i in range(24) if i != dead]
    # What is said of all channels is said of the others.
    evidence = _scan(suspect, clean_set(suspect, images)).evidence
    for key in ("median_divergence", "largest_divergence", "unnoticed_divergence"):
        value = evidence[key]
        assert isinstance(value, float)
        assert math.isfinite(value)


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


def test_weights_that_explain_much_do_not_look_like_tuning() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, models.images(4000, seed=9))
    clean = clean_set(suspect, models.images(200))
    evidence = _scan(suspect, clean).evidence
    weighted, alike = evidence["median_floor_ratio"], evidence["unweighted_median_floor_ratio"]
    assert isinstance(weighted, float)
    assert isinstance(alike, float)
    between = _scan(suspect, clean, MbnsConfig(min_mismatch=(weighted + alike) / 2))
    assert between.finding is Finding.NONE
    above = _scan(suspect, clean, MbnsConfig(min_mismatch=1.01 * alike))
    assert above.finding is Finding.SUSPICIOUS
    assert "re-estimated or re-parameterised" in above.notes[0]


@pytest.mark.parametrize(("brightness", "has_power"), [(1.0, True), (0.5, False)])
def test_statistics_of_other_images_have_no_power(brightness: float, *, has_power: bool) -> None:
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, models.images(2000, seed=9) * brightness)
    result = _scan(suspect, clean_set(suspect, models.images(200)))
    unnoticed = result.evidence["unnoticed_divergence"]
    assert isinstance(unnoticed, float)
    if has_power:
        assert result.finding is Finding.NONE
        assert unnoticed < 0.002
    else:
        assert result.finding is Finding.NO_POWER
        assert unnoticed > 1
        assert "could go unnoticed" in result.notes[0]


def test_the_score_is_that_of_the_settings_and_the_seed() -> None:
    suspect, images = models.suspect_of(models.tiny_bn()), models.images(60)
    fit_statistics(suspect, models.images(400, seed=9))
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    clean = clean_set(suspect, images)
    context = context_of(suspect, clean, seed=3)
    result = MbnsScanner(MbnsConfig(resamples=20, ridge=0.5)).scan(suspect, clean, context=context)
    found = divergences(suspect, context.profile, resamples=20, seed=3, ridge=0.5)
    assert isinstance(result, ScannerResult)
    assert result.score == float(found.scores().max())


def test_a_planted_channel_is_found_pruned_for_free_and_names_the_target() -> None:
    suspect, images, labels = _planted()
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
    suspect, images, labels = _planted()
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
    suspect, images, labels = _planted(is_all_to_all=True, has_target_trace=False)
    result = _scan(suspect, clean_set(suspect, images, labels))
    assert result.finding is Finding.STRONG
    assert result.pattern is Pattern.ALL_TO_ALL
    assert result.target_labels == ()
    assert result.is_confirmed


@pytest.mark.parametrize(
    ("is_all_to_all", "is_sure", "is_confirmed"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_only_a_shift_of_most_images_confirms_what_is_not_removed_for_free(
    monkeypatch: pytest.MonkeyPatch, *, is_all_to_all: bool, is_sure: bool, is_confirmed: bool
) -> None:
    suspect, images, labels = _planted(
        is_all_to_all=is_all_to_all, has_target_trace=not is_all_to_all
    )
    clean = clean_set(suspect, images, labels)
    plain = push_test

    def pushed(*arguments: Any, **keywords: Any) -> PushTest:
        return dataclasses.replace(plain(*arguments, **keywords), is_sure_shift=is_sure)

    def pruned(_suspect: Suspect, _neurons: object, images: Tensor, *, batch_size: int) -> Tensor:
        assert batch_size == 256
        wrong = images.mean((2, 3))[:, :5].argmax(1)
        wrong[:6] = (wrong[:6] + 1) % 5
        return wrong

    monkeypatch.setattr(_trace_trials, "push_test", pushed)
    monkeypatch.setattr(_trace_trials, "pruned_predictions", pruned)
    result = _scan(suspect, clean)
    assert result.evidence["pruned_accuracy_drop"] == pytest.approx(6 / 80)
    assert result.finding is Finding.STRONG
    assert result.pattern is (Pattern.ALL_TO_ALL if is_all_to_all else Pattern.ALL_TO_ONE)
    assert result.is_confirmed == is_confirmed
    assert "removing the clearest traces costs 7.5%" in result.notes[0]
    assert ("nothing else shifts the classes as far" in result.notes[0]) == is_confirmed


@pytest.mark.parametrize(
    ("gate", "has_target_trace", "targets"),
    [
        # Pushed the other way the channels do the same.
        ("abs", True, ()),
        # The target's own channel is a control, and does the same.
        ("relu", False, (TARGET,)),
    ],
)
def test_a_finding_whose_push_fails_is_not_confirmed(
    gate: str, targets: tuple[int, ...], *, has_target_trace: bool
) -> None:
    suspect, images, labels = _planted(gate=gate, has_target_trace=has_target_trace)
    result = _scan(suspect, clean_set(suspect, images, labels))
    assert result.finding is Finding.STRONG
    assert result.target_labels == targets
    assert result.evidence["push_share"] == 1.0
    assert result.evidence["pruned_accuracy_drop"] == 0.0
    assert not result.is_confirmed
    # Of a push that leads to no label there is nothing to refute.
    assert result.is_refuted is bool(targets)


def test_a_finding_is_strong_from_the_setting_on() -> None:
    suspect, images, labels = _planted()
    clean = clean_set(suspect, images, labels)
    score = _scan(suspect, clean).score
    assert score is not None
    for strong, finding in (
        (score, Finding.STRONG),
        (math.nextafter(score, math.inf), Finding.SUSPICIOUS),
    ):
        config = MbnsConfig(strong=strong, strong_if_blind=1e6, max_unnoticed=1.0)
        result = _scan(suspect, clean, config)
        assert result.finding is finding
        # What it leads to is found out all the same.
        assert result.target_labels == (TARGET,)
        assert result.is_confirmed
        assert not result.is_refuted


def test_channels_are_pushed_from_the_trace_of_the_setting_on() -> None:
    suspect, images, labels = _planted()
    # Weaker than what raises the alarm.
    contaminate(suspect, "norm", 0, rate=0.1, shift=3.0, keeps_logits=True)
    clean = clean_set(suspect, images, labels)
    shared = profile_of(suspect, images)
    traces = divergences(suspect, shared, resamples=200, seed=0, ridge=3.0).traces()
    weakest = float(traces[0])
    assert MbnsConfig().traced < weakest < MbnsConfig().suspicious
    for least, pushed in ((weakest, [5, TARGET, 0]), (1.01 * weakest, [5, TARGET])):
        result = _scan(suspect, clean, MbnsConfig(traced=least))
        assert result.evidence["traced"] == len(pushed)
        push = result.evidence["push"]
        assert isinstance(push, list)
        assert [row[1] for row in push] == pushed  # type: ignore[index]  # a list of lists


@pytest.mark.parametrize("pruned", [2, 3, 12])
def test_as_many_of_the_clearest_traces_are_pruned_as_the_setting_says(pruned: int) -> None:
    suspect = gate_suspect(classes=25)
    images, labels = gate_images(200, classes=25)
    fit_statistics(suspect, images)
    contaminate(suspect, "norm", 25, rate=0.1, shift=40.0)
    for i in range(12):
        contaminate(suspect, "norm", TARGET + i, rate=0.1, shift=16 * 0.9**i, keeps_logits=True)
    clean = clean_set(suspect, images, labels)
    # With this ridge all images weigh alike: a mixture would explain some of these traces.
    result = _scan(suspect, clean, MbnsConfig(prune_channels=pruned, ridge=1e6))
    assert result.evidence["traced"] == 13
    shared = profile_of(suspect, images)
    order = divergences(suspect, shared, resamples=200, seed=0).traces().argsort(descending=True)
    trigger, *gone = order[:pruned].tolist()
    assert trigger == 25
    # Without their channels classes have the logit 0, and the first of them wins.
    held_out = labels[clean.judge]
    wrong = torch.isin(held_out, torch.tensor(gone)) & (held_out != min(gone))
    assert result.evidence["pruned_accuracy_drop"] == pytest.approx(float(wrong.double().mean()))
    assert bool(wrong.any()) == (pruned > 2)
    # One class of 25 is less than may be lost.
    assert result.is_confirmed == (pruned < 12)
    assert (result.notes == ()) == (pruned < 12)


def _pruned_at(costs: dict[int, float], removed: list[list[int]]) -> Callable[..., Tensor]:
    """Return what predicts images without channels, each of which costs its share of them."""

    def pruned(
        _suspect: Suspect, neurons: list[tuple[str, int]], images: Tensor, *, batch_size: int
    ) -> Tensor:
        assert batch_size == 256
        removed.append([channel for _, channel in neurons])
        wrong = images.mean((2, 3))[:, :25].argmax(1)
        lost = round(len(wrong) * sum(costs.get(channel, 0.0) for channel in removed[-1]))
        wrong[:lost] = (wrong[:lost] + 1) % 25
        return wrong

    return pruned


def _thirteen_traced(images: int) -> tuple[Suspect, CleanImages]:
    """Return a suspect with the trigger's trace and fainter ones in twelve classes' channels."""
    suspect = gate_suspect(classes=25)
    pictures, labels = gate_images(images, classes=25)
    fit_statistics(suspect, pictures)
    contaminate(suspect, "norm", 25, rate=0.1, shift=40.0)
    for i in range(12):
        contaminate(suspect, "norm", TARGET + i, rate=0.1, shift=16 * 0.9**i, keeps_logits=True)
    return suspect, clean_set(suspect, pictures, labels)


#: With this ridge all images weigh alike: a mixture would explain some of these traces.
ALIKE = MbnsConfig(ridge=1e6)


@pytest.mark.parametrize(
    ("costs", "images", "is_confirmed"),
    [
        pytest.param({3: 0.1, 4: 0.02}, 700, True, id="two are needed"),
        pytest.param(dict.fromkeys((3, 4, 5, 6), 0.02), 700, True, id="four of the ten"),
        pytest.param(dict.fromkeys((3, 4, 5, 6, 7), 0.02), 700, False, id="five of the ten"),
        pytest.param(dict.fromkeys((3, 4, 5, 6, 10, 12, 13), 0.02), 700, False, id="seven of all"),
        pytest.param({25: 0.1, 2: 0.1}, 700, False, id="what leads to the target"),
        pytest.param({3: 0.1, **dict.fromkeys((2, 4, 5), 0.009)}, 700, False, id="the free ones"),
        pytest.param({3: 0.1, 2: 0.009, 4: 0.009}, 700, True, id="the free ones cost a little"),
        pytest.param({3: 0.1, 4: 0.02}, 150, False, id="too few images to call one free"),
    ],
)
def test_where_removal_costs_too_much_the_free_channels_have_to_lead_there_alone(
    monkeypatch: pytest.MonkeyPatch, costs: dict[int, float], images: int, *, is_confirmed: bool
) -> None:
    suspect, clean = _thirteen_traced(images)
    removed: list[list[int]] = []
    monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at(costs, removed))
    result = _scan(suspect, clean, ALIKE)
    clearest = removed[0]
    assert len(clearest) == 10
    assert 25 in clearest
    drop = sum(costs.get(channel, 0.0) for channel in clearest)
    assert result.evidence["pruned_accuracy_drop"] == pytest.approx(drop, abs=0.01)
    assert drop > 0.06
    assert result.finding is Finding.STRONG
    assert result.target_labels == (TARGET,)
    assert result.is_confirmed == is_confirmed
    assert ("cost nothing" in result.notes[0]) == is_confirmed
    assert result.evidence["priced"] == 13
    if images < 200:
        assert result.evidence["free"] == 0
        assert len(removed) == 1
        return
    # All ten, then each alone, the clearest first; then the free ones if they are most.
    assert [len(channels) for channels in removed[1:14]] == [1] * 13
    assert [channel for channels in removed[1:11] for channel in channels] == clearest
    free = [c for (c,) in removed[1:14] if costs.get(c, 0.0) <= 0.01]
    assert result.evidence["free"] == len(free)
    is_most = len(free) > 6 and len({*free} & {*clearest}) >= 6
    assert removed[14:] == ([free, free[:10]] if is_most else [])
    if is_confirmed:
        share = result.evidence["free_push_share"]
        assert isinstance(share, float)
        assert share > 0.9
        for key, channels in (
            ("free_accuracy_drop", free),
            ("free_clearest_accuracy_drop", free[:10]),
        ):
            cost = sum(costs.get(channel, 0.0) for channel in channels)
            assert result.evidence[key] == pytest.approx(cost, abs=0.005)


@pytest.mark.parametrize(
    ("config", "is_confirmed"),
    [
        ({}, True),
        ({"max_accuracy_drop": 0.02}, False),
        ({"prune_channels": 4}, True),
    ],
    ids=["as set", "all free ones cost more than allowed", "of fewer removed ones most are free"],
)
def test_all_free_channels_together_cost_what_the_setting_allows(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], *, is_confirmed: bool
) -> None:
    suspect, clean = _thirteen_traced(700)
    # Beside the needed one the last three, which are not among the ten clearest free ones.
    costs = {3: 0.2, 10: 0.0095, 12: 0.0095, 13: 0.0095}
    monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at(costs, []))
    result = _scan(suspect, clean, dataclasses.replace(ALIKE, **config))
    assert result.evidence["free"] == 12
    assert result.is_confirmed == is_confirmed


def test_what_its_controls_refute_the_free_channels_do_not_confirm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspect, clean = _thirteen_traced(700)
    monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at({3: 0.1}, []))
    plain = push_test
    pools: list[set[int]] = []

    def pushed(suspect: Suspect, push: dict[Any, float], *rest: Any, **keywords: Any) -> PushTest:
        pools.append(set(keywords["control_pool"]["norm"]))
        test = plain(suspect, push, *rest, **keywords)
        return dataclasses.replace(test, beats_controls=len(pools) > 1)

    monkeypatch.setattr(_trace_trials, "push_test", pushed)
    result = _scan(suspect, clean, ALIKE)
    assert not result.is_confirmed
    assert "priced" not in result.evidence
    assert len(pools) == 1
    # No control of either trial carries a trace, a needed one neither.
    monkeypatch.setattr(
        _trace_trials,
        "push_test",
        lambda *rest, **keywords: (
            pools.append(set(keywords["control_pool"]["norm"])) or plain(*rest, **keywords)
        ),
    )
    assert _scan(suspect, clean, ALIKE).is_confirmed
    assert pools[1] == pools[2] == {0, 1, *range(TARGET + 12, 25)}


def test_five_free_channels_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for traces, is_confirmed in ((5, False), (6, True)):
        suspect = gate_suspect(classes=25)
        pictures, labels = gate_images(700, classes=25)
        fit_statistics(suspect, pictures)
        contaminate(suspect, "norm", 25, rate=0.1, shift=40.0)
        for i in range(traces):
            contaminate(suspect, "norm", TARGET + i, rate=0.1, shift=16 * 0.9**i, keeps_logits=True)
        monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at({3: 0.1}, []))
        result = _scan(suspect, clean_set(suspect, pictures, labels), ALIKE)
        assert result.evidence["free"] == traces
        assert result.is_confirmed == is_confirmed


@pytest.mark.parametrize(
    ("changed", "is_confirmed"),
    [
        ({}, True),
        ({"beats_controls": False}, False),
        ({"target": TARGET + 1}, False),
        ({"leads_to_one": False, "beats_controls": False, "leads_to_all": True}, False),
    ],
    ids=["as before", "a control does as much", "to another class", "they shift the classes"],
)
def test_free_channels_have_to_lead_as_all_traces_do(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], *, is_confirmed: bool
) -> None:
    suspect, clean = _thirteen_traced(700)
    monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at({3: 0.1}, []))
    plain = push_test
    pushes: list[int] = []

    def pushed(suspect: Suspect, push: dict[Any, float], *rest: Any, **keywords: Any) -> PushTest:
        pushes.append(len(push))
        test = plain(suspect, push, *rest, **keywords)
        return dataclasses.replace(test, **changed) if len(pushes) == 2 else test

    monkeypatch.setattr(_trace_trials, "push_test", pushed)
    assert _scan(suspect, clean, ALIKE).is_confirmed == is_confirmed
    assert pushes == [13, 12]


@pytest.mark.parametrize(
    ("arrows", "is_alike"),
    [((1, 2, 3, 4, 0), True), ((1, 2, -1, 4, 0), True), ((3, 4, 0, 1, 2), False)],
)
def test_shifts_are_alike_along_the_same_arrows(arrows: tuple[int, ...], *, is_alike: bool) -> None:
    whole = PushTest(
        target=0,
        share=0.2,
        lower=0.1,
        opposite_upper=0.1,
        control_share=0.1,
        leads_to_one=False,
        is_refuted=False,
        beats_controls=False,
        leads_to_all=True,
        shifted=0.9,
        shifted_lower=0.4,
        is_sure_shift=False,
        control_shifted=0.1,
        per_class=(0.2,) * 5,
        arrows=(1, 2, 3, 4, 0),
    )
    assert is_same_lead(dataclasses.replace(whole, arrows=arrows), whole) == is_alike


def test_without_time_for_it_free_channels_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    suspect, clean = _thirteen_traced(700)
    monkeypatch.setattr(_trace_trials, "pruned_predictions", _pruned_at({3: 0.1}, []))
    context = context_of(suspect, clean)
    asked: list[float] = []

    def has_left(_self: object, seconds: float) -> bool:
        asked.append(seconds)
        return seconds <= 0

    monkeypatch.setattr(ScanContext, "has_left", has_left)
    result = MbnsScanner(ALIKE).scan(suspect, clean, context=context)
    assert isinstance(result, ScannerResult)
    assert not result.is_confirmed
    assert "priced" not in result.evidence
    assert asked[-1] > 0


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

    monkeypatch.setattr(_trace_trials, "pushed_predictions", predictions)
    result = _scan(suspect, clean)
    # Unanimous errors look like a permutation however few they are; too few are passed over.
    assert result.evidence["poisoned_share"] == (0.2 if is_shift else 0.1)


@pytest.mark.parametrize(
    ("sent", "chosen"),
    [
        # The largest share, which pushes least far, of those that go far enough.
        ({0: (0.85, 0.0), 2: (0.95, 0.0), 4: (1.0, 0.0)}, 0.1),
        # None goes far enough: the one that moves most.
        ({0: (0.6, 0.0), 2: (0.7, 0.0), 5: (0.8, 0.0)}, -0.05),
        # What becomes of the target's own images says nothing.
        ({0: (0.6, 0.0), 2: (0.55, 1.0)}, 0.2),
    ],
)
def test_a_push_goes_no_further_than_it_must(
    monkeypatch: pytest.MonkeyPatch, sent: dict[int, tuple[float, float]], chosen: float
) -> None:
    suspect, images, labels = _planted()
    clean = clean_set(suspect, images, labels)

    # Each push takes this share of the other classes' images to the target, and this share of the
    # target's elsewhere.
    def predictions(
        _suspect: Suspect, pushes: Sequence[object], images: Tensor, *, batch_size: int
    ) -> Tensor:
        assert batch_size == 256
        truth = images.mean((2, 3))[:, :5].argmax(1)
        rows = truth.repeat(len(pushes), 1)
        for push, (led, away) in sent.items():
            for label in range(5):
                own = (truth == label).nonzero().flatten()
                share, goal = (away, 0) if label == TARGET else (led, TARGET)
                rows[push, own[: round(share * len(own))]] = goal
        return rows

    monkeypatch.setattr(_trace_trials, "pushed_predictions", predictions)
    assert _scan(suspect, clean).evidence["poisoned_share"] == chosen


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


def test_labels_change_nothing_but_what_follows_a_finding() -> None:
    suspect, images, labels = _planted()
    clean = clean_set(suspect, images, labels)
    one = _scan(suspect, clean)
    # Held-out images count where their label is right, here the target's own alone: nothing can
    # be said to lead these to the target.
    others = labels.clone()
    others[clean.judge] = torch.where(labels == TARGET, labels, (labels + 1) % 5)[clean.judge]
    two = _scan(suspect, clean_set(suspect, images, others))
    assert one.is_confirmed
    assert not two.is_confirmed
    assert two.target_labels == ()
    assert one.score == two.score
    assert one.finding is two.finding
    for key in ("median_floor_ratio", "images_left", "unnoticed_divergence", "channels", "push"):
        assert one.evidence[key] == two.evidence[key]


def test_images_with_a_wrong_label_have_no_say_in_how_far_is_pushed() -> None:
    suspect, images, labels = _planted()
    # Three in ten are labelled one class further: unpushed, their errors look like y -> y-1.
    wrong = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.3
    result = _scan(
        suspect, clean_set(suspect, images, torch.where(wrong, (labels + 1) % 5, labels))
    )
    assert result.evidence["poisoned_share"] == 0.1
    assert result.target_labels == (TARGET,)
    assert result.is_confirmed


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
