"""What every registered scanner keeps to, whoever brings it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor

from modelaudit.errors import ModelAuditError
from modelaudit.registry import Registry
from modelaudit.report.json import dumps
from modelaudit.results import (
    CleanSetRecord,
    Cost,
    ScannerResult,
    ScanReport,
    SkippedScan,
    SuspectRecord,
    Verdict,
    VerdictRecord,
)
from modelaudit.scanners import CleanImages, ScanContext, Scanner
from modelaudit.suspect import Suspect, state_digest
from tests.helpers import models
from tests.helpers.planted import (
    clean_set,
    contaminate,
    context_of,
    gate_images,
    gate_suspect,
    profile_of,
    vary,
)

if TYPE_CHECKING:
    from modelaudit.results import ScanOutcome

#: Quick settings, used where a scanner's configuration has the field. They leave no search out.
_QUICK: dict[str, object] = {
    "batch": 16,
    "mask_steps": 4,
    "min_mixture": 20,
    "noise_batches": 2,
    "profile_images": 0,
    "resamples": 20,
    "restarts": 3,
    "screen_steps": 1,
    "starts": 3,
    "steps": 3,
    "survivors": 2,
    "targeted_steps": 2,
}

#: Settings with which BAN goes on to its confirmation whatever it has seen.
_ALWAYS_CONFIRM: dict[str, object] = {"suspicious": 0.0, "strong": 0.0, "min_agreement": 0.0}

_CLASSES = 6


def _registered() -> list[tuple[str, type[Scanner[Any]], str | None]]:
    """Return every scanner and variant: full id, class, variant name."""
    rows: list[tuple[str, type[Scanner[Any]], str | None]] = []
    for entry, loaded in Registry("scanners").load_all():
        scanner = cast("type[Scanner[Any]]", loaded)
        rows.append((entry.id, scanner, None))
        rows.extend((f"{entry.id}@{name}", v, name) for name, v in scanner.variants.items())
    return rows


REGISTERED = _registered()


@pytest.fixture(params=REGISTERED, ids=[row[0] for row in REGISTERED])
def scanner(request: pytest.FixtureRequest) -> Scanner[Any]:
    """Each registered scanner with quick settings."""
    row: tuple[str, type[Scanner[Any]], str | None] = request.param
    _, kind, variant = row
    known = {field.name for field in dataclasses.fields(kind.config_type)}
    wanted = dict(_QUICK)
    if kind.id == "ban" and variant is None:
        wanted |= _ALWAYS_CONFIRM
    config = kind.config_type(**{k: v for k, v in wanted.items() if k in known})
    return kind(config, variant=variant)


def _busy(
    *, classes: int = _CLASSES, n: int = 60, channels: int = 3, fuse: models.Fuse | None = None
) -> tuple[Suspect, CleanImages]:
    """Return a suspect and clean images on which every built-in has passes to make.

    Its statistics fit the images but for one channel, which MBNS follows up; a third of the mixture
    is black, which DDE's neurons see.
    """
    net = models.tiny_bn(3, classes=classes, channels=channels)
    if fuse is not None:
        net.get_submodule("conv2").register_forward_pre_hook(fuse)
    suspect = models.suspect_of(net, classes=classes, channels=channels)
    images = models.images(n, channels=channels)
    vary(suspect, images)
    contaminate(suspect, "norm2", 5, rate=0.2, shift=12.0)
    mixture = models.images(45, channels=channels, seed=2)
    mixture[:15] = 0
    with suspect.borrowed():
        labels = suspect.predict(images)
    labels[::10] = (labels[::10] + 1) % classes
    return suspect, clean_set(suspect, images, labels, mixture=mixture)


def _plain_values(outcome: ScanOutcome) -> dict[str, Any]:
    """Return the outcome as JSON values without its wall time."""
    report = ScanReport(
        verdict=VerdictRecord(verdict=Verdict.INCONCLUSIVE, reason_code="test", reason="test"),
        exit_status=5,
        suspect=SuspectRecord(path="model.pt"),
        clean_set=CleanSetRecord(path="clean"),
        scanners=(outcome,) if isinstance(outcome, ScannerResult) else (),
        skipped=(outcome,) if isinstance(outcome, SkippedScan) else (),
    )
    document = json.loads(dumps(report))
    found: dict[str, Any] = (document["scanners"] + document["skipped"])[0]
    if "cost" in found:
        del found["cost"]["seconds"]
    return found


def _outcome_or_error(
    scanner: Scanner[Any], suspect: Suspect, clean: CleanImages
) -> ScannerResult | ModelAuditError:
    """Return the result, or the error that the engine would list; any other error is a bug."""
    try:
        outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    except ModelAuditError as err:
        return err
    assert isinstance(outcome, ScannerResult)
    assert "NaN" not in json.dumps(_plain_values(outcome))
    return outcome


def _close(one: object, two: object, tolerance: float) -> bool:
    """Compare JSON values; numbers up to `tolerance`, relative above one and absolute below."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_close(one[k], two[k], tolerance) for k in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(
            _close(a, b, tolerance) for a, b in zip(one, two, strict=True)
        )
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) <= tolerance * max(1.0, abs(one))
    return one == two


def test_the_built_ins_are_registered_like_anybody_elses() -> None:
    ids = {row[0] for row in REGISTERED}
    built_in = {"ban", "mbns", "dde", "mm_bd"}
    assert built_in | {f"{id_}@paper_code" for id_ in built_in} <= ids


@pytest.mark.parametrize("row", REGISTERED, ids=[row[0] for row in REGISTERED])
def test_a_scanner_describes_itself(row: tuple[str, type[Scanner[Any]], str | None]) -> None:
    full_id, kind, variant = row
    assert kind.id == full_id.split("@")[0]
    assert kind(variant=variant).full_id == full_id
    assert kind.version
    assert kind.family
    assert kind.reference
    assert "\n" not in kind.summary
    assert kind.min_images >= 1
    assert kind.min_classes >= 2


@pytest.mark.parametrize("row", REGISTERED, ids=[row[0] for row in REGISTERED])
def test_a_configuration_needs_no_argument_and_is_frozen(
    row: tuple[str, type[Scanner[Any]], str | None],
) -> None:
    config = row[1]().config
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)


def test_scanners_are_given_nothing_of_an_attack() -> None:
    given = {f.name for kind in (CleanImages, ScanContext) for f in dataclasses.fields(kind)}
    assert given == {
        *("images", "labels", "has_labels", "search", "judge", "predictions", "as_trained"),
        *("mixture", "profile", "seed", "progress", "batch_size", "search_dtype", "deadline"),
    }


def test_the_suspect_comes_back_bit_for_bit(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    suspect.module.train()
    suspect.module.get_submodule("norm1").eval()
    context = context_of(suspect, clean)
    before = state_digest(suspect.module)
    result = scanner.scan(suspect, clean, context=context)
    assert isinstance(result, ScannerResult)
    assert state_digest(suspect.module) == before


@pytest.mark.parametrize("error", [RuntimeError("the layer broke"), KeyboardInterrupt()])
@pytest.mark.parametrize("calls", [0, 2])
def test_the_suspect_comes_back_from_an_error_in_mid_forward(
    scanner: Scanner[Any], calls: int, error: BaseException
) -> None:
    fuse = models.Fuse()
    suspect, clean = _busy(fuse=fuse)
    # Small batches: some variants make a single pass over the images.
    context = context_of(suspect, clean, batch_size=16)
    before = state_digest(suspect.module)
    fuse.arm(calls, error)
    with pytest.raises(type(error)):
        scanner.scan(suspect, clean, context=context)
    assert state_digest(suspect.module) == before


def test_the_same_seed_gives_the_same_result(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    one = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=7))
    two = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=7))
    assert _plain_values(one) == _plain_values(two)


