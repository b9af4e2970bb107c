from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.errors import ConfigError, DegenerateStatisticError
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.scanners import CleanImages, Scanner, ban
from modelaudit.scanners._noise_search import (
    NoisyRun,
    paper_epsilon,
)
from modelaudit.scanners.ban import BanConfig, BanScanner, _p_values, consensus
from modelaudit.scanners.dde import DdeScanner
from modelaudit.suspect import Suspect
from tests.helpers import models
from tests.helpers.planted import (
    CLASSES,
    TARGET,
    clean_set,
    context_of,
    trained,
    trained_clean_set,
    vary,
)

if TYPE_CHECKING:
    from modelaudit.results import Json

#: Few and short searches, which are enough for the small trained nets.
_SHORT = {"restarts": 4, "steps": 6, "batch": 64, "mask_steps": 50, "targeted_steps": 2}

#: Settings with which every lead is strong, so that the confirmation runs.
_ALWAYS = {"suspicious": 0.0, "strong": 0.0, "min_agreement": 0.0}


def _short(**changes: object) -> BanConfig:
    return BanConfig(**{**_SHORT, "profile_images": 0, **changes})  # type: ignore[arg-type]  # a test's shorthand


def _scan(
    config: BanConfig,
    *,
    is_backdoored: bool,
    suspect: Suspect | None = None,
    clean: CleanImages | None = None,
) -> ScannerResult:
    suspect = suspect or trained(is_backdoored=is_backdoored)
    clean = clean or trained_clean_set(is_backdoored=is_backdoored)
    result = BanScanner(config).scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    return result


def _untrained() -> tuple[Suspect, CleanImages]:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(60)
    vary(suspect, images)
    return suspect, clean_set(suspect, images)


def test_a_trained_backdoor_is_found_and_named() -> None:
    result = _scan(_short(), is_backdoored=True)
    assert result.finding in {Finding.SUSPICIOUS, Finding.STRONG}
    assert result.target_labels == (TARGET,)
    assert result.pattern is Pattern.ALL_TO_ONE
    assert int(torch.tensor(result.per_class).argmax()) == TARGET
    assert result.evidence["agreement"] == 1.0
    # Noise sends images nowhere else, so that nothing says how far classes differ by nature.
    assert sum(share > 0 for share in result.per_class) < len(result.per_class) / 2
    assert result.class_p_values == ()


def test_each_class_has_its_own_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def p_values(
        predictions: torch.Tensor, labels: torch.Tensor, classes: int
    ) -> tuple[float, ...]:
        asked.append((*predictions.shape, len(labels), classes))
        return tuple(i / classes for i in range(classes))

    monkeypatch.setattr(ban, "_p_values", p_values)
    result = _scan(_short(), is_backdoored=True)
    classes = len(result.per_class)
    assert result.class_p_values == tuple(i / classes for i in range(classes))
    ((restarts, images, labels, known),) = asked
    assert (restarts, images, known) == (_short().restarts, labels, classes)


def test_a_trained_clean_model_is_not_strong() -> None:
    result = _scan(_short(), is_backdoored=False)
    assert result.finding is not Finding.STRONG
    assert not result.is_confirmed


def test_the_lead_of_a_backdoor_is_that_of_noise_not_of_chance() -> None:
    clean, planted = (_scan(_short(), is_backdoored=b) for b in (False, True))
    assert clean.score is not None
    assert planted.score is not None
    assert planted.score > clean.score + 0.05


def test_epsilon_zero_gives_no_lead() -> None:
    result = _scan(_short(epsilon=0.0), is_backdoored=True)
    assert result.finding is Finding.NONE
    assert result.score == pytest.approx(0.0, abs=0.02)
    assert result.target_labels == ()
    assert result.evidence["epsilon"] == 0.0


def test_all_four_cells_of_noise_and_mask_are_reported() -> None:
    result = _scan(_short(), is_backdoored=True)
    cells = result.evidence["cells"]
    assert isinstance(cells, dict)
    assert list(cells) == ["clean", "noise", "mask", "noise_and_mask"]
    for cell in cells.values():
        assert isinstance(cell, dict)
        assert cell.keys() == {"accuracy", "modal_class", "modal_share"}
    accuracy = {name: cell["accuracy"] for name, cell in cells.items()}  # type: ignore[index, call-overload]  # checked above
    assert accuracy["clean"] == 1.0
    assert accuracy["noise"] < 1.0  # type: ignore[operator]  # a number


