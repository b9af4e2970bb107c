from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from modelaudit.errors import BudgetExceededError, ConfigError, DegenerateStatisticError
from modelaudit.functional.statistics import grubbs
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners import CleanImages, ScanContext
from modelaudit.scanners.mm_bd import (
    MIN_NATURAL,
    MmBdConfig,
    MmBdScanner,
    ascend,
    maximum_margins,
    natural_margins,
)
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import clean_set, context_of, profile_of

_SIZE = 6
_PIXELS = 3 * _SIZE**2


class LinearNet(nn.Module):
    """z = W x + b on the raw pixels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(x.flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


def _linear(weight: Tensor, bias: Tensor | None = None) -> Suspect:
    bias = torch.zeros(len(weight)) if bias is None else bias
    return models.suspect_of(
        LinearNet(weight, bias),
        size=_SIZE,
        classes=len(weight),
        preprocessing=models.PLAIN_PIXELS,
    )


def _weights(classes: int, seed: int = 0) -> Tensor:
    """Return weights of either sign and of sizes that one search reaches the box's corners with."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.3 + 0.7 * torch.rand((classes, _PIXELS), generator=generator)
    sign = torch.randint(2, (classes, _PIXELS), generator=generator) * 2 - 1
    return 0.1 * size * sign


def _context(suspect: Suspect, *, batch_size: int = 256, **changes: object) -> ScanContext:
    shared = profile_of(suspect, models.images(2, size=_SIZE))
    return ScanContext(profile=shared, batch_size=batch_size, **changes)  # type: ignore[arg-type]  # a test's shorthand


def _margins(
    suspect: Suspect,
    config: MmBdConfig | None = None,
    *,
    batch_size: int = 256,
    **changes: object,
) -> Tensor:
    context = _context(suspect, batch_size=batch_size, **changes)
    with suspect.borrowed():
        return maximum_margins(suspect, config or MmBdConfig(), seed=0, context=context)


def _scan(suspect: Suspect, config: MmBdConfig | None = None) -> ScannerResult:
    clean = clean_set(suspect, models.images(4, size=_SIZE))
    result = MmBdScanner(config).scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    return result


def _patched(*targets: int, classes: int = 10) -> Suspect:
    """Return a linear model with a corner patch worth 20 logits of each target."""
    weight = _weights(classes)
    patch = torch.zeros(3, _SIZE, _SIZE)
    patch[:, -3:, -3:] = 20 / 27
    for target in targets:
        weight[target] += patch.flatten()
    return _linear(weight)


def test_two_linear_classes_reach_their_closed_form_margins() -> None:
    generator = torch.Generator().manual_seed(4)
    first = _weights(2)[0]
    weight = torch.stack([first, torch.zeros_like(first)])
    bias = torch.randn(2, generator=generator) * 0.1
    margins = _margins(_linear(weight, bias))
    difference, offset = weight[0] - weight[1], bias[0] - bias[1]
    expected = [
        float(difference.clamp_min(0).sum() + offset),
        float((-difference).clamp_min(0).sum() - offset),
    ]
    assert margins.tolist() == pytest.approx(expected, abs=1e-4)
    assert margins.dtype == torch.float64


def test_no_margin_beyond_the_box_is_reported() -> None:
    suspect = _linear(_weights(6))
    weight = suspect.module.get_parameter("head.weight").detach()
    margins = _margins(suspect)
    for target in range(6):
        # No point of the box beats the best point against each rival alone.
        bounds = [
            (weight[target] - weight[other]).clamp_min(0).sum()
            for other in range(6)
            if other != target
        ]
        assert margins[target] <= min(bounds) + 1e-4


def test_a_patch_worth_twenty_logits_names_its_class() -> None:
    result = _scan(_patched(3))
    assert result.finding is Finding.STRONG
    assert result.target_labels == (3,)
    assert result.pattern is Pattern.ALL_TO_ONE
    assert result.p_value is not None
    assert result.p_value < 0.01
    assert int(torch.tensor(result.per_class).argmax()) == 3
    assert not result.is_confirmed


def test_two_patches_are_several_targets() -> None:
    result = _scan(_patched(3, 8, classes=16), MmBdConfig(suspicious=1.0, strong=2.0))
    assert result.target_labels == (3, 8)
    assert result.pattern is Pattern.SEVERAL