def test_another_run_seed_gives_the_scanner_another_seed(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    one = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=1))
    two = scanner.scan(suspect, clean, context=context_of(suspect, clean, seed=2))
    assert isinstance(one, ScannerResult)
    assert isinstance(two, ScannerResult)
    assert one.seed != two.seed


def test_no_draw_comes_from_the_callers_generators(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    context = context_of(suspect, clean)
    before = torch.get_rng_state()
    scanner.scan(suspect, clean, context=context)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_batch_size_changes_no_result(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    one = scanner.scan(suspect, clean, context=context_of(suspect, clean, batch_size=7))
    two = scanner.scan(suspect, clean, context=context_of(suspect, clean, batch_size=512))
    # Convolutions round differently in batches of other sizes.
    assert _close(_plain_values(one), _plain_values(two), 1e-4)


def _deficient() -> dict[str, tuple[Suspect, CleanImages, str | None]]:
    """Return cases that lack one thing each, and the attribute that declares the need of it."""
    busy = _busy()
    plain = models.suspect_of(models.tiny_plain(classes=_CLASSES), classes=_CLASSES)
    batch_only = models.suspect_of(models.tiny_batch_statistics())
    headless = models.suspect_of(models.tiny_without_split())
    pixels = models.images(60)
    return {
        "nothing": (*busy, None),
        "running statistics": (plain, clean_set(plain, pixels), "requires_batchnorm"),
        "running statistics, with BatchNorm": (
            batch_only,
            clean_set(batch_only, pixels),
            "requires_batchnorm",
        ),
        "a split": (headless, clean_set(headless, pixels), "requires_split"),
        "labels": (busy[0], clean_set(busy[0], pixels, has_labels=False), "requires_labels"),
    }


@pytest.mark.parametrize("lack", list(_deficient()))
def test_needs_are_declared_truthfully(scanner: Scanner[Any], lack: str) -> None:
    suspect, clean, declares = _deficient()[lack]
    context = context_of(suspect, clean)
    passes = dataclasses.replace(suspect.passes)
    outcome = scanner.scan(suspect, clean, context=context)
    is_needed = declares is not None and bool(getattr(scanner, declares))
    if is_needed or suspect.num_classes < scanner.min_classes:
        assert isinstance(outcome, SkippedScan)
        assert outcome.is_declared_need
        assert outcome.id == scanner.full_id
        assert outcome.reason.startswith("needs ")
        assert suspect.passes == passes
    else:
        assert isinstance(outcome, ScannerResult)


def test_fewer_images_than_declared_are_a_skip(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy(n=max(2, scanner.min_images - 1))
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, SkippedScan) == (len(clean.images) < scanner.min_images)


def test_as_many_images_as_declared_are_enough(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy(n=max(5, scanner.min_images))
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, ScannerResult)


@pytest.mark.parametrize("classes", [2, 3])
def test_two_classes_are_survived(scanner: Scanner[Any], classes: int) -> None:
    suspect, clean = _busy(classes=classes)
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, SkippedScan) == (classes < scanner.min_classes)


def test_one_image_of_each_class_is_survived(scanner: Scanner[Any]) -> None:
    suspect = gate_suspect(classes=60)
    clean = clean_set(suspect, *gate_images(60, classes=60))
    assert torch.equal(clean.predictions, torch.arange(60))
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, ScannerResult)


def test_images_of_one_class_are_survived(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    clean = dataclasses.replace(clean, labels=torch.zeros(len(clean.images), dtype=torch.int64))
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, ScannerResult)


