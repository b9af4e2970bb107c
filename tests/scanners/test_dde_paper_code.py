from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from modelaudit.errors import ConfigError
from modelaudit.results import Finding, ScannerResult
from modelaudit.scanners import CleanImages
from modelaudit.scanners.dde import DdeScanner
from modelaudit.scanners.dde_paper_code import DdePaperCodeConfig, DdePaperCodeScanner
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of, profile_of, vary


def _case(*, black: int = 6, mixture: int = 60) -> tuple[Suspect, CleanImages]:
    """Return a suspect and a mixture some of whose images drive one channel of 16 far up."""
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(40)
    vary(suspect, images)
    mixed = models.images(mixture, seed=2)
    mixed[:black] = 0
    return suspect, clean_set(suspect, images, mixture=mixed)


def _scan(
    suspect: Suspect, clean: CleanImages, config: DdePaperCodeConfig | None = None, seed: int = 0
) -> ScannerResult:
    scanner = DdePaperCodeScanner(config, variant="paper_code")
    result = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=seed))
    assert isinstance(result, ScannerResult)
    return result


def _literal_entropy(values: list[float], low: float, high: float, width: float) -> float:
    """Return -Σ p ln p over ⌊range / width⌋ bins with both edges strict."""
    entropy = 0.0
    for i in range(int((high - low) / width)):
        inside = sum(low + i * width < v < low + (i + 1) * width for v in values)
        if inside:
            p = inside / len(values)
            entropy -= p * math.log(p)
    return entropy


def test_it_is_the_variant_of_dde() -> None:
    assert DdeScanner.variants["paper_code"] is DdePaperCodeScanner
    assert _scan(*_case()).id == "dde@paper_code"


def test_the_literal_loop_gives_the_same_channels() -> None:
    suspect, clean = _case()
    config = DdePaperCodeConfig(u=1.0)
    result = _scan(suspect, clean, config)
    assert clean.mixture is not None
    expected: dict[tuple[str, int], float] = {}
    for seen in profile_of(suspect, clean.mixture).sites:
        peaks = seen.peaks.double()
        standard = (peaks - peaks.mean(0)) / peaks.std(0)
        low, high = float(standard.min()), float(standard.max())
        h = [
            _literal_entropy(standard[:, k].tolist(), low, high, config.width)
            for k in range(seen.site.channels)
        ]
        average = sum(h) / len(h)
        sd = (sum((x - average) ** 2 for x in h) / (len(h) - 1)) ** 0.5
        expected |= {(seen.site.name, k): x for k, x in enumerate(h) if x < average - sd}
    found = {(row[0], row[1]): row[2] for row in result.evidence["channels"]}  # type: ignore[index, union-attr]  # rows
    assert found == pytest.approx(expected)
    assert result.score == len(expected) > 0
    assert result.finding is Finding.SUSPICIOUS


def test_clean_images_alone_give_no_power_and_cost_nothing() -> None:
    suspect, clean = _case()
    result = _scan(suspect, dataclasses.replace(clean, mixture=None))
    assert result.finding is Finding.NO_POWER
    assert "--mixture" in result.notes[0]
    assert result.cost.forward == 0


def test_one_batch_is_drawn_by_the_seed() -> None:
    suspect, clean = _case()
    config = DdePaperCodeConfig(images=30)
    one, again, other = (_scan(suspect, clean, config, seed) for seed in (0, 0, 1))
    assert one.evidence["batch_images"] == 30
    assert one.evidence == again.evidence
    assert one.evidence["largest_z"] != other.evidence["largest_z"]


def test_fewer_images_than_the_batch_are_said() -> None:
    result = _scan(*_case())
    assert any("takes 500 images, there are 60" in note for note in result.notes)


def test_a_constant_channel_counts_as_the_mean() -> None:
    suspect, clean = _case()
    with torch.no_grad():
        suspect.module.get_submodule("conv2").get_parameter("weight")[4] = 0
    result = _scan(suspect, clean, DdePaperCodeConfig(u=0.5))
    assert ("norm2", 4) not in {(row[0], row[1]) for row in result.evidence["channels"]}  # type: ignore[index, union-attr]  # rows
    assert result.evidence["layers_switched_off"] == []


def test_it_names_no_target_and_never_moves_the_verdict() -> None:
    result = _scan(*_case(), DdePaperCodeConfig(u=0.5))
    assert result.finding is Finding.SUSPICIOUS
    assert result.target_labels == ()
    assert not result.is_calibrated
    assert not result.is_confirmed


@pytest.mark.parametrize("settings", [{"u": -1.0}, {"images": 1}, {"width": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"DdePaperCodeConfig\.{field}"):
        DdePaperCodeConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
