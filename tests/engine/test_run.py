from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.engine.run import estimated_seconds, run_scanners
from modelaudit.errors import BudgetExceededError, ConfigError, ShapeError
from modelaudit.progress import NoProgress
from modelaudit.registry import Registry
from modelaudit.results import Cost, FailedScan, Finding, ScannerResult, SkippedScan
from modelaudit.scanners import Observation, Scanner
from modelaudit.suspect import Suspect, state_digest
from tests.helpers.engine import (
    clean_images,
    drawing,
    loud,
    nothing,
    profiled,
    raising,
    scanner_class,
)
from tests.helpers.models import suspect_of, tiny_bn, tiny_plain, tiny_resnet

if TYPE_CHECKING:
    from modelaudit.results import ScanOutcome
    from modelaudit.scanners import CleanImages, ScanContext


def run(
    *scanners: Scanner[Any] | type[Scanner[Any]],
    suspect: Suspect | None = None,
    seed: int = 0,
    budget: float | None = None,
    seconds_per_image: float = 1.0,
) -> tuple[ScanOutcome, ...]:
    suspect = suspect or suspect_of(tiny_bn())
    clean = clean_images(suspect=suspect)
    shared = replace(profiled(suspect, clean), seconds_per_image=seconds_per_image)
    return run_scanners(
        [s() if isinstance(s, type) else s for s in scanners],
        suspect,
        clean,
        profile=shared,
        seed=seed,
        progress=NoProgress(),
        budget_seconds=budget,
    )


def without_time(outcome: ScanOutcome) -> ScanOutcome:
    if isinstance(outcome, ScannerResult):
        return replace(outcome, cost=replace(outcome.cost, seconds=0.0))
    return outcome


def test_every_scanner_gets_one_outcome_in_the_order_given() -> None:
    found = run(
        scanner_class("one"),
        scanner_class("two", raising(ValueError("broken"))),
        scanner_class("three", requires_labels=True, min_images=1000),
        scanner_class("four", loud),
    )
    assert [outcome.id for outcome in found] == ["one", "two", "three", "four"]
    assert [type(outcome) for outcome in found] == [
        ScannerResult,
        FailedScan,
        SkippedScan,
        ScannerResult,
    ]


def test_no_scanners_give_no_outcomes() -> None:
    assert run() == ()


def test_the_order_is_the_given_one_though_the_cheap_run_first() -> None:
    ran: list[str] = []

    def recording(name: str, passes: int) -> type[Scanner[Any]]:
        def act(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
            ran.append(name)
            return nothing(suspect, clean, context)

        return scanner_class(name, act, cost=Cost(forward_backward=passes))

    found = run(recording("slow", 100), recording("quick", 1), recording("middle", 10))
    assert ran == ["quick", "middle", "slow"]
    assert [outcome.id for outcome in found] == ["slow", "quick", "middle"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("broken"),
        ShapeError("expected (N, C), got (3,)"),
        ConfigError("epsilon"),
        ZeroDivisionError("division by zero"),
        MemoryError("too large"),
        AssertionError("never"),
    ],
)
def test_a_failure_is_a_result_that_hides_no_finding(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    suspect = suspect_of(tiny_bn())
    suspect.module.train()
    digest = state_digest(suspect.module)
    with caplog.at_level(logging.WARNING):
        found = run(
            scanner_class("first", loud),
            scanner_class("bad", raising(error)),
            scanner_class("last", loud),
            suspect=suspect,
        )
    assert found[1] == FailedScan(id="bad", error=f"{type(error).__name__}: {error}")
    assert [o.finding for o in found if isinstance(o, ScannerResult)] == [Finding.STRONG] * 2
    assert state_digest(suspect.module) == digest
    assert "scanner bad failed" in caplog.text


def test_a_failing_estimate_is_a_result_too() -> None:
    found = run(
        scanner_class("bad", cost=ZeroDivisionError("no images")), scanner_class("good", loud)
    )
    assert found[0] == FailedScan(id="bad", error="ZeroDivisionError: no images")
    assert isinstance(found[1], ScannerResult)


def test_a_claim_that_was_not_measured_is_a_failure() -> None:
    def liar(_suspect: Suspect, _clean: CleanImages, _context: ScanContext) -> Observation:
        return Observation(finding=Finding.STRONG, target_labels=(99,), score=2.0, threshold=1.0)

    (found,) = run(scanner_class("liar", liar))
    assert isinstance(found, FailedScan)
    assert "ScannerError: liar named targets (99,), the model has 4 outputs" in found.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_ends_the_run_and_gives_the_suspect_back(error: BaseException) -> None:
    suspect = suspect_of(tiny_bn())
    digest = state_digest(suspect.module)
    with pytest.raises(type(error)):
        run(scanner_class("first"), scanner_class("bad", raising(error)), suspect=suspect)
    assert state_digest(suspect.module) == digest


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"requires_batchnorm": True}, "needs BatchNorm with running statistics"),
        ({"min_images": 21}, "needs 21 clean images, got 20"),
        ({"min_classes": 5}, "needs 5 classes, the model has 4"),
    ],
)
def test_an_unmet_need_is_a_declared_skip_whatever_the_budget(
    declared: dict[str, Any], reason: str
) -> None:
    suspect = suspect_of(tiny_plain())
    needy = scanner_class("needy", cost=Cost(forward=10**9), **declared)
    for budget in (None, 10.0, 1e-9):
        (found,) = run(needy, suspect=suspect, budget=budget)
        assert isinstance(found, SkippedScan)
        assert found.is_declared_need
        assert found.reason.startswith(reason)