@pytest.mark.parametrize("case", ["no cheap head", "no mask steps"])
def test_the_mask_cells_are_left_out_without_a_mask(case: str) -> None:
    config = _short(mask_steps=0 if case == "no mask steps" else 5)
    net = models.tiny_untraceable() if case == "no cheap head" else models.tiny_bn()
    suspect = models.suspect_of(net)
    clean = clean_set(suspect, models.images(60))
    result = _scan(config, is_backdoored=False, suspect=suspect, clean=clean)
    cells = result.evidence["cells"]
    assert isinstance(cells, dict)
    assert list(cells) == ["clean", "noise"]


def test_the_first_order_profile_is_shown_without_a_vote() -> None:
    suspect, clean = _untrained()
    without = _scan(_short(), is_backdoored=False, suspect=suspect, clean=clean)
    shown = _scan(_short(profile_images=20), is_backdoored=False, suspect=suspect, clean=clean)
    assert "first_order_profile" not in without.evidence
    profile = shown.evidence["first_order_profile"]
    assert isinstance(profile, list)
    assert len(profile) == suspect.num_classes
    assert (shown.finding, shown.score) == (without.finding, without.score)
    assert shown.cost.forward_backward == without.cost.forward_backward + 20 * suspect.num_classes


def test_restarts_must_agree() -> None:
    suspect, clean = _untrained()
    split = _scan(
        _short(suspicious=0.0, strong=0.0, min_agreement=1.0),
        is_backdoored=False,
        suspect=suspect,
        clean=clean,
    )
    agreement = split.evidence["agreement"]
    assert (split.finding is Finding.NONE) == (agreement != 1.0)


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"suspicious": 0.0, "strong": 0.0}, Finding.STRONG),
        ({"suspicious": 0.0, "strong": 1.0}, Finding.SUSPICIOUS),
        ({"suspicious": 1.0, "strong": 1.0}, Finding.NONE),
    ],
)
def test_the_lead_decides_the_finding(settings: dict[str, float], finding: Finding) -> None:
    suspect, clean = _untrained()
    config = _short(**{"min_agreement": 0.0, "restarts": 2, "mask_steps": 0, **settings})
    result = _scan(config, is_backdoored=False, suspect=suspect, clean=clean)
    assert result.finding is finding
    assert ("targeted_shares" in result.evidence) == (finding is not Finding.NONE)
    assert (result.pattern is None) == (finding is Finding.NONE)


def test_the_confirmation_aims_at_every_class() -> None:
    result = _scan(_short(targeted_steps=4), is_backdoored=True)
    shares = result.evidence["targeted_shares"]
    assert isinstance(shares, list)
    assert len(shares) == CLASSES
    assert int(torch.tensor(shares).argmax()) == TARGET
    assert 0.0 <= result.evidence["targeted_lower_bound"] <= 1.0  # type: ignore[operator]  # a number


