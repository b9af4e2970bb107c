from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from modelaudit.engine.effects import (
    NOISE_FAMILY,
    effects,
    is_settled,
    leads_nowhere,
    noise_effects,
    still_works,
)
from modelaudit.repair_results import Effect
from modelaudit.results import Finding, Pattern, ScannerResult
from modelaudit.suspect import Suspect
from tests.helpers.engine import clean_images
from tests.helpers.planted import TARGET, gate_images, gate_suspect


def result(**fields: Any) -> ScannerResult:
    fields = {"id": "mbns", "family": "bn_statistics", "finding": Finding.STRONG, **fields}
    return ScannerResult(version="1", sees_all_to_all=True, **fields)


def pushed(**fields: Any) -> ScannerResult:
    """The gate's channel, pushed to where a trigger puts it."""
    return result(evidence={"push": [["norm", 5, 50.0]], **fields.pop("evidence", {})}, **fields)


def closed() -> Suspect:
    """The gate suspect without the channel that its trigger opens."""
    suspect = gate_suspect()
    with torch.no_grad():
        norm = suspect.module.get_submodule("norm")
        norm.get_parameter("weight")[5] = 0
        norm.get_parameter("bias")[5] = 0
    return suspect


def tried(*results: ScannerResult, after: Suspect, **options: Any) -> tuple[Effect, ...]:
    images, labels = gate_images(100)
    return effects(results, gate_suspect(), after, images, labels, seed=0, **options)


def test_a_push_is_counted_on_images_of_other_classes_before_and_after() -> None:
    (effect,) = tried(pushed(target_labels=(TARGET,)), after=closed())
    _, labels = gate_images(100)
    assert effect.images == int((labels != TARGET).sum())
    assert effect.share_before > 0.9
    assert effect.share_after == 0.0
    assert effect.control_share is None
    assert leads_nowhere(effect)
    assert not still_works(effect)
    assert "where the backdoor had them" in effect.artefact


def test_a_push_that_still_leads_is_compared_with_other_channels() -> None:
    (effect,) = tried(pushed(target_labels=(TARGET,)), after=gate_suspect(), is_of_rescan=True)
    assert effect.share_after == effect.share_before
    assert effect.control_share is not None
    assert effect.control_share < 0.5
    assert still_works(effect)
    assert not leads_nowhere(effect)
    assert effect.is_of_rescan
    assert "still off" in effect.artefact


def test_what_controls_do_as_well_leads_nowhere_and_does_not_still_work() -> None:
    (effect,) = tried(pushed(target_labels=(TARGET,)), after=gate_suspect())
    matched = replace(effect, control_share=effect.share_after - 0.05)
    assert leads_nowhere(matched)
    assert not still_works(matched)


def test_a_variant_without_a_vote_leaves_no_artefact() -> None:
    assert tried(pushed(target_labels=(TARGET,), is_calibrated=False), after=closed()) == ()


def test_a_push_without_a_target_is_tried_where_its_arrows_point() -> None:
    classes = gate_suspect().num_classes
    everywhere = pushed(evidence={"arrows": [TARGET] * classes})
    named = pushed(target_labels=(TARGET,))
    for pattern in (None, Pattern.ALL_TO_ALL):
        (effect,) = tried(result(pattern=pattern, evidence=everywhere.evidence), after=closed())
        assert effect.target is None
        assert effect.share_before == tried(named, after=closed())[0].share_before


def rescanned(*earlier: ScannerResult, after: Suspect | None = None, **changes: Any) -> Effect:
    """What a push of the gate's channel and a class's by the re-scan is said to do."""
    both = pushed(
        target_labels=(TARGET,), evidence={"push": [["norm", 5, 50.0], ["norm", 0, 0.1]]}, **changes
    )
    (effect,) = tried(both, after=after or gate_suspect(), is_of_rescan=True, earlier=earlier)
    return effect