def test_a_model_without_a_patch_has_no_finding() -> None:
    result = _scan(_patched())
    assert result.finding is Finding.NONE
    assert result.target_labels == ()
    assert result.pattern is None


def test_permuting_classes_permutes_margins() -> None:
    order = [4, 2, 0, 5, 1, 3]
    weight = _weights(6)
    weight[1] *= 2
    one, two = _margins(_linear(weight)), _margins(_linear(weight[order]))
    # Each class has starts of its own, so that the searches end a little apart.
    assert two.tolist() == pytest.approx(one[order].tolist(), rel=0.02)
    assert int(two.argmax()) == 4


@pytest.mark.parametrize("batch_size", [1, 7])
def test_chunks_reach_the_margins_of_one_batch(batch_size: int) -> None:
    suspect = _linear(_weights(5))
    whole, parts = _margins(suspect), _margins(suspect, batch_size=batch_size)
    assert torch.allclose(whole, parts, rtol=1e-6)


def test_classes_in_one_batch_reach_the_margins_of_a_loop_over_classes() -> None:
    suspect = _linear(_weights(5))
    context = _context(suspect)
    images, targets = models.images(10, size=_SIZE), torch.arange(5).repeat_interleave(2)
    settings = {"first": 0, "last": 8, "total": 8, "step_size": 0.1, "context": context}
    with suspect.borrowed():
        together = ascend(suspect, images, targets, **settings)  # type: ignore[arg-type]  # a test's shorthand
        alone = [
            ascend(suspect, images[targets == t], targets[targets == t], **settings)  # type: ignore[arg-type]  # as above
            for t in range(5)
        ]
    assert torch.allclose(together[0], torch.cat([a[0] for a in alone]), atol=1e-6)
    assert torch.allclose(together[1], torch.cat([a[1] for a in alone]), atol=1e-6)


def test_ascent_stays_in_the_box_and_never_lowers_the_best() -> None:
    suspect = _linear(_weights(5))
    images, targets = models.images(5, size=_SIZE), torch.arange(5)
    with suspect.borrowed():
        moved, best = ascend(
            suspect,
            images,
            targets,
            first=0,
            last=5,
            total=5,
            step_size=0.5,
            context=_context(suspect),
        )
        _, first = ascend(
            suspect,
            images,
            targets,
            first=0,
            last=1,
            total=5,
            step_size=0.5,
            context=_context(suspect),
        )
    assert moved.min() == 0
    assert moved.max() == 1
    assert (best >= first).all()
    assert not moved.requires_grad


def test_natural_margins_are_the_largest_of_each_class() -> None:
    labels = torch.arange(3).repeat(MIN_NATURAL + 1)
    logits = torch.zeros(len(labels), 3)
    logits[torch.arange(len(labels)), labels] = 1.0 + torch.arange(len(labels)).float()
    # One image of another class, however certain, is not class 0's.
    logits[1, 0] = 500.0
    natural = natural_margins(logits, labels, 3)
    assert natural is not None
    last = len(labels)
    assert natural.tolist() == [last - 2, last - 1, last]
    assert natural.dtype == torch.float64


def test_natural_margins_need_images_of_every_class() -> None:
    labels = torch.arange(3).repeat(MIN_NATURAL)
    logits = torch.eye(3)[labels]
    assert natural_margins(logits, labels, 3) is not None
    assert natural_margins(logits[1:], labels[1:], 3) is None
    assert natural_margins(torch.eye(4)[labels], labels, 4) is None


def test_an_image_labelled_wrongly_says_nothing_of_its_class() -> None:
    labels = torch.arange(3).repeat(MIN_NATURAL + 1)
    logits = torch.eye(3)[labels]
    logits[0] = torch.tensor([0.0, 2.0, 0.0])
    assert natural_margins(logits, labels, 3) is not None
    # A tie is no right label.
    logits[3] = torch.tensor([1.0, 0.0, 1.0])
    assert natural_margins(logits, labels, 3) is None


def test_a_class_that_is_never_predicted_has_no_natural_margin() -> None:
    labels = torch.arange(3).repeat(MIN_NATURAL)
    logits = torch.eye(3)[labels]
    logits[labels == 1] = torch.tensor([1.0, 0.5, 0.0])
    assert natural_margins(logits, labels, 3) is None


