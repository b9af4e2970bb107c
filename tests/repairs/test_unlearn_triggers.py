"""Stand-ins for a trigger: their search, and unlearning what they do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from modelaudit.errors import ConfigError
from modelaudit.repairs import place_search
from modelaudit.repairs.place_search import SearchSettings
from modelaudit.repairs.stand_in_bank import StandInBank
from modelaudit.repairs.stand_ins import Patch, Warp
from modelaudit.repairs.targets import map_to
from modelaudit.repairs.unlearn_triggers import (
    Unlearning,
    UnlearnTriggersConfig,
    UnlearnTriggersRepair,
)
from modelaudit.results import Finding, Pattern
from modelaudit.suspect import Suspect
from tests.helpers.planted import CLASSES, SIZE, TARGET, trained
from tests.helpers.stand_ins import watched_sides
from tests.helpers.training import (
    backdoored,
    context_of,
    copy_of,
    finding_of,
    is_well_formed,
    pattern_data,
    rates,
    same_state,
)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planted patch count as a trigger's: of 144 pixels it takes more than of 1,024."""
    monkeypatch.setattr(place_search, "LARGE_PATCH", 0.3)


QUICK = UnlearnTriggersConfig(
    starts=2, searches=1, search_steps=60, steps=60, learning_rate=0.01, crop=False, flip=False
)
NAMED = (finding_of(Finding.STRONG, (TARGET,)),)


def test_the_backdoor_goes_and_the_accuracy_stays() -> None:
    suspect = backdoored()
    config = replace(QUICK, mask_price=20.0)
    made = UnlearnTriggersRepair(config).repair(
        suspect, pattern_data(), context=context_of(findings=NAMED, max_accuracy_drop=0.05)
    )
    (accuracy, success), (accuracy_after, success_after) = (
        rates(suspect.module),
        rates(made.module),
    )
    assert success > 0.9
    assert success_after < 0.2
    assert accuracy_after > accuracy - 0.03
    assert is_well_formed(made, suspect)


def test_the_statistics_stay() -> None:
    suspect = backdoored()
    made = UnlearnTriggersRepair(replace(QUICK, mask_price=20.0)).repair(
        suspect, pattern_data(), context=context_of(findings=NAMED)
    )
    old = dict(suspect.module.named_buffers())
    assert all(torch.equal(old[name], b) for name, b in made.module.named_buffers())
    assert not same_state(made.module, suspect.module)


def test_without_stand_ins_in_the_loss_it_stays() -> None:
    config = replace(QUICK, mask_price=20.0, trigger_weight=0.0)
    made = UnlearnTriggersRepair(config).repair(
        backdoored(), pattern_data(), context=context_of(findings=NAMED)
    )
    assert rates(made.module)[1] > 0.8


def test_a_user_may_name_the_target() -> None:
    config = replace(QUICK, mask_price=20.0)
    data = pattern_data()
    told = UnlearnTriggersRepair(replace(config, target=TARGET)).repair(
        backdoored(), data, context=context_of()
    )
    found = UnlearnTriggersRepair(config).repair(
        backdoored(), data, context=context_of(findings=NAMED)
    )
    assert same_state(told.module, found.module)


def test_the_passes_are_those_of_the_estimate() -> None:
    suspect, data = backdoored(), pattern_data()
    repair = UnlearnTriggersRepair(replace(QUICK, mask_price=20.0))
    made = repair.repair(suspect, data, context=context_of(findings=NAMED))
    # No scan pushes channels, which would be one term more.
    unpushed = UnlearnTriggersRepair(replace(repair.config, push_weight=0.0))
    assert made.cost.forward_backward == unpushed.estimate(suspect, data).forward_backward
    assert made.cost.forward <= repair.estimate(suspect, data).forward + 2 * len(data.validation)


def test_all_to_all_without_arrows_is_not_taken_for_one_target() -> None:
    finding = finding_of(Finding.STRONG, (), Pattern.ALL_TO_ALL)
    suspect = backdoored()
    made = UnlearnTriggersRepair(QUICK).repair(
        suspect, pattern_data(), context=context_of(findings=(finding,))
    )
    assert same_state(made.module, suspect.module)
    assert "all-to-all" in made.notes[0]


def test_nothing_changes_where_no_target_is_named() -> None:
    suspect, data = backdoored(), pattern_data()
    made = UnlearnTriggersRepair(QUICK).repair(suspect, data, context=context_of())
    assert same_state(made.module, suspect.module)
    assert "no scan names a target" in made.notes[0]
    # traces would take a pass
    without = UnlearnTriggersRepair(replace(QUICK, trace_weight=0.0))
    assert made.cost.forward == without.repair(suspect, data, context=context_of()).cost.forward


