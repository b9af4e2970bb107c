from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.errors import ConfigError
from modelaudit.results import Finding, ScannerResult
from modelaudit.scanners import CleanImages
from modelaudit.scanners.mbns import MbnsScanner
from modelaudit.scanners.mbns_paper_code import (
    MbnsPaperCodeConfig,
    MbnsPaperCodeScanner,
    cropped_and_flipped,
    paper_divergence,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import clean_set, contaminate, context_of, vary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

PLAIN = MbnsPaperCodeConfig(is_augmented=False)


def _case() -> tuple[Suspect, CleanImages]:
    """Return a suspect whose statistics fit the images but for one channel of 16."""
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(60)
    vary(suspect, images)
    contaminate(suspect, "norm2", 5, rate=0.1, shift=8.0)
    return suspect, clean_set(suspect, images)


def _scan(
    suspect: Suspect, clean: CleanImages, config: MbnsPaperCodeConfig = PLAIN, seed: int = 0
) -> ScannerResult:
    scanner = MbnsPaperCodeScanner(config, variant="paper_code")
    result = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=seed))
    assert isinstance(result, ScannerResult)
    return result


def test_it_is_the_variant_of_mbns() -> None:
    assert MbnsScanner.variants["paper_code"] is MbnsPaperCodeScanner
    assert _scan(*_case()).id == "mbns@paper_code"


@pytest.mark.parametrize(
    ("sample", "bn", "expected"),
    [
        ((0, 1), (0, 1), 0.0),
        ((1, 1), (0, 1), 0.5),
        ((0, 1), (0, 4), math.log(2) + 1 / 8 - 0.5),
        ((0, 4), (0, 1), 0.806853),
        ((0, 1), (1, 2), 0.346574),
    ],
)
def test_divergence_by_hand(sample: tuple[int, int], bn: tuple[int, int], expected: float) -> None:
    numbers = [torch.tensor([float(x)]).double() for x in (*sample, *bn)]
    assert float(paper_divergence(*numbers)) == pytest.approx(expected, abs=1e-6)


def test_a_dead_channel_has_no_epsilon_to_save_it() -> None:
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    assert paper_divergence(zero, zero, zero, one).isposinf().all()
    assert paper_divergence(zero, zero, zero, zero).isnan().all()


def test_the_contaminated_channel_is_the_one_found() -> None:
    result = _scan(*_case())
    assert result.score == 1.0
    assert result.finding is Finding.SUSPICIOUS
    rows = result.evidence["channels"]
    assert isinstance(rows, list)
    assert isinstance(rows[0], list)
    layer, channel, divergence, z = rows[0]
    assert (layer, channel) == ("norm2", 5)
    # ρ = 0.1, d = 8: μ moves 0.8 sd and σ² grows to 1 + 0.09·64 = 6.76.
    expected = 0.5 * math.log(6.76) + (1 + 0.64) / (2 * 6.76) - 0.5
    assert divergence == pytest.approx(expected, rel=1e-3)
    assert z == pytest.approx(15 / 4, rel=1e-3)


def test_the_literal_loop_gives_the_same_channels() -> None:
    # Statistics that fit nowhere, so that every channel has a K to speak of.
    suspect = models.suspect_of(models.tiny_bn())
    clean = clean_set(suspect, models.images(40))
    config = MbnsPaperCodeConfig(is_augmented=False, u=1.0)
    result = _scan(suspect, clean, config)
    inputs: dict[str, torch.Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = args[0].double()

        return hook

    handles = [
        suspect.module.get_submodule(site.name).register_forward_pre_hook(record(site.name))
        for site in suspect.sites
    ]
    with suspect.borrowed():
        suspect.predict(clean.images)
    for handle in handles:
        handle.remove()
    expected = set()
    for site in suspect.sites:
        bn_mean, bn_var = suspect.statistics(site)
        ks = []
        for k in range(site.channels):
            x = inputs[site.name][:, k].flatten()
            mean, var = float(x.mean()), float(x.var())
            m, v = float(bn_mean[k]), float(bn_var[k])
            ks.append(math.log(v**0.5 / var**0.5) + (var + (mean - m) ** 2) / (2 * v) - 0.5)
        average = sum(ks) / len(ks)
        sd = (sum((k - average) ** 2 for k in ks) / (len(ks) - 1)) ** 0.5
        expected |= {(site.name, i) for i, k in enumerate(ks) if k > average + sd}
    assert {(row[0], row[1]) for row in result.evidence["channels"]} == expected  # type: ignore[index, union-attr]  # rows
    assert result.score == len(expected) > 0


def test_a_dead_channel_hides_the_others_of_its_layer() -> None:
    suspect, clean = _case()
    variance = suspect.module.get_submodule("norm2").get_buffer("running_var")
    variance[0] = 0.0
    result = _scan(suspect, clean)
    assert result.score == 0.0
    assert result.evidence["layers_switched_off"] == ["norm2"]


def test_the_augmented_batch_is_another_one_and_follows_the_seed() -> None:
    suspect, clean = _case()

    def z(config: MbnsPaperCodeConfig, seed: int) -> object:
        return _scan(suspect, clean, config, seed=seed).evidence["largest_z"]

    augmented = MbnsPaperCodeConfig()
    assert z(augmented, 0) == z(augmented, 0)
    assert z(augmented, 0) != z(augmented, 1)
    # Without it the batch is all images whatever the seed draws, in another order.
    assert z(PLAIN, 0) == pytest.approx(z(PLAIN, 1), rel=1e-9)
    assert z(augmented, 0) != pytest.approx(z(PLAIN, 0), rel=1e-3)


def test_crops_are_windows_of_the_image_in_black_and_half_are_mirrored() -> None:
    images = torch.rand((200, 3, 16, 16), generator=torch.Generator().manual_seed(0)) + 0.1
    images = images.clamp(max=1.0)
    out = cropped_and_flipped(images, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places: set[tuple[int, int]] = set()
    mirrored = 0
    for image, frame in zip(out, padded, strict=True):
        windows = {
            (r, c, flip): frame[:, r : r + 16, c : c + 16].flip(2)
            if flip
            else frame[:, r : r + 16, c : c + 16]
            for r in range(5)
            for c in range(5)
            for flip in (False, True)
        }
        ((r, c, flip),) = [key for key, window in windows.items() if torch.equal(window, image)]
        places.add((r, c))
        mirrored += flip
    assert len(places) == 25
    assert 70 < mirrored < 130


def test_the_batch_has_at_most_the_set_number_of_images() -> None:
    suspect, clean = _case()
    result = _scan(suspect, clean, MbnsPaperCodeConfig(images=20))
    assert result.evidence["batch_images"] == 20
    assert result.cost.forward <= 20 + len(clean.judge)


def test_it_names_no_target_and_never_moves_the_verdict() -> None:
    result = _scan(*_case())
    assert result.target_labels == ()
    assert result.pattern is None
    assert not result.is_calibrated
    assert not result.is_confirmed


@pytest.mark.parametrize("settings", [{"u": -1.0}, {"images": 1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"MbnsPaperCodeConfig\.{field}"):
        MbnsPaperCodeConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