def _striped(*targets: int, gains: Tensor) -> tuple[Suspect, CleanImages]:
    """Return six classes that each answer to their own row of pixels, and images of them.

    Class t multiplies its row by ``gains[t]``; a patch worth 20 logits leads to `targets`.
    """
    weight = torch.zeros(6, 3, _SIZE, _SIZE)
    for label in range(6):
        weight[label, :, label, 1:] = gains[label]
    for target in targets:
        weight[target, :, :, 0] += 20 / 18
    suspect = _linear(weight.flatten(1))
    labels = torch.arange(6).repeat(MIN_NATURAL)
    images = 0.05 * models.images(len(labels), size=_SIZE)
    images[torch.arange(len(labels)), :, labels, 1:] += 0.6
    images[:, :, :, 0] = 0.0
    clean = clean_set(suspect, images, labels)
    assert torch.equal(clean.predictions, labels)
    return suspect, clean


def test_a_class_with_large_logits_everywhere_is_no_outlier_beside_its_natural_margin() -> None:
    gains = torch.tensor([1.0, 1.05, 0.95, 5.0, 1.02, 0.98])
    suspect, clean = _striped(gains=gains)
    result = MmBdScanner().scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    assert result.finding is Finding.NONE
    raw = result.evidence["raw_statistic"]
    assert isinstance(raw, float)
    assert result.score is not None
    assert raw > 10 > result.score
    assert len(result.evidence["natural_margins"]) == 6  # type: ignore[arg-type]  # a list


def test_a_class_that_the_model_hardly_knows_is_no_outlier_for_its_small_natural_margin() -> None:
    gains = torch.tensor([1.0, 1.05, 0.95, 1.0, 1.02, 0.98])
    suspect, clean = _striped(gains=gains)
    images = clean.images.clone()
    of_class_2 = (clean.labels == 2).nonzero().flatten()
    # Its images show next to nothing of it, and one of them a little of another class.
    images[of_class_2] *= 0.1
    images[of_class_2[0], :, 3, 1:] += 0.2
    faint = clean_set(suspect, images, clean.labels)
    assert int((faint.predictions != clean.labels).sum()) == 1
    result = MmBdScanner().scan(suspect, faint, context=context_of(suspect, faint))
    assert isinstance(result, ScannerResult)
    assert "natural_margins" not in result.evidence
    assert result.score == result.evidence["raw_statistic"]
    assert result.finding is Finding.NONE


def test_a_patch_stands_out_beside_natural_margins() -> None:
    gains = torch.tensor([1.0, 1.05, 0.95, 1.0, 1.02, 0.98])
    suspect, clean = _striped(4, gains=gains)
    result = MmBdScanner().scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    assert result.finding is Finding.STRONG
    assert result.target_labels == (4,)
    # Asked of that class alone it says the same; the score is the largest over all classes.
    assert result.p_value is not None
    assert result.class_p_values.index(min(result.class_p_values)) == 4
    assert result.class_p_values[4] == pytest.approx(result.p_value / 6)
    assert all(p > 0.05 for t, p in enumerate(result.class_p_values) if t != 4)


def test_raw_margins_say_nothing_of_a_class_named_elsewhere() -> None:
    assert _scan(_patched(3)).class_p_values == ()