def test_an_unnamed_target_is_guessed_by_its_easy_stand_in() -> None:
    accused = (finding_of(Finding.SUSPICIOUS, ()),)
    config = replace(QUICK, mask_price=20.0)
    suspect, data = backdoored(), pattern_data()
    made = UnlearnTriggersRepair(config).repair(
        suspect, data, context=context_of(findings=accused, max_accuracy_drop=0.05)
    )
    assert made.details["maps"] == [map_to(TARGET, 6).tolist()]
    assert any(f"output {TARGET} has the easiest stand-in" in note for note in made.notes)
    assert rates(made.module)[1] < 0.3
    few = UnlearnTriggersRepair(replace(config, max_guessed=5)).repair(
        suspect, data, context=context_of(findings=accused)
    )
    assert same_state(few.module, suspect.module)


def test_nothing_changes_where_no_stand_in_works() -> None:
    suspect, data = trained(is_backdoored=False), pattern_data()
    config = replace(QUICK, mask_price=1000.0)
    made = UnlearnTriggersRepair(config).repair(suspect, data, context=context_of(findings=NAMED))
    assert same_state(made.module, suspect.module)
    assert any("no stand-in" in note for note in made.notes)


def bank_of(
    suspect: Suspect, *maps: torch.Tensor, steps: int = 60, least_success: float = 0.3
) -> StandInBank:
    return StandInBank(
        suspect,
        pattern_data(),
        [(goals, None) for goals in maps],
        settings=SearchSettings(
            steps=steps, batch=64, price=20.0, price_alone=20.0, warp_limit=0.02, dtype=None
        ),
        least_success=least_success,
        draws=torch.Generator().manual_seed(0),
    )


def test_further_searches_come_at_even_steps_over_all_maps_and_end() -> None:
    suspect = copy_of(backdoored())
    bank = bank_of(suspect, map_to(TARGET, 6), map_to(0, 6), least_success=0.0)
    disturbed = ((bank, 0.5),)
    objective = Unlearning(
        suspect, suspect, bank, disturbed=disturbed, every=2, searches=3, dtype=None
    )
    counts = []
    for _ in range(10):
        objective.after_step(torch.optim.SGD(suspect.module.parameters(), lr=0.0))
        counts.append(len(bank.log))
    assert counts == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    assert [row.index for row in bank.log] == [0, 1, 0]
    assert len(bank.kept) == 3


def test_what_does_not_work_is_not_kept() -> None:
    bank = bank_of(copy_of(backdoored()), map_to(TARGET, 6), least_success=1.0, steps=1)
    bank.search(0)
    assert bank.kept == []
    assert len(bank.log) == 1


def test_classes_that_stay_are_not_searched() -> None:
    bank = bank_of(copy_of(backdoored()), torch.full((6,), -1))
    bank.search(0)
    assert bank.log == []


def test_patches_and_a_warp_are_searched_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = torch.zeros(1, 3, SIZE, SIZE)

    def patch(_model: Suspect, _images: Tensor, wanted: Tensor, **_settings: Any) -> Patch:
        return Patch(mask=blank[:, :1], pattern=blank, success=0.8)

    def warp(_model: Suspect, _images: Tensor, wanted: Tensor, **_settings: Any) -> Warp:
        flow = torch.zeros(1, 2, 4, 4)
        return Warp(flow=flow, side=SIZE, success=0.1 if wanted[0] == 0 else 0.9)

    monkeypatch.setattr(place_search, "search_patch", patch)
    monkeypatch.setattr(place_search, "search_warp", warp)
    bank = bank_of(copy_of(backdoored()), map_to(0, CLASSES), map_to(TARGET, CLASSES))
    bank.search_all(2)
    assert [(row.index, type(row.found)) for row in bank.log] == [
        (index, form) for index in (0, 1) for form in (Patch, Patch, Warp)
    ]
    # what works is kept, and its forms are searched further in turn, what leads most first
    assert [type(one) for one in bank.kept] == [Patch, Patch, Patch, Patch, Warp]
    for place in (0, 1, 0, 1, 1):
        bank.search(place)
    assert [(row.index, type(row.found)) for row in bank.log[6:]] == [
        (0, Patch),
        (1, Warp),
        (0, Patch),
        (1, Patch),
        (1, Warp),
    ]


