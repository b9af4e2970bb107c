"""What every registered repair keeps to, whoever brings it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import pytest
import torch

from modelaudit.errors import UnmetNeedError
from modelaudit.registry import Registry
from modelaudit.repairs import Repair, RepairData, prune_mask
from modelaudit.repairs.pruning import zero_channels
from modelaudit.suspect import Suspect, state_digest
from tests.helpers import models
from tests.helpers.planted import contaminate, vary
from tests.helpers.repairs import logits_of, repair_context, repair_set

#: Quick settings, used where a repair's configuration has the field. They leave nothing out.
_QUICK: dict[str, object] = {
    "batch": 16,
    "epochs": 1,
    "images": 40,
    "iterations": 3,
    "min_mixture": 20,
    "resamples": 20,
    "teacher_epochs": 1,
}


def _registered() -> list[tuple[str, type[Repair[Any]], str | None]]:
    rows: list[tuple[str, type[Repair[Any]], str | None]] = []
    for entry, loaded in Registry("repairs").load_all():
        repair = cast("type[Repair[Any]]", loaded)
        rows.append((entry.id, repair, None))
        rows.extend((f"{entry.id}@{name}", v, name) for name, v in repair.variants.items())
    return rows


REGISTERED = _registered()


@pytest.fixture(params=REGISTERED, ids=[row[0] for row in REGISTERED])
def repair(request: pytest.FixtureRequest) -> Repair[Any]:
    """Each registered repair with quick settings."""
    row: tuple[str, type[Repair[Any]], str | None] = request.param
    _, kind, variant = row
    known = {field.name for field in dataclasses.fields(kind.config_type)}
    return kind(
        kind.config_type(**{k: v for k, v in _QUICK.items() if k in known}), variant=variant
    )


def _busy() -> tuple[Suspect, RepairData]:
    """Return a suspect and images on which every built-in has something to do."""
    suspect = models.suspect_of(models.tiny_bn(3))
    images = models.images(110)
    vary(suspect, images)
    contaminate(suspect, "norm2", 5, rate=0.2, shift=12.0)
    mixture = models.images(45, seed=2)
    mixture[:15] = 0
    with suspect.borrowed():
        labels = suspect.predict(images)
    labels[::10] = (labels[::10] + 1) % models.CLASSES
    return suspect, repair_set(suspect, images=images, labels=labels, mixture=mixture)


def test_the_pruners_are_registered_like_anybody_elses() -> None:
    ids = {row[0] for row in REGISTERED}
    for name in ("prune_mbns", "prune_dde", "prune_anp", "prune_clp", "prune_linf"):
        assert {name, f"{name}@paper_code"} <= ids


@pytest.mark.parametrize("row", REGISTERED, ids=[row[0] for row in REGISTERED])
def test_a_repair_describes_itself(row: tuple[str, type[Repair[Any]], str | None]) -> None:
    full_id, kind, variant = row
    assert kind.id == full_id.split("@")[0]
    assert kind(variant=variant).full_id == full_id
    assert kind.version
    assert kind.reference
    assert "\n" not in kind.summary
    config = kind().config
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


def test_the_suspect_stays_and_the_result_loads(repair: Repair[Any]) -> None:
    suspect, data = _busy()
    suspect.module.train()
    before = state_digest(suspect.module)
    random = torch.get_rng_state()
    result = repair.repair(suspect, data, context=repair_context(suspect, data))
    assert state_digest(suspect.module) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert result.id == repair.full_id
    assert not result.module.training
    assert all(not len(m._forward_hooks) for m in result.module.modules())
    fresh = models.tiny_bn(9)
    fresh.load_state_dict(result.module.state_dict(), strict=True)
    one, two = models.suspect_of(fresh), models.suspect_of(result.module)
    assert torch.equal(logits_of(one, data.images), logits_of(two, data.images))
    json.dumps([dict(result.details), dict(result.config), result.history], allow_nan=False)
    count = sum(len(channels) for _, channels in result.pruned)
    assert count == result.pruned_neurons
    assert ("prune_mode" in result.details) is (count > 0)


def test_the_same_seed_gives_the_same_weights(repair: Repair[Any]) -> None:
    suspect, data = _busy()
    runs = [repair.repair(suspect, data, context=repair_context(seed=7)) for _ in range(2)]
    states = [run.module.state_dict() for run in runs]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_channels_that_were_zero_before_are_not_revived_on_the_way(repair: Repair[Any]) -> None:
    # In a residual net no ReLU follows the norm at once, so that a zero channel has gradients.
    suspect = models.suspect_of(models.tiny_resnet(3))
    site = next(s.name for s in suspect.sites if s.name.endswith("bn2"))
    prune_mask(suspect, [(site, 1)]).apply(suspect.module)
    images = models.images(110)
    with suspect.borrowed():
        labels = suspect.predict(images)
    labels[::10] = (labels[::10] + 1) % models.CLASSES
    mixture = models.images(45, seed=2)
    data = repair_set(suspect, images=images, labels=labels, mixture=mixture)
    zero = zero_channels(suspect)
    # What is passed on as pruned may not even be revived in between.
    context = dataclasses.replace(repair_context(suspect, data), pruned=zero)
    result = repair.repair(suspect, data, context=context)
    assert zero is not None
    assert zero.holds(result.module)


def test_needs_are_declared_truthfully(repair: Repair[Any]) -> None:
    suspect, data = _busy()
    plain = models.suspect_of(models.tiny_plain())
    cases = {
        "requires_batchnorm": (plain, repair_set(plain, mixture=data.mixture)),
        "requires_labels": (suspect, dataclasses.replace(data, has_labels=False)),
        "requires_mixture": (suspect, dataclasses.replace(data, mixture=None)),
    }
    for need, (model, images) in cases.items():
        if getattr(repair, need):
            with pytest.raises(UnmetNeedError, match="needs "):
                repair.repair(model, images, context=repair_context())
        else:
            result = repair.repair(model, images, context=repair_context())
            assert result.measurements.images == len(images.validation)


def test_fewer_images_than_declared_are_refused(repair: Repair[Any]) -> None:
    suspect, data = _busy()
    few = repair.min_images - 1
    if few < 1:
        pytest.skip("one image is enough")
    data = dataclasses.replace(
        data,
        images=data.images[:few],
        labels=data.labels[:few],
        as_trained=data.as_trained[:few],
        work=torch.arange(few),
        validation=torch.arange(few),
    )
    with pytest.raises(UnmetNeedError, match=f"needs {repair.min_images} clean images, got {few}"):
        repair.repair(suspect, data, context=repair_context())