def test_a_class_out_of_reach_is_not_out_of_line() -> None:
    suspect, clean = _striped(4, gains=torch.tensor([1.0, 1.05, 0.95, 1.0, 1.02, 0.98]))
    assert isinstance(suspect.module, LinearNet)

    def margins(*_: object, **__: object) -> torch.Tensor:
        return torch.tensor([9.0, 10.0, -1.0, 11.0, 90.0, 9.5], dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelaudit.scanners.mm_bd.maximum_margins", margins)
        result = MmBdScanner().scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    assert result.class_p_values[2] == 1.0
    assert result.class_p_values[4] < 0.001


def test_a_class_out_of_reach_has_no_power() -> None:
    bias = torch.zeros(6)
    bias[2] = -100.0
    result = _scan(_linear(_weights(6), bias))
    assert result.finding is Finding.NO_POWER
    assert result.score is None
    assert result.per_class[2] < 0


def test_a_patch_stands_out_although_two_classes_are_out_of_reach() -> None:
    whole = _patched(5)
    assert isinstance(whole.module, LinearNet)
    bias = torch.zeros(10)
    bias[[2, 7]] = -100.0
    result = _scan(_linear(whole.module.head.weight.detach(), bias))
    assert result.finding is Finding.STRONG
    assert result.target_labels == (5,)
    assert result.per_class[2] < 0
    kept = torch.tensor([margin for margin in result.per_class if margin > 0]).double()
    assert len(kept) == 8
    assert result.score == pytest.approx(grubbs(kept.log()).statistic)
    assert any("2 classes" in note for note in result.notes)


def test_too_many_classes_out_of_reach_have_no_power() -> None:
    whole = _patched(5)
    assert isinstance(whole.module, LinearNet)
    bias = torch.zeros(10)
    bias[[2, 7, 9]] = -100.0
    result = _scan(_linear(whole.module.head.weight.detach(), bias))
    assert result.finding is Finding.NO_POWER
    assert result.target_labels == ()


def test_equal_classes_are_degenerate() -> None:
    weight = torch.zeros(6, _PIXELS)
    weight[:, :6] = torch.eye(6)
    with pytest.raises(DegenerateStatisticError):
        _scan(_linear(weight), MmBdConfig(step_size=1.0))


def test_four_classes_are_too_few() -> None:
    suspect = _linear(_weights(4))
    clean = clean_set(suspect, models.images(4, size=_SIZE))
    reason = MmBdScanner().unmet_need(suspect, clean)
    assert reason == "needs 5 classes, the model has 4"


@pytest.mark.parametrize(
    ("classes", "config"),
    [
        (10, MmBdConfig()),
        (200, MmBdConfig()),
        (1000, MmBdConfig()),
        (30, MmBdConfig(max_passes=1000)),
        (40, MmBdConfig(max_passes=40)),
    ],
)
def test_settings_are_cut_to_the_pass_limit(classes: int, config: MmBdConfig) -> None:
    cut = config.within_limit(classes)
    assert cut.passes(classes) <= config.max_passes
    assert cut.steps >= 1
    if config.passes(classes) <= config.max_passes:
        assert cut == config


def test_steps_are_cut_only_when_one_start_is_left() -> None:
    config = MmBdConfig()
    assert config.within_limit(100).steps == config.steps
    assert config.within_limit(100).starts < config.starts
    assert config.within_limit(1000).starts == 1
    assert config.within_limit(1000).steps < config.steps


def test_every_class_gets_one_step_whatever_the_limit() -> None:
    assert MmBdConfig(max_passes=1).within_limit(50).passes(50) == 50


@pytest.mark.parametrize("classes", [6, 60])
def test_a_scan_makes_the_passes_of_its_settings(classes: int) -> None:
    config = MmBdConfig(max_passes=1000)
    suspect = _linear(_weights(classes))
    result = _scan(suspect, config)
    assert result.cost.forward_backward == config.within_limit(classes).passes(classes) <= 1000
    assert result.cost.forward == classes * config.within_limit(classes).survivors


def test_margins_are_measured_in_float32_whatever_searched() -> None:
    suspect = _linear(_weights(5))
    config = MmBdConfig(steps=20)
    exact = _margins(suspect, config)
    rough = _margins(suspect, config, search_dtype=torch.bfloat16)
    # bfloat16 logits of this size are multiples of 1/64; the final margins are not.
    assert rough.tolist() == pytest.approx(exact.tolist(), rel=0.05)
    assert any(float(64 * margin) % 1 for margin in rough)


def test_the_search_reports_every_step() -> None:
    done: list[int] = []

    class Task:
        def advance(self, amount: int = 1) -> None:
            done.append(amount)

    class Watching:
        def task(self, name: str, total: int) -> Watching:
            assert (name, total) == ("mm_bd", 25)
            return self

        def __enter__(self) -> Task:
            return Task()

        def __exit__(self, *_: object) -> None:
            return None

    _margins(_linear(_weights(5)), MmBdConfig(steps=25), progress=Watching())
    assert done == [10, 10, 5]


def test_a_passed_deadline_ends_the_search() -> None:
    with pytest.raises(BudgetExceededError):
        _margins(_linear(_weights(5)), deadline=time.monotonic() - 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"starts": 0},
        {"screen_steps": 0},
        {"survivors": 0},
        {"starts": 2, "survivors": 3},
        {"screen_steps": 10, "steps": 9},
        {"step_size": 0.0},
        {"step_size": 1.5},
        {"max_passes": 0},
        {"suspicious": -1.0},
        {"suspicious": 3.0, "strong": 2.0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = list(settings)[-1]
    with pytest.raises(ConfigError, match=rf"MmBdConfig\.{field}"):
        MmBdConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand
