from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch

from modelaudit.repairs import RepairData
from modelaudit.repairs._carriers import (
    GONE,
    Guard,
    Removal,
    Suspicion,
    pruning_costs,
    remove_carriers,
)
from modelaudit.suspect import Suspect
from tests.helpers.planted import TARGET, gate_images, gate_suspect
from tests.helpers.repairs import repair_context, repair_set

ALL = [("norm", k) for k in range(6)]


def backdoored() -> tuple[Suspect, RepairData, Suspicion]:
    """Return a gate net, its clean images, and images whose open gate leads them to the target."""
    suspect = gate_suspect()
    images, labels = gate_images(200)
    triggered, truth = gate_images(40, triggered=40)
    kept = truth != TARGET
    suspicion = Suspicion(
        images=triggered[kept],
        targets=torch.full((int(kept.sum()),), TARGET),
        state=nullcontext,
    )
    return suspect, repair_set(suspect, images=images, labels=labels), suspicion


def remove(
    suspect: Suspect,
    data: RepairData,
    suspicion: Suspicion,
    *,
    candidates: list[tuple[str, int]] | None = None,
    pruned: tuple[tuple[str, int], ...] = (),
    step: int = 1,
    max_neurons: int = 6,
    max_drop: float = 0.01,
    max_refused: int = 10,
) -> Removal:
    return remove_carriers(
        suspect,
        ALL if candidates is None else candidates,
        suspicion,
        pruning_costs(suspect, data.images, batch_size=50),
        Guard(suspect, data, repair_context(), max_drop=max_drop, max_images=10**6),
        pruned=pruned,
        step=step,
        max_neurons=max_neurons,
        max_remaining=0.0,
        max_refused=max_refused,
    )


def test_the_carrier_of_the_suspicious_prediction_goes_and_nothing_else() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(suspect, data, suspicion)
    assert removal.neurons == (("norm", 5),)
    assert removal.stop == GONE
    assert removal.rounds == ((0, 1.0, 1.0), (1, 0.0, 1.0))


def test_the_batch_size_of_the_costs_changes_nothing() -> None:
    suspect, data, _ = backdoored()
    one = pruning_costs(suspect, data.images, batch_size=7)
    torch.testing.assert_close(one, pruning_costs(suspect, data.images, batch_size=500))
    assert bool((one >= 0).all())


def test_costs_are_large_where_clean_images_need_a_neuron() -> None:
    suspect, data, _ = backdoored()
    costs = pruning_costs(suspect, data.images, batch_size=50)
    assert float(costs[5]) < 1e-3 * float(costs[:5].min())


def test_neurons_that_are_no_candidates_stay() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(suspect, data, suspicion, candidates=[("norm", 0)])
    assert removal.neurons == ()
    assert removal.stop != GONE
    assert removal.rounds[-1][1] == 1.0


def test_a_needed_neuron_stays_and_the_next_best_takes_its_place() -> None:
    suspect, data, suspicion = backdoored()
    # The gate's channel is not allowed; the target's own channel carries the rest, and is needed.
    removal = remove(suspect, data, suspicion, candidates=[("norm", TARGET), ("norm", 5)], step=2)
    assert removal.neurons == (("norm", 5),)


def test_it_gives_up_after_too_many_needed_neurons() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(
        suspect, data, suspicion, candidates=[("norm", k) for k in range(5)], max_refused=0
    )
    assert removal.neurons == ()
    assert removal.stop in {"the accuracy allows no more", "no candidate is left"}


def test_a_second_stage_begins_with_what_is_gone() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(suspect, data, suspicion, pruned=(("norm", 5),))
    assert removal.neurons == (("norm", 5),)
    assert removal.rounds == ((1, 0.0, 1.0),)


def test_no_more_than_the_allowed_number_goes() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(suspect, data, suspicion, max_neurons=0)
    assert removal.neurons == ()
    assert removal.details()["stop"] == "as many channels went as may go (max_fraction)"


def test_the_model_is_not_changed() -> None:
    suspect, data, suspicion = backdoored()
    before = {k: v.clone() for k, v in suspect.module.state_dict().items()}
    remove(suspect, data, suspicion)
    assert all(torch.equal(before[k], v) for k, v in suspect.module.state_dict().items())


def test_a_choice_has_to_hold_on_the_work_images_too() -> None:
    suspect, data, _ = backdoored()
    # Class 0 has no validation image: only the work images miss its channel.
    labels = data.labels
    kept = data.validation[labels[data.validation] != 0]
    moved = torch.cat([data.work, data.validation[labels[data.validation] == 0]])
    data = dataclasses.replace(data, validation=kept, work=moved)
    leads = Suspicion(
        images=data.images[labels == 0],
        targets=torch.zeros(int((labels == 0).sum()), dtype=torch.int64),
        state=nullcontext,
    )
    removal = remove(suspect, data, leads, candidates=[("norm", 0)])
    assert removal.neurons == ()
    assert removal.refused == 1


def test_the_guard_passes_every_image_once_and_asks_the_validation_images_first() -> None:
    suspect, data, _ = backdoored()
    guard = Guard(suspect, data, repair_context(), max_drop=0.01, max_images=10**6)
    everything = len(data.images)
    before = suspect.passes.forward
    assert guard.holds([("norm", 5)])
    assert suspect.passes.forward - before == everything
    before = suspect.passes.forward
    assert not guard.holds([("norm", 0)])
    assert suspect.passes.forward - before == len(data.validation)


def test_without_candidates_nothing_goes() -> None:
    suspect, data, suspicion = backdoored()
    removal = remove(suspect, data, suspicion, candidates=[])
    assert removal.neurons == ()
    assert removal.stop == "no candidate is left"
