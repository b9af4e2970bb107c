"""Stand-ins searched in the suspect say what is left of its backdoor."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.engine import witness
from modelaudit.engine.effects import is_powerful, leads_nowhere, still_works
from modelaudit.engine.witness import Witness, Witnesses, find_witnesses
from modelaudit.progress import NoProgress
from modelaudit.repairs import place_search
from modelaudit.repairs.stand_ins import Patch, StandIn, Warp
from modelaudit.repairs.targets import STAYS, map_to
from modelaudit.results import Finding, Pattern
from modelaudit.suspect import Suspect, state_digest
from tests.helpers.models import suspect_of, tiny_plain
from tests.helpers.planted import CLASSES, SIZE, TARGET, pattern_images, stamped, trained
from tests.helpers.stand_ins import watched_sides
from tests.helpers.training import backdoored, copy_of, data_of, finding_of, pattern_data

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from modelaudit.repair_results import Effect
    from modelaudit.results import ScannerResult

NAMED = (finding_of(Finding.STRONG, (TARGET,)),)


@pytest.fixture(autouse=True)
def _enough_steps(monkeypatch: pytest.MonkeyPatch, _short_search: None) -> None:
    monkeypatch.setattr(witness, "STARTS", 2)
    monkeypatch.setattr(witness, "STEPS", 60)
    monkeypatch.setattr(witness, "BATCH", 32)
    monkeypatch.setattr(witness, "MASK_PRICE", 20.0)
    monkeypatch.setattr(witness, "MASK_PRICE_ALONE", 20.0)
    monkeypatch.setattr(witness, "FURTHER_STEPS", 0)
    # of 144 pixels the planted patch takes more than of 1,024
    monkeypatch.setattr(place_search, "LARGE_PATCH", 0.3)


def found_in(
    suspect: Suspect, findings: tuple[ScannerResult, ...] = NAMED, *, seed: int = 0
) -> Witnesses:
    return find_witnesses(
        suspect, pattern_data(), findings, seed=seed, dtype=None, progress=NoProgress()
    )


def tried(witnesses: Witnesses, after: Suspect) -> tuple[Effect, ...]:
    return witnesses.effects(
        backdoored(), after, *pattern_images(200, 9), data=pattern_data(), seed=0, dtype=None
    )


def success_of_the_trigger(suspect: Suspect) -> float:
    pictures, truth = pattern_images(200, 9)
    predictions = suspect.predict(stamped(pictures[truth != TARGET]))
    return float((predictions == TARGET).double().mean())


def partly_cut(channels: int) -> Suspect:
    """Return the backdoored net without the channels that the trigger excites most."""
    suspect = copy_of(backdoored())
    pictures, _ = pattern_images(200, 3)
    means: list[Tensor] = []
    layer = suspect.module.get_submodule("norm3")
    handle = layer.register_forward_hook(lambda _m, _i, out: means.append(out.mean((0, 2, 3))))
    with torch.no_grad():
        suspect.logits(pictures)
        suspect.logits(stamped(pictures))
        handle.remove()
        order = (means[1] - means[0]).argsort(descending=True)[:channels]
        layer.get_parameter("weight")[order] = 0
        layer.get_parameter("bias")[order] = 0
    return suspect


def test_it_tells_what_is_left_of_the_trigger() -> None:
    witnesses = found_in(backdoored())
    (one,) = witnesses.found
    assert (one.scanner, one.target) == ("ban", TARGET)
    assert witnesses.notes == ()
    (whole,) = tried(witnesses, backdoored())
    assert is_powerful(whole)
    assert still_works(whole)
    assert whole.share_after == whole.share_before > 0.9
    assert whole.images == int((pattern_images(200, 9)[1] != TARGET).sum())
    (gone,) = tried(witnesses, trained(is_backdoored=False))
    assert gone.share_after < 0.5 * gone.share_before
    real, shown = zip(
        *(
            (success_of_the_trigger(model), tried(witnesses, model)[0].share_after)
            for model in (backdoored(), partly_cut(12), partly_cut(24), partly_cut(40))
        ),
        strict=True,
    )
    assert real[0] > 0.9
    assert real[-1] < 0.2
    for actual, estimate in zip(real, shown, strict=True):
        assert abs(actual - estimate) < 0.35


def patches(witnesses: Witnesses) -> list[Patch]:
    return [one for one in witnesses.found[0].stand_ins if isinstance(one, Patch)]


def test_the_same_seed_finds_the_same_and_the_suspect_stays_as_it_is() -> None:
    suspect = copy_of(backdoored())
    before = state_digest(suspect.module)
    one, two = found_in(suspect), found_in(suspect)
    assert state_digest(suspect.module) == before
    assert not any(m._forward_pre_hooks for m in suspect.module.modules())
    for a, b in zip(patches(one), patches(two), strict=True):
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.pattern, b.pattern)
    other = found_in(suspect, seed=1)
    assert not torch.equal(patches(other)[0].mask, patches(one)[0].mask)


def test_the_passes_of_the_search_are_counted() -> None:
    cost = found_in(backdoored()).cost
    assert cost.forward_backward == 3 * 60 * 32
    assert cost.forward > 0


def test_where_nobody_is_accused_nothing_is_searched_or_noted() -> None:
    nothing = found_in(backdoored(), (finding_of(Finding.NONE, ()),))
    assert (nothing.found, nothing.notes) == ((), ())
    assert (nothing.cost.forward, nothing.cost.forward_backward) == (0, 0)


def test_where_no_stand_in_works_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "MASK_PRICE", 1e4)
    lacking = found_in(backdoored())
    assert lacking.found == ()
    assert "no stand-in for a trigger leads the suspect's images" in lacking.notes[0]
    unnamed = found_in(backdoored(), (finding_of(Finding.STRONG, (), None),))
    assert (unnamed.found, len(unnamed.notes)) == ((), 1)


def test_each_named_target_has_a_witness_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "LEAST_SUCCESS", 0.0)
    monkeypatch.setattr(witness, "AGREEMENT_MARGIN", 2.0)
    both = found_in(backdoored(), (*NAMED, finding_of(Finding.STRONG, (0,))))
    assert [one.target for one in both.found] == sorted({0, TARGET})
    monkeypatch.setattr(witness, "MAX_PLACES", 1)
    first = found_in(backdoored(), (*NAMED, finding_of(Finding.STRONG, (0,))))
    assert [one.target for one in first.found] == [0]


def test_what_only_a_suspicious_finding_names_is_searched_where_none_is_strong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(witness, "LEAST_SUCCESS", 0.0)
    hint = finding_of(Finding.SUSPICIOUS, (0,))
    assert [one.target for one in found_in(backdoored(), (hint, *NAMED)).found] == [TARGET]
    assert [one.target for one in found_in(backdoored(), (hint,)).found] == [0]


def test_a_scanner_without_a_vote_names_no_place() -> None:
    silent = replace(NAMED[0], is_calibrated=False)
    found = found_in(backdoored(), (silent,))
    assert (found.found, found.notes, found.cost.forward_backward) == ((), (), 0)


@pytest.mark.parametrize("share", [0.05, -0.05])
def test_the_side_of_the_traces_is_that_of_the_push(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    sides = watched_sides(monkeypatch)
    monkeypatch.setattr(witness, "STEPS", 1)
    found_in(backdoored(), (replace(NAMED[0], evidence={"poisoned_share": share}),))
    assert sides == [share < 0]
    elsewhere = replace(finding_of(Finding.STRONG, (0,)), evidence={"poisoned_share": share})
    found_in(backdoored(), (*NAMED, elsewhere))
    # places in ascending order: 0, which it names, and the other, where it is not confirmed
    assert sides[1:] == [share < 0, False]


def test_a_shift_of_classes_is_tried_by_its_arrows() -> None:
    arrows = tuple(TARGET if c != TARGET else 0 for c in range(CLASSES))
    (one,) = found_in(
        backdoored(), (finding_of(Finding.STRONG, (), Pattern.ALL_TO_ALL, arrows=arrows),)
    ).found
    assert one.target is None
    assert one.goals.tolist() == list(arrows)


def watched_prices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool]]:
    """Return the list that each search of a patch adds its price to, and whether it has a match."""
    seen: list[tuple[float, bool]] = []

    def patch(*_given: Any, price: float, match: object, **_settings: Any) -> Patch:
        seen.append((price, match is not None))
        blank = torch.zeros(1, 3, SIZE, SIZE)
        return Patch(mask=blank[:, :1], pattern=blank, success=0.9)

    monkeypatch.setattr(place_search, "search_patch", patch)
    return seen


def test_a_model_without_statistics_is_searched_by_its_target_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = watched_prices(monkeypatch)
    plain = suspect_of(tiny_plain())
    pictures, truth = pattern_images(60, 2)
    small = torch.nn.functional.interpolate(pictures, (plain.input_size, plain.input_size))
    (one,) = find_witnesses(
        plain,
        data_of(small, truth % plain.num_classes),
        (finding_of(Finding.STRONG, (1,)),),
        seed=0,
        dtype=None,
        progress=NoProgress(),
    ).found
    assert seen == [(witness.MASK_PRICE_ALONE, False)] * 2
    assert one.agreement is None


def test_the_price_is_higher_where_no_layer_can_be_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = watched_prices(monkeypatch)
    found_in(backdoored())
    assert seen == [(witness.MASK_PRICE, True)] * 2
    monkeypatch.setattr(place_search.TraceMatch, "layers", ())
    found_in(backdoored())
    assert seen[2:] == [(witness.MASK_PRICE_ALONE, False)] * 2


class Steps:
    """Adds up the units of every task."""

    def __init__(self) -> None:
        self.total = self.done = 0

    @contextmanager
    def task(self, name: str, total: int) -> Generator[Steps]:
        self.total += total
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount


@pytest.mark.parametrize("works", [("patch",), ("warp",), ("patch", "warp"), ()])
def test_patches_and_a_warp_are_searched_and_those_that_work_are_kept(
    monkeypatch: pytest.MonkeyPatch, works: tuple[str, ...]
) -> None:
    calls: list[str] = []

    def patch(*_given: Any, **_settings: Any) -> Patch:
        calls.append("patch")
        mask, pattern = torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE)
        return Patch(mask=mask, pattern=pattern, success=0.9 if "patch" in works else 0.49)

    def warp(*_given: Any, **settings: Any) -> Warp:
        calls.append("warp")
        assert settings["limit"] == witness.WARP_LIMIT
        return Warp(
            flow=torch.zeros(1, 2, 4, 4), side=SIZE, success=0.5 if "warp" in works else 0.1
        )

    monkeypatch.setattr(place_search, "search_patch", patch)
    monkeypatch.setattr(place_search, "search_warp", warp)
    steps = Steps()
    found = find_witnesses(
        backdoored(), pattern_data(), NAMED, seed=0, dtype=None, progress=steps
    ).found
    assert steps.done == steps.total == 3
    assert calls == ["patch", "patch", "warp"]
    if not works:
        assert found == ()
        return
    (one,) = found
    kept = [type(s) for s in one.stand_ins]
    assert kept == [Patch, Patch] * ("patch" in works) + [Warp] * ("warp" in works)
    assert (one.agreement is None) is ("patch" not in works)
    (effect,) = tried(Witnesses(found=found), backdoored())
    said = "0 pixels" if "patch" in works else "a warp by 0.0 pixels"
    assert f"({said})" in effect.artefact


def test_a_note_says_once_that_large_patches_were_left_out(
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
        lambda *_given, **_settings: Warp(flow=torch.zeros(1, 2, 4, 4), side=SIZE, success=0.8),
    )
    heard = found_in(backdoored(), (*NAMED, finding_of(Finding.STRONG, (0,))))
    assert [[type(one) for one in w.stand_ins] for w in heard.found] == [[Warp], [Warp]]
    (note,) = heard.notes
    assert "large patches" in note


@pytest.mark.parametrize("pixels", [43, 44])  # three tenths of 144 are 43.2
def test_a_large_patch_bears_no_witness_with_no_warp_beside_it(
    monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask.view(-1)[:pixels] = 1
    blank = torch.zeros(1, 3, SIZE, SIZE)
    monkeypatch.setattr(
        place_search,
        "search_patch",
        lambda *_given, **_settings: Patch(mask=mask, pattern=blank, success=1.0),
    )
    monkeypatch.setattr(place_search, "WARP_STARTS", 0)
    found = found_in(backdoored())
    assert bool(found.found) is (pixels == 43)
    about_large = [note for note in found.notes if "large patches" in note]
    assert len(about_large) == (0 if pixels == 43 else 1)


def test_a_patch_that_grows_large_in_the_repaired_model_has_no_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = found_in(backdoored())
    repaired = trained(is_backdoored=False)
    (as_found,) = tried(found, repaired)
    whole = torch.ones(1, 1, SIZE, SIZE)
    # it shows the target class itself, which leads every model there
    shown = pattern_images(50, 3)
    pattern = shown[0][shown[1] == TARGET][:1]
    monkeypatch.setattr(
        place_search,
        "search_patch",
        lambda *_given, **_settings: Patch(mask=whole, pattern=pattern, success=1.0),
    )
    monkeypatch.setattr(witness, "FURTHER_STEPS", 1)
    monkeypatch.setattr(place_search, "LARGE_PATCH", 1.0)
    (heard,) = tried(found, repaired)
    monkeypatch.setattr(place_search, "LARGE_PATCH", 0.9)
    (unheard,) = tried(found, repaired)
    assert unheard == as_found
    assert heard.share_after > as_found.share_after + 0.5


def test_what_agrees_with_the_traces_far_less_than_another_is_no_witness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(witness, "LEAST_SUCCESS", 0.0)
    monkeypatch.setattr(witness, "AGREEMENT_MARGIN", 2.0)
    both = (*NAMED, finding_of(Finding.STRONG, (0,)))
    known = {one.target: one.agreement for one in found_in(backdoored(), both).found}
    right, wrong = known[TARGET], known[0]
    assert right is not None
    assert wrong is not None
    assert right > wrong
    monkeypatch.setattr(witness, "AGREEMENT_MARGIN", (right - wrong) / 2)
    left = found_in(backdoored(), both)
    assert [one.target for one in left.found] == [TARGET]
    (note,) = left.notes
    assert "leads images to output 0 too, and bears no witness" in note
    assert f"cos {wrong:.2f}, elsewhere {right:.2f}" in note


def test_how_far_behind_the_traces_a_place_may_stay() -> None:
    def named(*agreements: float | None) -> list[int | None]:
        found = [
            Witness(
                scanner="mbns",
                goals=map_to(target, CLASSES),
                target=target,
                stand_ins=(),
                agreement=agreement,
            )
            for target, agreement in enumerate(agreements)
        ]
        return [one.target for one in witness._traced(found)]

    assert named(0.92, 0.62, 0.78) == [0, 2]
    assert named(0.2) == [0]
    assert named(0.6, None) == [0, 1]
    assert named(None, None) == [0, 1]


def test_of_several_stand_ins_that_which_leads_most_after_the_repair_counts() -> None:
    blank = Patch(
        mask=torch.zeros(1, 1, SIZE, SIZE), pattern=torch.zeros(1, 3, SIZE, SIZE), success=1.0
    )
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., -3:, -3:] = 1
    corner = stamped(torch.zeros(1, 3, SIZE, SIZE))
    real = Patch(mask=mask, pattern=corner, success=1.0)
    box = Witnesses(
        found=(
            Witness(
                scanner="mbns",
                goals=map_to(TARGET, CLASSES),
                target=TARGET,
                stand_ins=(blank, real, blank),
            ),
        )
    )
    (effect,) = tried(box, backdoored())
    assert effect.share_after > 0.9
    assert "(9 pixels)" in effect.artefact
    assert effect.control_share is not None
    assert effect.control_share < 0.1
    (nothing,) = tried(Witnesses(found=(replace(box.found[0], stand_ins=(blank,)),)), backdoored())
    assert nothing.share_after == nothing.control_share
    assert leads_nowhere(nothing)
    assert not is_powerful(nothing)


def test_a_patch_is_searched_on_in_the_repaired_model(monkeypatch: pytest.MonkeyPatch) -> None:
    repaired = partly_cut(12)
    found = found_in(backdoored())
    (as_found,) = tried(found, repaired)
    monkeypatch.setattr(witness, "FURTHER_STEPS", 20)
    before = state_digest(repaired.module)
    (further,) = tried(found, repaired)
    assert state_digest(repaired.module) == before
    assert further.share_after > as_found.share_after + 0.1
    assert "searched on in the repaired model" in further.artefact
    assert "searched on" not in as_found.artefact
    # it is the suspect's shortcut still, and not one of the repaired model alone
    assert is_powerful(further)
    (same,) = tried(found, repaired)
    assert same == further


def test_a_further_search_that_left_the_suspects_shortcut_has_no_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blank = torch.zeros(1, 3, SIZE, SIZE)
    found, further = (
        Patch(mask=torch.full((1, 1, SIZE, SIZE), m), pattern=blank, success=0.9) for m in (0.5, 0)
    )
    suspect, repaired = backdoored(), trained(is_backdoored=False)
    led = {(found, suspect): 160, (found, repaired): 6, (further, suspect): 85}
    led[further, repaired] = 90
    monkeypatch.setattr(
        witness, "_hits", lambda model, _images, _goals, one, _size: led[one, model]
    )
    monkeypatch.setattr(witness, "_searched_on", lambda *_given, **_settings: (further,))
    one = Witness(scanner="mbns", goals=map_to(TARGET, CLASSES), target=TARGET, stand_ins=(found,))
    (effect,) = tried(Witnesses(found=(one,)), repaired)
    assert round(effect.share_after * effect.images) == 6
    led[further, suspect] = 120
    (effect,) = tried(Witnesses(found=(one,)), repaired)
    assert round(effect.share_after * effect.images) == 90
    # nor where nothing else works on the suspect: what was found there counts then
    led[found, suspect], led[further, suspect] = 80, 5
    (effect,) = tried(Witnesses(found=(one,)), repaired)
    assert round(effect.share_after * effect.images) == 6


@pytest.mark.parametrize("goals", [torch.full((CLASSES,), STAYS), torch.arange(CLASSES)])
def test_images_that_are_led_nowhere_or_are_there_already_are_no_evidence(goals: Tensor) -> None:
    box = Witnesses(found=(Witness(scanner="mbns", goals=goals, target=None, stand_ins=()),))
    assert tried(box, backdoored()) == ()


def test_one_that_hardly_works_on_the_suspect_has_no_say_beside_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blank = torch.zeros(1, 3, SIZE, SIZE)
    clear, faint = (
        Patch(mask=torch.full((1, 1, SIZE, SIZE), m), pattern=blank, success=s)
        for m, s in ((0.5, 0.97), (0.1, 0.52))
    )
    suspect, repaired = backdoored(), trained(is_backdoored=False)
    led = {(clear, suspect): 160, (clear, repaired): 6, (faint, suspect): 85, (faint, repaired): 9}
    monkeypatch.setattr(
        witness, "_hits", lambda model, _images, _goals, one, _size: led[one, model]
    )
    monkeypatch.setattr(witness, "_searched_on", lambda *_given, **_settings: ())

    def shown(*stand_ins: StandIn) -> tuple[int, int]:
        one = Witness(
            scanner="mbns", goals=map_to(TARGET, CLASSES), target=TARGET, stand_ins=stand_ins
        )
        (effect,) = tried(Witnesses(found=(one,)), repaired)
        return (
            round(effect.share_before * effect.images),
            round(effect.share_after * effect.images),
        )

    assert shown(faint, clear) == (160, 6)
    assert shown(faint) == (85, 9)