def test_a_model_that_is_right_about_nothing_is_survived(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    clean = dataclasses.replace(clean, labels=(clean.predictions + 1) % _CLASSES)
    outcome = _outcome_or_error(scanner, suspect, clean)
    assert isinstance(outcome, ModelAuditError) or not outcome.is_confirmed


def test_one_input_channel_is_survived(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy(channels=1)
    outcome = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(outcome, ScannerResult)


def test_equal_images_are_survived(scanner: Scanner[Any]) -> None:
    suspect, _ = _busy()
    clean = clean_set(suspect, torch.full((60, 3, 8, 8), 0.5))
    outcome = _outcome_or_error(scanner, suspect, clean)
    assert isinstance(outcome, ScannerResult | ModelAuditError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_overflows_is_never_confirmed(scanner: Scanner[Any], value: float) -> None:
    suspect, clean = _busy()
    with torch.no_grad():
        for parameter in suspect.module.get_submodule("norm2").parameters():
            parameter.fill_(value)
    clean = clean_set(suspect, clean.images, mixture=clean.mixture)
    before = state_digest(suspect.module)
    outcome = _outcome_or_error(scanner, suspect, clean)
    assert isinstance(outcome, ModelAuditError) or not outcome.is_confirmed
    assert state_digest(suspect.module) == before


def test_a_result_survives_json(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    result = scanner.scan(suspect, clean, context=context_of(suspect, clean))
    assert isinstance(result, ScannerResult)
    written = _plain_values(result)
    assert written.keys() == {field.name for field in dataclasses.fields(ScannerResult)}
    assert written["id"] == scanner.full_id
    assert written["finding"] == result.finding
    assert written["target_labels"] == list(result.target_labels)
    assert written["score"] == result.score
    assert written["per_class"] == list(result.per_class)
    assert written["config"] == json.loads(json.dumps(dict(result.config)))
    assert written["evidence"].keys() == result.evidence.keys()


def test_predictions_in_place_of_labels_are_used_as_labels_are(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    context = context_of(suspect, clean)
    known = scanner.scan(suspect, clean, context=context)
    unknown = scanner.scan(suspect, dataclasses.replace(clean, has_labels=False), context=context)
    if scanner.requires_labels:
        assert isinstance(unknown, SkippedScan)
    else:
        assert _plain_values(known) == _plain_values(unknown)


def _count_images(suspect: Suspect) -> list[int]:
    """Return a list that collects the batch sizes of the first layer from now on."""
    seen: list[int] = []

    def note(_layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(len(inputs[0]))

    suspect.module.get_submodule("conv1").register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("is_traceable", [True, False])
def test_every_image_pass_is_counted_and_below_the_estimate(
    scanner: Scanner[Any], is_traceable: bool
) -> None:
    suspect, clean = _busy()
    if not is_traceable:
        # Without a traced graph the head has to run the whole network.
        net = models.tiny_untraceable()
        suspect = models.suspect_of(net)
        clean = clean_set(suspect, clean.images, mixture=clean.mixture)
        if scanner.min_classes > suspect.num_classes:
            pytest.skip("the untraceable net has too few classes for this scanner")
        assert suspect.split is not None
        assert suspect.split.method == "injection"
    context = context_of(suspect, clean)
    estimate = scanner.estimate(suspect, clean)
    before = dataclasses.replace(suspect.passes)
    seen = _count_images(suspect)
    result = scanner.scan(suspect, clean, context=context)
    assert isinstance(result, ScannerResult)
    cost = result.cost
    assert cost.forward == suspect.passes.forward - before.forward
    assert cost.forward_backward == suspect.passes.forward_backward - before.forward_backward
    assert sum(seen) == cost.forward + cost.forward_backward
    assert cost.forward <= estimate.forward
    assert cost.forward_backward <= estimate.forward_backward
    assert cost.seconds > 0


def test_the_estimate_makes_no_pass(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    before = dataclasses.replace(suspect.passes)
    assert isinstance(scanner.estimate(suspect, clean), Cost)
    assert suspect.passes == before


def test_the_shared_pass_is_read_only(scanner: Scanner[Any]) -> None:
    suspect, clean = _busy()
    shared = profile_of(suspect, clean.as_trained)
    context = ScanContext(profile=shared)
    logits = shared.logits.clone()
    sums = [site.sums.clone() for site in shared.sites]
    scanner.scan(suspect, clean, context=context)
    assert torch.equal(shared.logits, logits)
    assert all(torch.equal(a, s.sums) for a, s in zip(sums, shared.sites, strict=True))
