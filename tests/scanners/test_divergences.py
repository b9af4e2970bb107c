from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modelaudit.functional import reweighting
from modelaudit.functional.divergence import bootstrap_effective_size
from modelaudit.scanners._divergences import Divergences, divergences
from modelaudit.seeds import generator
from tests.helpers import models
from tests.helpers.planted import contaminate, fit_statistics, profile_of

if TYPE_CHECKING:
    import pytest


def _found(*layers: list[float], per_nat: float = 1000.0) -> Divergences:
    """Return divergences with these floor ratios, layer by layer."""
    ratios = torch.tensor([r for layer in layers for r in layer], dtype=torch.float64)
    names = [(f"layer{i}", c) for i, layer in enumerate(layers) for c in range(len(layer))]
    return Divergences(
        neurons=tuple(names),
        divergence=ratios / per_nat,
        floor_ratio=ratios,
        unweighted_ratio=ratios,
        shift=torch.zeros_like(ratios),
        deviation=torch.ones_like(ratios),
        image_weights=torch.ones(10, dtype=torch.float64),
    )


def test_a_layer_at_its_floor_has_the_floor_as_its_unit() -> None:
    scores = _found([0.1, 0.2, 0.5, 0.9, 30.0]).scores()
    assert scores.tolist() == [0.1, 0.2, 0.5, 0.9, 30.0]


def test_a_mismatched_layer_is_measured_by_its_upper_quartile() -> None:
    # Of 9 channels the quartile is the seventh smallest; the median, 8, says no less: 23.
    scores = _found([2.0, 3.0, 5.0, 7.0, 8.0, 9.0, 10.0, 12.0, 200.0]).scores()
    assert scores[-1] == 20.0
    assert scores[0] == 0.2


def test_a_trigger_in_a_third_of_a_layer_does_not_hide_in_its_own_quartile() -> None:
    scores = _found([0.5, 0.5, 0.5, 0.5, 2.0, 2.0, 90.0, 90.0, 90.0]).scores()
    # The median, 2, says that the quartile of a layer without a trigger is 2.909 times that.
    assert float(scores[-1]) == 90 / (2.909 * 2.0)


def test_layers_have_units_of_their_own() -> None:
    scores = _found([1.0, 1.0, 1.0, 40.0], [20.0, 20.0, 20.0, 40.0]).scores()
    assert scores.tolist() == [1.0, 1.0, 1.0, 40.0, 1.0, 1.0, 1.0, 2.0]


def test_traces_are_in_units_of_the_median_channels_but_never_below_the_floor() -> None:
    ratios = [0.1, 0.2, 0.5, 0.9, 30.0]
    assert _found(ratios).traces().tolist() == ratios
    # Over all layers alike, and a dead channel does not count.
    found = _found([1.0, 2.0, 4.0], [8.0, 40.0, 0.0])
    assert found.traces().tolist() == [0.25, 0.5, 1.0, 2.0, 10.0, 0.0]


def test_a_channel_carries_a_trace_by_its_own_floor_or_for_raising_the_alarm() -> None:
    # The first layer's unit is 1, the second's 6; the median channel's is 4.
    found = _found([1.0, 1.0, 1.0, 12.0], [6.0, 6.0, 6.0, 24.0], [1.0, 4.0, 4.0, 4.0])
    assert found.traced(5.0, suspicious=100.0).nonzero().flatten().tolist() == [7]
    assert found.traced(3.0, suspicious=100.0).nonzero().flatten().tolist() == [3, 7]
    assert found.traced(100.0, suspicious=12.0).nonzero().flatten().tolist() == [3]
    assert not bool(found.traced(100.0, suspicious=100.0).any())


def test_what_goes_unnoticed_is_the_median_layers_and_grows_with_its_unit() -> None:
    calm, torn = [1.0, 1.0, 1.0, 1.0], [10.0, 10.0, 10.0, 10.0]
    assert _found(calm).unnoticed(25.0) == 25 / 1000
    assert abs(_found(calm, torn, torn).unnoticed(25.0) - 250 / 1000) < 1e-6
    # Fewer images: a divergence is worth fewer floors.
    assert abs(_found(calm, per_nat=100.0).unnoticed(25.0) - 25 / 100) < 1e-6


def test_dead_channels_are_no_part_of_a_layer() -> None:
    found = _found([1.0, 1.0, 6.0, 60.0], [5.0, 5.0])
    found.divergence[4:] = torch.nan
    found.floor_ratio[4:] = 0.0
    assert found.scores()[4:].tolist() == [0.0, 0.0]
    assert found.unnoticed(25.0) < 0.2


def test_another_mixture_of_the_same_images_is_explained_by_weights() -> None:
    dark, bright = models.images(150, seed=1) * 0.5, models.images(150, seed=2)
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, torch.cat((dark[:50], bright)))
    contaminate(suspect, "norm2", 5, rate=0.1, shift=5.0)
    images = torch.cat((dark, bright[:50]))
    shared = profile_of(suspect, images)
    plain = divergences(suspect, shared, resamples=50, seed=0)
    mixed = divergences(suspect, shared, resamples=50, seed=0, ridge=0.1)
    assert float(plain.floor_ratio.median()) > 3
    assert float(mixed.floor_ratio.median()) < 1
    # The weights prefer what there was too little of, and explain no planted channel.
    assert float(mixed.image_weights[150:].mean()) > 1.5
    assert mixed.neurons[int(mixed.scores().argmax())] == ("norm2", 5)
    assert plain.neurons[int(plain.scores().argmax())] == ("norm2", 5)
    assert float(mixed.scores().max()) > 10 * float(plain.scores().max())
    # Unweighted, both say the same.
    assert torch.allclose(plain.unweighted_ratio, plain.floor_ratio)


def test_the_floor_is_bootstrapped_with_the_weights_of_the_images() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    fit_statistics(suspect, models.images(100, seed=9) * 0.8)
    shared = profile_of(suspect, models.images(60))
    found = divergences(suspect, shared, resamples=30, seed=4, ridge=0.1)
    assert float(found.image_weights.std()) > 0.5
    sizes = [
        bootstrap_effective_size(
            record.sums,
            record.squares,
            record.positions,
            image_weights=found.image_weights,
            resamples=30,
            generator=generator(4, "mbns", "bootstrap", record.site.name),
        )
        for record in shared.sites
    ]
    assert torch.allclose(found.floor_ratio, found.divergence * torch.cat(sizes), rtol=1e-12)


class _NewStorages(TorchFunctionMode):
    """Collect the tensors of at least `least` numbers that operations return, without views."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.found: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= self.least:
            # Kept alive, or a later tensor could take its address.
            self.found[result.untyped_storage().data_ptr()] = result
        return result


def test_the_deviations_of_all_channels_are_in_memory_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reweighting, "_COLUMNS", 8)
    suspect = models.suspect_of(models.tiny_bn())
    shared = profile_of(suspect, models.images(30))
    # Two statistics of each of 8 + 16 channels; a bool of each counts as much.
    with _NewStorages(30 * 48) as seen:
        divergences(suspect, shared, resamples=10, seed=0, ridge=3.0)
    assert [tuple(tensor.shape) for tensor in seen.found.values()] == [(30, 48)]
