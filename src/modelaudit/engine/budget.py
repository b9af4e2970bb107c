"""The accuracy budget: what the held-out images show of a loss, and the luck of several tries.

Of several models measured on the same images the one that lost least looks better than it is, if it
is taken because it lost least. The first one whose re-scan is clean is not: what came before it was
refused, and its own loss decides alone. Where that leaves something to be wished, `auto` goes on,
and a later clean one is judged with the luck of all that could have been written. Of models that
are not clean the one is taken that leaves least of the backdoor, and only where that is equal the
loss decides. So an attempt is judged with as many others as it is chosen from by its loss, and
judged again when there is one more. (With ``--force`` the cheapest of clean ones over the budget
may be written: it is over it by its own loss.) The reasons are in
``docs/adr/0012-accuracy-budget.md``, ``docs/adr/0017-first-or-least.md`` and
``docs/adr/0030-when-auto-goes-on.md``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from modelaudit.functional.paired import expected_largest, trials_to_settle
from modelaudit.repair_results import BudgetCheck, BudgetState
from modelaudit.text import points_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelaudit.engine.attempt import Attempt
    from modelaudit.repair_results import Measurements, RepairAttempt

#: Goes up with what is written of several attempts, for the rows of `bench repair`; those before
#: there was a number are of ADR 0012.
BUDGET_VERSION = "5"
#: Equal to the last bit of a float: a loss of exactly the budget is within it.
ROUNDING = 1e-9


def judge(attempts: Sequence[Attempt], *, max_accuracy_drop: float) -> tuple[Attempt, ...]:
    """Return the attempts with what their budget says, all judged anew.

    Args:
        attempts: every attempt so far; their proofs are on the same images.
        max_accuracy_drop: the budget, a fraction.
    """
    rivals = Counter(attempt.standing for attempt in attempts if attempt.record.proof is not None)
    judged = []
    acceptable = 0
    for attempt in attempts:
        proof = attempt.record.proof
        if proof is None:
            judged.append(attempt)
            continue
        # A clean one behind others that could have been written may be taken for what it costs.
        models = 1 + acceptable if attempt.is_clean else rivals[attempt.standing]
        budget = check_budget(proof, models=models, max_accuracy_drop=max_accuracy_drop)
        judged.append(replace(attempt, record=replace(attempt.record, budget=budget)))
        acceptable += attempt.is_clean and budget.is_within
    return tuple(judged)


def check_budget(proof: Measurements, *, models: int, max_accuracy_drop: float) -> BudgetCheck:
    """Return one model's loss beside the budget.

    Args:
        proof: on held-out images.
        models: from how many models measured on them the loss chooses, this one included; at least
            1.
        max_accuracy_drop: the budget, a fraction.
    """
    luck = expected_largest(models)
    judged = proof.accuracy_drop + luck * proof.standard_error
    low, high = proof.interval_drop
    state = BudgetState.OPEN
    if high <= max_accuracy_drop + ROUNDING:
        state = BudgetState.WITHIN
    elif low > max_accuracy_drop + ROUNDING:
        state = BudgetState.OVER
    to_settle = None
    if state is BudgetState.OPEN:
        to_settle = trials_to_settle(
            proof.accuracy_drop, (low, high), limit=max_accuracy_drop, trials=proof.images
        )
    return BudgetCheck(
        models=models,
        luck=luck,
        judged_drop=judged,
        is_within=judged <= max_accuracy_drop + ROUNDING,
        interval=state,
        images_to_settle=to_settle,
    )


def cost_sentence(record: RepairAttempt, *, max_accuracy_drop: float) -> str:
    """Return what a judged attempt costs, with its interval and what that says of the budget.

    A gain is a negative cost.
    """
    proof, budget = _judged(record)
    side = "within" if budget.is_within else "more than"
    shown = BudgetState.WITHIN if budget.is_within else BudgetState.OVER
    by_what = "the whole interval" if budget.interval is shown else "this estimate"
    return (
        f"{record.chain} costs {points_text(proof.accuracy_drop)} points of {_unit(proof)} on "
        f"{proof.images:,} held-out images ({_certainty(record)}), {side} the "
        f"{points_text(max_accuracy_drop)} allowed by {by_what}{_doubt(record)}"
    )


def refusal_sentence(records: Sequence[RepairAttempt], *, max_accuracy_drop: float) -> str:
    """Return what judged attempts cost that are all over the budget.

    Args:
        records: at least one.
        max_accuracy_drop: the budget, a fraction.
    """
    costs = [
        f"{record.chain} costs {points_text(_judged(record)[0].accuracy_drop)} points "
        f"({_certainty(record)})"
        for record in records
    ]
    cheapest = min(records, key=lambda record: _judged(record)[1].judged_drop)
    proof, _ = _judged(cheapest)
    allowed = f"{points_text(max_accuracy_drop)} points of {_unit(proof)}"
    of_which = "" if len(records) == 1 else f" of {cheapest.chain}"
    return (
        f"{'; '.join(costs)}: more than the {allowed} that are allowed on {proof.images:,} "
        f"held-out images{_doubt(cheapest, of_which)}"
    )


def _judged(record: RepairAttempt) -> tuple[Measurements, BudgetCheck]:
    assert record.proof is not None
    assert record.budget is not None
    return record.proof, record.budget


def _certainty(record: RepairAttempt) -> str:
    """Return the interval of a loss, and the loss that is judged where that is another."""
    proof, budget = _judged(record)
    low, high = proof.interval_drop
    text = f"95 %: {points_text(low)} to {points_text(high)}"
    if budget.models == 1:
        return text
    return f"{text}; {points_text(budget.judged_drop)} with the luck of {budget.models} tries"


def _doubt(record: RepairAttempt, of_which: str = "") -> str:
    """Return what the images cannot show and how many might; nothing where they can."""
    proof, budget = _judged(record)
    if budget.interval is not BudgetState.OPEN:
        return ""
    doubt = f"; {proof.images:,} images cannot show this{of_which}"
    if budget.images_to_settle is None:
        return f"{doubt}, and the cost is too close to the budget to say how many would"
    return f"{doubt}: it would take about {budget.images_to_settle:,}"


def _unit(proof: Measurements) -> str:
    return "accuracy" if proof.accuracy_before is not None else "agreement with the suspect"