@pytest.mark.parametrize(("target", "expected"), [(1, True), (0, False)])
def test_only_the_class_that_outruns_all_others_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, target: int, *, expected: bool
) -> None:
    suspect = trained(is_backdoored=False)
    clean = trained_clean_set(is_backdoored=False)
    _, labels = clean.judged()
    # Noise aimed at class 1 sends everything there; the others do with two thirds and a little.
    rows = []
    for aim in range(CLASSES):
        row = labels.clone()
        others = (labels != aim).nonzero().flatten()
        row[others if aim == 1 else others[: 2 * len(others) // 3 + aim]] = aim
        rows.append(NoisyRun(predictions=row, features=None))
    runs = iter(rows)
    monkeypatch.setattr(ban, "judge", lambda *_, **__: next(runs))
    evidence: dict[str, Json] = {}
    with suspect.borrowed():
        confirmed = BanScanner(_short(targeted_steps=1))._confirm(
            suspect, clean, context_of(suspect, clean), 0.3, target, evidence
        )
    assert confirmed is expected
    assert evidence["targeted_lower_bound"] > 0.5  # type: ignore[operator]  # a number


def test_another_seed_draws_other_noise() -> None:
    suspect, clean = trained(is_backdoored=True), trained_clean_set(is_backdoored=True)
    results = [
        BanScanner(_short(mask_steps=0)).scan(
            suspect, clean, context=context_of(suspect, clean, seed=seed)
        )
        for seed in (0, 1)
    ]
    assert isinstance(results[0], ScannerResult)
    assert isinstance(results[1], ScannerResult)
    assert results[0].per_class != results[1].per_class
    assert results[0].target_labels == results[1].target_labels


def test_few_classes_cannot_be_confirmed() -> None:
    suspect, clean = _untrained()
    result = _scan(_short(**_ALWAYS), is_backdoored=False, suspect=suspect, clean=clean)
    assert result.finding is Finding.STRONG
    assert not result.is_confirmed
    assert "targeted_p_value" not in result.evidence
    assert result.class_p_values == ()


def test_one_stray_image_makes_no_class_stand_out() -> None:
    labels = torch.arange(10).repeat(15)
    predictions = labels.repeat(8, 1)
    predictions[0, 0] = 3
    assert _p_values(predictions, labels, 10) == ()
    # One image of each class goes to the next one in one to eight restarts, twelve of every class
    # to 3 in all of them.
    for label in range(10):
        predictions[: label % 8 + 1, label] = (label + 1) % 10
    predictions[:, 20:140] = 3
    p_values = _p_values(predictions, labels, 10)
    assert p_values.index(min(p_values)) == 3
    assert p_values[3] < 1e-4


def test_a_model_that_is_right_about_no_held_out_image_raises() -> None:
    suspect = models.suspect_of(models.tiny_bn())
    images = models.images(60)
    with suspect.borrowed():
        wrong = (suspect.predict(images) + 1) % 4
    clean = clean_set(suspect, images, wrong)
    with pytest.raises(DegenerateStatisticError, match="held-out"):
        BanScanner(_short()).scan(suspect, clean, context=context_of(suspect, clean))
    assert suspect.passes.forward_backward == 0


def _consensus(rows: list[list[int]], labels: list[int], classes: int) -> tuple[object, ...]:
    shares = consensus(
        torch.tensor(rows),
        torch.tensor(labels),
        classes,
        generator_=torch.Generator().manual_seed(0),
    )
    return shares.mean.tolist(), shares.modal, shares.agreement, shares.lead, shares.lead_interval


def test_consensus_of_a_hand_worked_example() -> None:
    labels = [0, 0, 1, 1, 2, 2]
    rows = [
        [2, 2, 2, 1, 2, 2],  # 3 of 4 others go to class 2
        [1, 0, 2, 2, 2, 2],  # 2 of 4 to class 2, 1 of 4 to class 1
    ]
    mean, modal, agreement, lead, interval = _consensus(rows, labels, 3)
    assert mean == pytest.approx([0.0, 0.125, 0.625])
    assert modal == 2
    assert agreement == 1.0
    assert lead == pytest.approx(0.5)
    assert isinstance(interval, tuple)
    assert interval[0] <= 0.5 <= interval[1]


def test_restarts_that_name_different_classes_disagree() -> None:
    labels = [0, 1, 2, 3] * 5
    rows = [[target] * 20 for target in (0, 1, 1, 2)]
    _, modal, agreement, _, _ = _consensus(rows, labels, 4)
    assert modal == 1
    assert agreement == 0.5


def test_right_predictions_have_no_lead() -> None:
    labels = [0, 1, 2] * 4
    mean, _, _, lead, interval = _consensus([labels, labels], labels, 3)
    assert mean == [0.0, 0.0, 0.0]
    assert lead == 0.0
    assert interval == (0.0, 0.0)


@pytest.mark.parametrize(("size", "expected"), [(32, 0.3), (40, 0.3), (64, 0.2), (224, 0.1)])
def test_the_paper_s_box_follows_the_input_size(size: int, expected: float) -> None:
    assert paper_epsilon(size) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": -0.1},
        {"epsilon": 1.1},
        {"epsilon": math.nan},
        {"restarts": 0},
        {"steps": 0},
        {"batch": 1},
        {"min_agreement": 1.1},
        {"suspicious": -0.1},
        {"suspicious": 0.2, "strong": 0.1},
        {"mask_steps": -1},
        {"mask_weight": -1.0},
        {"mask_learning_rate": 0.0},
        {"targeted_steps": 0},
        {"profile_images": -1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    field = list(settings)[-1]
    with pytest.raises(ConfigError, match=rf"BanConfig\.{field}"):
        BanConfig(**settings)  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize("scanner", [BanScanner, DdeScanner])
def test_a_model_without_neurons_is_neither_cleared_nor_accused(
    scanner: type[Scanner[Any]],
) -> None:
    pixels = 3 * models.SIZE**2
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, models.CLASSES))
    suspect = models.suspect_of(module.eval())
    assert suspect.sites == ()
    clean = clean_set(suspect, models.images(60))
    result = scanner().scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    assert result.finding is Finding.NO_POWER
