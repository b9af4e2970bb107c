from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelaudit.errors import ConfigError
from modelaudit.functional.entropy import vasicek_entropy
from modelaudit.results import Cost, Finding, Pattern, ScannerResult
from modelaudit.scanners.dde import (
    GAUSSIAN_ENTROPY,
    DdeConfig,
    DdeScanner,
    channel_entropies,
    driven_images,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import (
    TARGET,
    clean_set,
    context_of,
    gate_images,
    gate_suspect,
    profile_of,
)


def _scan(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    mixture: Tensor | None = None,
    config: DdeConfig | None = None,
) -> ScannerResult:
    clean = clean_set(suspect, images, labels, mixture=mixture)
    result = DdeScanner(config).scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    return result


def _planted(triggered: int, *, classes: int = 5, is_all_to_all: bool = False) -> ScannerResult:
    """Scan a `GateNet` with a mixture of 300 images, `triggered` of them with the trigger."""
    suspect = gate_suspect(classes=classes, is_all_to_all=is_all_to_all)
    images, labels = gate_images(200, classes=classes)
    mixture, _ = gate_images(300, classes=classes, triggered=triggered)
    return _scan(suspect, images, labels, mixture=mixture)


def _named(result: ScannerResult) -> list[tuple[str, int]]:
    neurons = result.evidence["neurons"]
    assert isinstance(neurons, list)
    return [(row[0], row[1]) for row in neurons]  # type: ignore[index,misc]  # a list of lists


def test_clean_images_alone_have_no_power() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    result = _scan(suspect, models.images(60))
    assert result.finding is Finding.NO_POWER
    assert result.score is None
    assert "--mixture" in result.notes[0]
    assert result.cost.forward == 0
    lowest = result.evidence["lowest_entropies"]
    assert isinstance(lowest, list)
    assert len(lowest) == 10
    entropies = [row[2] for row in lowest]  # type: ignore[index]  # a list of lists
    assert entropies == sorted(entropies)  # type: ignore[type-var]  # floats


def test_a_small_mixture_has_no_power() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    result = _scan(suspect, models.images(60), mixture=models.images(199))
    assert result.finding is Finding.NO_POWER
    assert result.notes == ("needs 200 mixture images",)


def test_the_entropy_is_that_of_each_channels_peak() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(60)
    neurons, entropies = channel_entropies(profile_of(suspect, images))
    assert neurons[8] == ("norm2", 0)
    with suspect.borrowed(), torch.no_grad():
        peaks = suspect.module.get_submodule("conv1")((images - 0.5) / 0.5).amax((2, 3))
    assert torch.allclose(entropies[:8], vasicek_entropy(peaks.double()), atol=1e-4)
    assert entropies.shape == (24,)
    assert entropies.max() < GAUSSIAN_ENTROPY + 0.1


def test_a_planted_channel_of_a_mixture_is_found_and_its_target_named() -> None:
    result = _planted(60)
    assert result.finding is Finding.STRONG
    assert result.target_labels == (TARGET,)
    assert result.pattern is Pattern.ALL_TO_ONE
    assert not result.is_confirmed
    assert _named(result) == [("norm", 5)]
    assert result.evidence["pruned_accuracy_drop"] == 0.0
    assert result.evidence["driven_images"] == 60
    assert result.evidence["driven_to_target"] == 60
    leaving = result.evidence["driven_that_leave_when_pruned"]
    assert isinstance(leaving, int)
    # Images of the target's own class stay.
    assert 30 <= leaving <= 60
    assert result.per_class == tuple(float(t == TARGET) for t in range(5))


def test_the_target_of_two_classes_is_named() -> None:
    result = _planted(160, classes=2)
    assert result.target_labels == (1,)
    assert result.pattern is Pattern.ALL_TO_ONE


def test_a_mixture_that_shifts_every_class_is_all_to_all() -> None:
    result = _planted(120, is_all_to_all=True)
    assert result.finding in {Finding.SUSPICIOUS, Finding.STRONG}
    assert result.pattern is Pattern.ALL_TO_ALL
    assert result.target_labels == ()


def test_a_mixture_of_clean_images_gives_no_finding() -> None:
    result = _planted(0)
    assert result.finding is Finding.NONE
    assert result.score is not None
    assert result.score < DdeConfig().suspicious
    assert result.target_labels == ()


def test_a_constant_channel_is_left_out() -> None:
    suspect = gate_suspect()
    images, labels = gate_images(200)
    images[:, 1] = 0.05
    mixture, _ = gate_images(300, triggered=60)
    clean = clean_set(suspect, images, labels)
    _, entropies = channel_entropies(context_of(suspect, clean).profile)
    assert entropies.isnan().nonzero().flatten().tolist() == [1]
    result = _scan(suspect, images, mixture=mixture)
    assert ("norm", 1) not in _named(result)
    assert _named(result)[0] == ("norm", 5)
    assert result.target_labels == (TARGET,)


def test_driven_images_lie_beyond_every_clean_one_on_the_longer_tail() -> None:
    clean = torch.tensor([[-1.0], [0.0], [1.0], [0.5]], dtype=torch.float64)
    mixture = torch.tensor([[0.0], [0.9], [1.1], [9.0], [-2.0]], dtype=torch.float64)
    assert driven_images(clean, mixture).tolist() == [False, False, True, True, False]
    assert driven_images(-clean, -mixture).tolist() == [False, False, True, True, False]


def test_the_passes_are_those_of_one_profile_and_one_pruning() -> None:
    result = _planted(60)
    assert result.cost.forward == 2 * (300 + 200)


def test_clean_images_alone_are_estimated_to_cost_nothing() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    assert DdeScanner().estimate(suspect, clean_set(suspect, models.images(60))) == Cost()


def test_a_model_without_batchnorm_is_scanned() -> None:
    suspect = models.suspect_of(models.tiny_plain())
    result = _scan(suspect, models.images(60), mixture=models.images(250, seed=3))
    assert result.finding is not Finding.NO_POWER


@pytest.mark.parametrize(
    "settings",
    [
        {"suspicious": 0.0},
        {"suspicious": 0.5, "strong": 0.4},
        {"neurons": 0},
        {"min_mixture": 19},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = list(settings)[-1]
    with pytest.raises(ConfigError, match=rf"DdeConfig\.{field}"):
        DdeConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