def pushing(
    *channels: int, amount: float = 0.1, live: int | None = 6, **changes: Any
) -> ScannerResult:
    evidence = {"push": [["norm", i, amount] for i in channels], "live_channels": live}
    return result(evidence=evidence, **changes)


def test_a_place_that_only_channels_without_an_earlier_trace_lead_to_is_the_repairs_doing() -> None:
    effect = rescanned(pushing(0))
    assert effect.is_by_repair
    # The push is shown whole.
    assert effect.share_after > 0.9
    assert "2 channels pushed" in effect.artefact


def test_settings_are_the_same_that_a_report_has_been_read_with() -> None:
    shares = (0.2, 0.1)
    now = {"config": {"poisoned_shares": shares, "strong": 20.0}}
    read = {"config": {"strong": 20.0, "poisoned_shares": list(shares)}}
    assert rescanned(pushing(0, **read), **now).is_by_repair
    other = {"config": {"strong": 20.0, "poisoned_shares": [0.2]}}
    assert not rescanned(pushing(0, **other), **now).is_by_repair


@pytest.mark.parametrize(
    "earlier",
    [
        (),
        (result(),),
        (pushing(5),),
        (pushing(0, 5),),
        (pushing(0, id="dde"),),
        (pushing(0, family="neuron_entropy"),),
        (pushing(0, is_calibrated=False),),
        (pushing(0, config={"traced": 100.0}),),
        (pushing(0, 1, 3),),
        (pushing(0, live=2),),
        (pushing(0, live=None),),
        (pushing(0, target_labels=(TARGET,)),),
        (pushing(0), result(id="ban", target_labels=(TARGET,))),
    ],
    ids=[
        "there was no scan",
        "it had pushed nothing",
        "the channel that leads there had a trace",
        "no channel is new",
        "another scanner had pushed",
        "it reads no statistics",
        "it was not calibrated",
        "with other settings",
        "half of the channels had a trace",
        "half of the live ones had",
        "nobody knows how many live",
        "it had named the place",
        "another scanner had named it",
    ],
)
def test_otherwise_a_rescan_is_heard(earlier: tuple[ScannerResult, ...]) -> None:
    assert not rescanned(*earlier).is_by_repair


def test_new_channels_have_to_lead_there_in_both_models() -> None:
    # In the repaired model the gate is closed: its channel leads nowhere.
    assert not rescanned(pushing(0), after=closed()).is_by_repair
    images, labels = gate_images(100)
    both = pushed(target_labels=(TARGET,), evidence={"push": [["norm", 5, 50.0], ["norm", 0, 0.1]]})
    (effect,) = effects(
        (both,), closed(), gate_suspect(), images, labels, seed=0, is_of_rescan=True,
        earlier=(pushing(0),),
    )  # fmt: skip
    assert not effect.is_by_repair


@pytest.mark.parametrize(
    "is_of_first_scan", [True, False], ids=["the first scan's", "the re-scan's"]
)
@pytest.mark.parametrize(
    ("amount", "is_by_repair"),
    # The target's own channel leads there from 1.2 on, and is tried up to four times as far.
    [(0.1, True), (0.35, False), (2.0, False), (-0.1, True), (-0.35, False), (-2.0, False)],
)
def test_traced_channels_are_pushed_further_and_the_other_way(
    amount: float, *, is_of_first_scan: bool, is_by_repair: bool
) -> None:
    (led,) = tried(pushing(TARGET, amount=1.2, target_labels=(TARGET,)), after=gate_suspect())
    assert led.share_after > 0.9
    then, now = (amount, 0.0) if is_of_first_scan else (0.0, amount)
    both = pushed(
        target_labels=(TARGET,), evidence={"push": [["norm", 5, 50.0], ["norm", TARGET, now]]}
    )
    (effect,) = tried(
        both, after=gate_suspect(), is_of_rescan=True, earlier=(pushing(TARGET, amount=then),)
    )
    assert effect.is_by_repair == is_by_repair


