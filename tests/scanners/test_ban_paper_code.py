from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelaudit.errors import ConfigError
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners import CleanImages
from modelaudit.scanners.ban import BanScanner
from modelaudit.scanners.ban_paper_code import BanPaperCodeConfig, BanPaperCodeScanner
from modelaudit.suspect import BatchNormMode, Suspect, state_digest
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of, vary

_QUICK = {"steps": 4, "noise_batches": 2, "mask_steps": 6, "batch": 16}


def _quick(**changes: object) -> BanPaperCodeConfig:
    return BanPaperCodeConfig(**{**_QUICK, **changes})  # type: ignore[arg-type]  # a test's shorthand


def _case() -> tuple[Suspect, CleanImages]:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(60)
    vary(suspect, images)
    return suspect, clean_set(suspect, images)


def _scan(config: BanPaperCodeConfig) -> ScannerResult:
    suspect, clean = _case()
    scanner = BanPaperCodeScanner(config, variant="paper_code")
    result = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    return result


def _ignore(_amount: int = 1) -> None:
    """Take a step's report."""


def test_it_is_the_variant_of_ban() -> None:
    assert BanScanner.variants["paper_code"] is BanPaperCodeScanner
    assert BanPaperCodeScanner.id == BanScanner.id
    assert _scan(_quick()).id == "ban@paper_code"


def test_it_never_moves_the_verdict() -> None:
    result = _scan(_quick(accuracy_threshold=1.0, loss_threshold=0.0))
    assert not result.is_calibrated
    assert not result.is_confirmed
    assert result.finding is not Finding.STRONG
    assert result.threshold is None


def test_its_noise_leaves_the_box_and_stays_in_twice_the_box() -> None:
    suspect, clean = _case()
    scanner = BanPaperCodeScanner(_quick(steps=8))
    with suspect.borrowed():
        noise = scanner._search_noise(
            suspect,
            clean.images,
            clean.labels,
            0.3,
            context_of(suspect, clean),
            _ignore,
        )
    size = torch.cat([noise.weight, noise.bias]).abs()
    assert size.max() > 0.3
    assert size.max() <= 0.6 + 1e-6


def test_its_mask_overshoots_the_interval_by_one_step_at_most() -> None:
    suspect, clean = _case()
    scanner = BanPaperCodeScanner(_quick(mask_steps=30, mask_learning_rate=0.2))
    with suspect.borrowed():
        mask = scanner._search_mask(
            suspect,
            clean.images,
            clean.labels,
            context_of(suspect, clean),
            _ignore,
        )
    assert mask.shape == suspect.split.feature_shape  # type: ignore[union-attr]  # it has one
    assert mask.min() < 0
    assert mask.min() > -0.5
    assert mask.max() < 1.5


def test_running_statistics_drift_during_the_scan_and_come_back() -> None:
    suspect, clean = _case()
    buffers = suspect.module.get_submodule("norm1").get_buffer("running_mean")
    before, digest = buffers.clone(), state_digest(suspect.module)
    seen: list[Tensor] = []
    edited = suspect.edited

    def watch(edits: object, *, mode: BatchNormMode, groups: int = 1) -> object:
        if mode is BatchNormMode.RUNNING:
            seen.append(buffers.clone())
        return edited(edits, mode=mode, groups=groups)  # type: ignore[arg-type]  # passed on

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suspect, "edited", watch)
        BanPaperCodeScanner(_quick()).scan(suspect, clean, context=context_of(suspect, clean))
    # The evaluation uses the drifted statistics.
    assert len(seen) == 1
    assert not torch.allclose(seen[0], before)
    assert torch.equal(buffers, before)
    assert state_digest(suspect.module) == digest


def test_the_noise_search_itself_lets_the_statistics_drift() -> None:
    suspect, clean = _case()
    buffer = suspect.module.get_submodule("norm2").get_buffer("running_var")
    before = buffer.clone()
    context = context_of(suspect, clean)
    with suspect.borrowed():
        BanPaperCodeScanner(_quick())._search_noise(
            suspect, clean.images, clean.labels, 0.3, context, _ignore
        )
        assert not torch.allclose(buffer, before)
    assert torch.equal(buffer, before)


def test_only_the_last_batchs_noise_survives() -> None:
    suspect, clean = _case()

    def search(batches: int) -> Tensor:
        scanner = BanPaperCodeScanner(_quick(noise_batches=batches))
        with suspect.borrowed():
            return scanner._search_noise(
                suspect,
                clean.images,
                clean.labels,
                0.3,
                context_of(suspect, clean),
                _ignore,
            ).weight

    assert search(1).shape == search(2).shape
    assert not torch.equal(search(1), search(2))


@pytest.mark.parametrize(
    ("accuracy", "loss", "is_flagged"), [(1.0, 0.0, True), (0.0, 0.0, False), (1.0, 1e9, False)]
)
def test_both_unused_arguments_must_be_exceeded(
    accuracy: float, loss: float, *, is_flagged: bool
) -> None:
    result = _scan(_quick(accuracy_threshold=accuracy, loss_threshold=loss))
    assert result.evidence["negative_mask_accuracy"] != 1.0
    if is_flagged:
        assert result.finding is Finding.SUSPICIOUS
        assert result.target_labels == (result.evidence["modal_class"],)
        assert result.pattern is Pattern.ALL_TO_ONE
    else:
        assert result.finding is Finding.NONE
        assert result.target_labels == ()
        assert result.pattern is None


def test_predictions_of_every_image_are_counted() -> None:
    result = _scan(_quick())
    assert sum(result.per_class) == pytest.approx(1.0)
    assert result.score == max(result.per_class)
    assert result.per_class[result.evidence["modal_class"]] == result.score  # type: ignore[index]  # an index


def test_the_passes_are_those_of_both_searches_and_two_evaluations() -> None:
    result = _scan(_quick())
    assert result.cost.forward == 1 + 2 * 24
    assert result.cost.forward_backward == 16 * (6 + 2 * 4)


@pytest.mark.parametrize(("size", "epsilon"), [(8, 0.3), (48, 0.2), (100, 0.1)])
def test_the_box_follows_the_input_size(size: int, epsilon: float) -> None:
    suspect = models.suspect_of(models.tiny_bn(width=2), size=size)
    clean = clean_set(suspect, models.images(50, size=size))
    config = _quick(steps=1, noise_batches=1, mask_steps=1, batch=4)
    result = BanPaperCodeScanner(config).scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    assert result.evidence["epsilon"] == epsilon


def test_a_given_box_is_used() -> None:
    assert _scan(_quick(epsilon=0.05)).evidence["epsilon"] == 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": -0.1},
        {"steps": 0},
        {"noise_batches": 0},
        {"mask_steps": 0},
        {"batch": 0},
        {"mask_weight": -0.1},
        {"mask_learning_rate": 0.0},
        {"accuracy_threshold": 1.1},
        {"loss_threshold": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"BanPaperCodeConfig\.{field}"):
        BanPaperCodeConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
