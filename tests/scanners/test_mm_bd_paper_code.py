from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import ConfigError
from modelaudit.functional.gamma_fit import gamma_p_value_paper_code
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners.mm_bd import MmBdScanner
from modelaudit.scanners.mm_bd_paper_code import MmBdPaperCodeConfig, MmBdPaperCodeScanner
from modelaudit.seeds import generator
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of

CLASSES = 6
PIXELS = 2 * 2 * 3


def _linear(weight: Tensor) -> Suspect:
    """Return the suspect z = Wx over 2x2 colour images in plain pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, len(weight), bias=False)).eval()
    with torch.no_grad():
        net.get_submodule("1").get_parameter("weight").copy_(weight)
    return Suspect(net, preprocessing=models.PLAIN_PIXELS, input_size=2, num_classes=len(weight))


def _weights(*, planted: int | None = None) -> Tensor:
    weight = models.draw((CLASSES, PIXELS), seed=4)
    if planted is not None:
        weight[planted] *= 8
    return weight


def _scan(suspect: Suspect, config: MmBdPaperCodeConfig, *, batch_size: int = 256) -> ScannerResult:
    clean = clean_set(suspect, models.images(12, size=2))
    scanner = MmBdPaperCodeScanner(config, variant="paper_code")
    result = scanner.scan(suspect, clean, context=context_of(suspect, clean, batch_size=batch_size))
    assert isinstance(result, ScannerResult)
    return result


def _literal(
    weight: Tensor, config: MmBdPaperCodeConfig, seed: int = 0
) -> tuple[list[float], list[int]]:
    """Return r_t and steps by one loop for each class, gradients by hand."""
    margins, steps = [], []
    for t in range(len(weight)):
        draws = generator(seed, "mm_bd", "paper_code", t)
        x = torch.rand((config.starts, 3, 2, 2), generator=draws).flatten(1)
        last = 0.0
        for step in range(config.steps):
            z = x.clamp(0, 1) @ weight.T
            others = z.clone()
            others[:, t] = -torch.inf
            values, rival = others.max(1)
            margin = z[:, t] - values
            inside = ((x >= 0) & (x <= 1)).float()
            x = x + config.step_size * (weight[t] - weight[rival]) * inside
            total = float(margin.double().sum())
            if step and abs(total - last) < config.tolerance * abs(last):
                break
            last = total
        margins.append(float(margin.max()))
        steps.append(step + 1)
    return margins, steps


def test_it_is_the_variant_of_mm_bd() -> None:
    assert MmBdScanner.variants["paper_code"] is MmBdPaperCodeScanner
    assert _scan(_linear(_weights()), MmBdPaperCodeConfig(steps=2)).id == "mm_bd@paper_code"


@pytest.mark.parametrize("batch_size", [7, 256])
def test_one_loop_for_each_class_gives_the_same_margins(batch_size: int) -> None:
    weight = _weights()
    config = MmBdPaperCodeConfig(starts=3, steps=120, step_size=0.05)
    result = _scan(_linear(weight), config, batch_size=batch_size)
    margins, steps = _literal(weight, config)
    assert list(result.per_class) == pytest.approx(margins, abs=1e-5)
    assert result.evidence["steps"] == steps
    # Some class stopped by itself.
    assert min(steps) < 120


def test_the_largest_margin_of_two_directions_is_the_closed_form() -> None:
    weight = torch.zeros(5, PIXELS)
    weight[0, :4], weight[1, 4:7] = 1.0, 2.0
    result = _scan(_linear(weight), MmBdPaperCodeConfig(steps=200))
    # All pixels of the class at one, those of its rivals at zero.
    assert result.per_class[0] == pytest.approx(4.0, abs=1e-4)
    assert result.per_class[1] == pytest.approx(6.0, abs=1e-4)


def test_a_planted_class_is_flagged_and_named() -> None:
    result = _scan(_linear(_weights(planted=4)), MmBdPaperCodeConfig(starts=4, steps=200))
    assert result.finding is Finding.SUSPICIOUS
    assert result.pattern is Pattern.ALL_TO_ONE
    assert result.target_labels == (4,)
    assert result.p_value is not None
    assert result.p_value < 0.05
    assert result.score == pytest.approx(-math.log10(result.p_value))
    assert result.p_value == pytest.approx(
        gamma_p_value_paper_code(torch.tensor(result.per_class).double())
    )


@pytest.mark.parametrize("significance", [1e-12, 1.0])
def test_the_p_value_alone_decides(significance: float) -> None:
    config = MmBdPaperCodeConfig(starts=2, steps=20, significance=significance)
    result = _scan(_linear(_weights()), config)
    assert result.finding is (Finding.SUSPICIOUS if significance == 1.0 else Finding.NONE)
    assert not result.is_calibrated
    assert not result.is_confirmed


def test_a_class_that_stopped_costs_no_more_passes() -> None:
    config = MmBdPaperCodeConfig(starts=3, steps=120, step_size=0.05)
    result = _scan(_linear(_weights()), config)
    taken = result.evidence["steps"]
    assert isinstance(taken, list)
    assert result.cost.forward_backward == 3 * sum(taken)  # type: ignore[arg-type]  # integers
    assert result.cost.forward == 0


@pytest.mark.parametrize(
    "settings",
    [{"starts": 0}, {"steps": 0}, {"step_size": 0.0}, {"tolerance": -1.0}, {"significance": 0.0}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"MmBdPaperCodeConfig\.{field}"):
        MmBdPaperCodeConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