def test_traced_channels_that_the_repair_has_closed_count_as_they_were() -> None:
    # The trigger's own channel had a trace, led there in the suspect, and is pruned; another leads
    # there in both models.
    suspect, repaired = gate_suspect(), closed()
    images, labels = gate_images(100)
    push = [["norm", TARGET, 50.0]]
    (effect,) = effects(
        (result(target_labels=(TARGET,), evidence={"push": push}),), suspect, repaired, images,
        labels, seed=0, is_of_rescan=True, earlier=(pushing(5, amount=50.0),),
    )  # fmt: skip
    assert effect.share_after > 0.9
    assert not effect.is_by_repair


def test_a_shift_of_classes_is_never_the_repairs_doing() -> None:
    arrows = [TARGET] * gate_suspect().num_classes
    both = result(
        pattern=Pattern.ALL_TO_ALL,
        evidence={"push": [["norm", 5, 50.0], ["norm", 0, 0.1]], "arrows": arrows},
    )
    (effect,) = tried(both, after=gate_suspect(), is_of_rescan=True, earlier=(pushing(0),))
    assert effect.target is None
    assert not effect.is_by_repair


def test_what_has_no_push_and_leads_nowhere_known_is_no_effect() -> None:
    assert tried(result(), result(target_labels=(1,)), pushed(), after=closed()) == ()
    stays = pushed(evidence={"arrows": [-1] * gate_suspect().num_classes})
    assert tried(stays, after=closed()) == ()


def effect_of(share: float, control: float | None) -> Effect:
    return Effect(
        scanner="mbns",
        artefact="",
        target=1,
        images=200,
        share_before=1.0,
        share_after=share,
        interval_before=(0.98, 1.0),
        interval_after=(max(0.0, share - 0.07), share + 0.07),
        control_share=control,
    )


@pytest.mark.parametrize(
    ("share", "control", "is_nowhere"),
    [(0.1, None, True), (0.11, 0.0, False), (0.3, 0.25, True), (0.3, 0.1, False)],
)
def test_a_tenth_beyond_the_controls_is_nowhere(
    share: float, control: float | None, *, is_nowhere: bool
) -> None:
    assert leads_nowhere(effect_of(share, control)) is is_nowhere


@pytest.mark.parametrize(("share", "is_little"), [(0.06, True), (0.08, True), (0.09, False)])
def test_a_twentieth_beyond_its_control_is_all_that_a_settled_stand_in_leads(
    share: float, *, is_little: bool
) -> None:
    stand_in = replace(effect_of(share, 0.03), kind="stand_in")
    assert is_settled((stand_in,)) is is_little
    assert is_settled((effect_of(0.0, 0.0), stand_in)) is is_little
    # A push leads somewhere in every network, and what may not decide says nothing.
    assert is_settled((replace(stand_in, kind="push"),))
    assert is_settled((replace(stand_in, is_deciding=False),))
    assert is_settled(())


def noisy(*shares: float, **fields: Any) -> ScannerResult:
    return result(id="ban", family=NOISE_FAMILY, per_class=shares, **fields)


def test_the_noise_of_both_scans_is_compared_at_the_target_of_the_first() -> None:
    clean = clean_images(40)
    count = int((clean.labels[clean.judge] != 1).sum())
    before, after = noisy(0.1, 0.6, 0.2, target_labels=(1,)), noisy(0.2, 0.15, 0.3)
    (effect,) = noise_effects([before], [after], clean)
    assert (effect.share_before, effect.share_after) == (0.6, 0.15)
    assert effect.control_share == 0.3
    assert effect.images == count
    assert leads_nowhere(effect)


def test_noise_without_a_target_or_a_second_scan_is_no_effect() -> None:
    clean = clean_images(40)
    named = noisy(0.1, 0.6, target_labels=(1,))
    assert noise_effects([noisy(0.1, 0.6)], [named], clean) == ()
    assert noise_effects([named], [], clean) == ()
    assert noise_effects([named], [result(per_class=(0.1, 0.2))], clean) == ()