def test_large_patches_are_not_trained_against(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = torch.ones(1, 3, SIZE, SIZE)
    monkeypatch.setattr(
        place_search,
        "search_patch",
        lambda *_given, **_settings: Patch(mask=whole[:, :1], pattern=whole, success=0.8),
    )
    monkeypatch.setattr(
        place_search,
        "search_warp",
        lambda *_given, **_settings: Warp(flow=torch.zeros(1, 2, 4, 4), side=SIZE, success=0.7),
    )
    bank = bank_of(copy_of(backdoored()), map_to(TARGET, CLASSES))
    bank.search_all(2)
    bank.search(0)
    bank.search(0)
    assert [type(one) for one in bank.kept] == [Warp, Warp, Warp]
    assert bank.large == 2
    # nor what is found on the way, where no form has worked yet
    later = bank_of(copy_of(backdoored()), map_to(TARGET, CLASSES))
    later.search(0)
    assert (later.kept, later.large) == ([], 1)
    made = UnlearnTriggersRepair(QUICK).repair(
        backdoored(), pattern_data(), context=context_of(findings=NAMED)
    )
    assert f"{QUICK.starts} large patches left out" in made.notes[-1]
    monkeypatch.setattr(place_search, "WARP_STARTS", 0)
    unchanged = UnlearnTriggersRepair(QUICK).repair(
        backdoored(), pattern_data(), context=context_of(findings=NAMED)
    )
    assert unchanged.history == ()
    assert (
        f"works, {QUICK.starts} large patches left out: nothing was changed"
        in (unchanged.notes[-1])
    )


def test_a_large_patch_is_no_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = torch.zeros(1, 3, SIZE, SIZE)
    drawn = iter(range(CLASSES))

    def search(*_given: object, **_settings: object) -> Patch:
        # one pixel more for each class: the first is the easiest
        mask = torch.zeros(1, 1, SIZE, SIZE)
        mask.view(-1)[: 40 + next(drawn)] = 1
        return Patch(mask=mask, pattern=blank, success=0.9)

    monkeypatch.setattr(place_search, "search_patch", search)
    monkeypatch.setattr(place_search, "LARGE_PATCH", 39 / SIZE**2)
    accused = (finding_of(Finding.STRONG, ()),)
    made = UnlearnTriggersRepair(QUICK).repair(
        backdoored(), pattern_data(), context=context_of(findings=accused)
    )
    assert made.history == ()
    assert f"works, {CLASSES} large patches left out" in made.notes[1]


def test_the_log_says_what_was_searched() -> None:
    made = UnlearnTriggersRepair(replace(QUICK, mask_price=20.0)).repair(
        backdoored(), pattern_data(), context=context_of(findings=NAMED)
    )
    rows = made.details["searches"]
    assert isinstance(rows, list)
    assert len(rows) == QUICK.starts + 1 + QUICK.searches
    index, form, extent, success = rows[0]  # type: ignore[misc]  # a row of JSON
    assert (index, form) == (0, "patch")
    assert 0 < extent < SIZE * SIZE  # type: ignore[operator]  # as above
    # 0.90 or 0.91, by the number of threads
    assert 0.8 < success <= 1  # type: ignore[operator]  # as above


def test_the_side_of_the_traces_is_that_of_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = watched_sides(monkeypatch)
    few = replace(QUICK, starts=1, searches=0, search_steps=1, steps=1, least_success=0.0)
    for share in (0.05, -0.05):
        finding = replace(NAMED[0], evidence={"poisoned_share": share})
        UnlearnTriggersRepair(few).repair(
            backdoored(), pattern_data(), context=context_of(findings=(finding,))
        )
    assert sides == [False, True]
    UnlearnTriggersRepair(replace(few, trace_weight=0.0)).repair(
        backdoored(), pattern_data(), context=context_of(findings=NAMED)
    )
    assert len(sides) == 2


def test_an_all_to_all_finding_is_followed_by_its_arrows() -> None:
    arrows = (1, 2, 3, 4, 5, 0)
    finding = finding_of(Finding.STRONG, (), Pattern.ALL_TO_ALL, arrows=arrows)
    made = UnlearnTriggersRepair(replace(QUICK, least_success=0.0)).repair(
        backdoored(), pattern_data(), context=context_of(findings=(finding,))
    )
    assert made.details["maps"] == [list(arrows)]


@pytest.mark.parametrize("field", ["target", "starts", "steps", "mask_price", "batch"])
def test_values_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        UnlearnTriggersConfig(**{field: -1})  # type: ignore[arg-type]  # on purpose