def test_an_unmet_need_comes_before_an_estimate_that_cannot_be_made() -> None:
    needy = scanner_class("needy", cost=ValueError("no images to count"), min_images=1000)
    (found,) = run(needy)
    assert isinstance(found, SkippedScan)
    assert found.is_declared_need


def test_what_the_budget_would_not_hold_is_skipped_before_it_starts() -> None:
    suspect = suspect_of(tiny_bn())
    found = run(
        scanner_class("small", loud, cost=Cost(forward=10)),
        scanner_class("large", raising(AssertionError("it ran")), cost=Cost(forward=5000)),
        suspect=suspect,
        budget=60.0,
    )
    assert isinstance(found[0], ScannerResult)
    assert isinstance(found[1], SkippedScan)
    assert not found[1].is_declared_need
    assert found[1].reason.startswith("would take about 5000 s, ")
    assert found[1].reason.endswith("of the budget of 60 s are left; raise --budget")


def test_without_a_budget_nothing_is_skipped() -> None:
    (found,) = run(scanner_class("large", cost=Cost(forward=10**9)))
    assert isinstance(found, ScannerResult)


def test_a_spent_budget_skips_even_what_costs_nothing() -> None:
    (found,) = run(scanner_class("free"), budget=1e-9)
    assert isinstance(found, SkippedScan)
    assert "0 s of the budget of 1e-09 s are left" in found.reason


def test_a_search_that_meets_its_deadline_is_a_skip_and_the_suspect_is_given_back() -> None:
    suspect = suspect_of(tiny_bn())
    digest = state_digest(suspect.module)
    late = scanner_class("late", raising(BudgetExceededError("the time budget ended")))
    (found,) = run(late, suspect=suspect)
    assert found == SkippedScan(id="late", reason="the time budget ended", is_declared_need=False)
    assert state_digest(suspect.module) == digest


def test_scanners_are_lent_the_deadline_the_seed_and_the_batch_size() -> None:
    lent: list[ScanContext] = []

    def act(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        lent.append(context)
        return nothing(suspect, clean, context)

    run(scanner_class("one", act), seed=7)
    run(scanner_class("one", act), seed=7, budget=1000.0)
    assert [context.seed for context in lent] == [7, 7]
    assert lent[0].deadline is None
    assert lent[1].deadline is not None
    assert lent[0].batch_size == 256


def test_adding_a_scanner_changes_no_other_result() -> None:
    mine = scanner_class("mine", drawing, cost=Cost(forward=5))
    alone = [without_time(o) for o in run(mine, seed=3)]
    for others in (
        [scanner_class("before", drawing)],
        [scanner_class("bad", raising(RuntimeError("broken")))],
        [scanner_class("late", drawing, cost=Cost(forward=100))],
    ):
        beside = run(*others, mine, seed=3)
        assert without_time(beside[-1]) == alone[0]


def test_adding_a_scanner_changes_no_built_in_result() -> None:
    suspect = suspect_of(tiny_resnet())
    built_in = [Registry("scanners").load(name) for name in ("mbns", "dde")]
    alone = [without_time(o) for o in run(*built_in, suspect=suspect)]
    beside = run(
        scanner_class("bad", raising(RuntimeError("broken"))),
        *built_in,
        scanner_class("other", drawing),
        suspect=suspect,
    )
    assert [without_time(o) for o in beside[1:3]] == alone


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    mine = scanner_class("mine", drawing)
    first, second, third = (without_time(run(mine, seed=s)[0]) for s in (1, 1, 2))
    assert first == second
    assert isinstance(first, ScannerResult)
    assert isinstance(third, ScannerResult)
    assert first.score != third.score


def test_the_cost_of_a_scanner_is_what_it_made_the_suspect_do() -> None:
    def act(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
        suspect.logits(clean.images[:3].clone().requires_grad_())
        with torch.no_grad():
            suspect.logits(clean.images[:5])
        return nothing(suspect, clean, context)

    (found,) = run(scanner_class("one", act))
    assert isinstance(found, ScannerResult)
    assert (found.cost.forward, found.cost.forward_backward) == (5, 3)
    assert found.cost.seconds > 0


def test_a_backward_pass_counts_as_several_forward_ones() -> None:
    cost = Cost(forward=10, forward_backward=4)
    assert estimated_seconds(cost, 0.5) > estimated_seconds(Cost(forward=14), 0.5)
    assert estimated_seconds(cost, 0.5, torch.bfloat16) < estimated_seconds(cost, 0.5)
    assert estimated_seconds(Cost(forward=10), 0.5) == 5.0
    assert estimated_seconds(Cost(), 0.5) == 0.0


def test_scanners_without_backward_passes_run_before_searches_that_need_less_time() -> None:
    ran: list[str] = []

    def noting(id_: str) -> type[Scanner[Any]]:
        def act(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
            ran.append(id_)
            return nothing(suspect, clean, context)

        cost = Cost(forward_backward=1) if id_ == "search" else Cost(forward=1_000)
        return scanner_class(id_, act, cost=cost)

    run(noting("search"), noting("cheap"))
    assert ran == ["cheap", "search"]
