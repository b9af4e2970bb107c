from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.bench import repair_methods
from modelaudit.bench.attacked import draw_mixture, make_attack, plan_of, trained_attack
from modelaudit.bench.cards import read_card, write_card
from modelaudit.bench.data import load_pack
from modelaudit.bench.repair import RepairEvent, RepairWork
from modelaudit.bench.repair_tracker import RepairTracker
from modelaudit.bench.selection import Selection
from modelaudit.bench.tables.read import read_rows
from modelaudit.engine import witness
from modelaudit.engine.repair import AUTO_PRUNE_FIRST, AUTO_TRAIN
from modelaudit.errors import ConfigError
from modelaudit.repairs import Change, RepairContext, RepairData
from tests.helpers.fake_repairs import accusing, broken, cut, leave, repair_class, wreck
from tests.helpers.populations import rows
from tests.helpers.repair_populations import ATTACKED, CLEAN, TARGET, install_only, write_population

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.cards import ModelCard
    from modelaudit.suspect import Suspect


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_population(tmp_path_factory.mktemp("population"))


@pytest.fixture
def work(place: Path, tmp_path: Path) -> RepairWork:
    return RepairWork(
        models=Selection(folder=place / "zoo", data_root=place),
        out=tmp_path / "rows.jsonl",
        images=100,
    )


@pytest.fixture
def seen() -> list[RepairData]:
    """What the repair ``look`` was given."""
    return []


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch, seen: list[RepairData]) -> None:
    def look(_model: Suspect, data: RepairData) -> Change:
        seen.append(data)
        return Change()

    install_only(
        monkeypatch,
        repair_class("prune_mbns", cut),
        repair_class("prune_recover", leave, is_training=True),
        repair_class("finetune_noise", leave, is_training=True),
        repair_class("unlearn_triggers", leave, is_training=True),
        repair_class("wreck", wreck, variants={"paper_code": repair_class("wreck", leave)}),
        repair_class("broken", broken),
        repair_class("picky", leave, min_images=10**6),
        repair_class("look", look),
        repair_class("look_mixed", look, requires_mixture=True),
        scan=accusing(TARGET),
    )


def run(
    work: RepairWork, *methods: str, only: tuple[str, ...] = (), **changes: Any
) -> list[dict[str, Any]]:
    """Do the work on these models by these methods and return the rows of the file."""
    models = replace(work.models, only=only)
    replace(work, methods=methods or work.methods, models=models, **changes)("", lambda _: None)
    return rows(work.out)


def card_of(work: RepairWork, id_: str) -> ModelCard:
    return read_card(work.models.folder / "cards" / f"{id_}.json")


def test_every_model_gets_a_row_per_method(work: RepairWork) -> None:
    events: list[RepairEvent] = []
    assert replace(work, methods=("prune_mbns", "wreck@paper_code"))("", events.append) == ()
    found = [(row["model"]["id"], row["method"], row["variant"]) for row in rows(work.out)]
    assert found == [
        (ATTACKED, "prune_mbns", None),
        (ATTACKED, "wreck", "paper_code"),
        (CLEAN, "prune_mbns", None),
        (CLEAN, "wreck", "paper_code"),
    ]
    assert [(event.id, event.method) for event in events] == [
        (id_, method) for id_ in (ATTACKED, CLEAN) for method in ("prune_mbns", "wreck@paper_code")
    ]
    assert all(event.rows == 1 and event.text.startswith("done, ACC") for event in events)


def test_row_says_what_the_tables_ask(work: RepairWork) -> None:
    run(work, "wreck", only=(ATTACKED,))
    (row,) = (json.loads(line) for line in work.out.read_text("utf-8").splitlines())
    card = card_of(work, ATTACKED)
    assert row["kind"] == "repair"
    assert row["key"] == {
        "checkpoint_sha256": card.checkpoint_sha256,
        "method": "wreck",
        "variant": None,
        "config_sha256": row["key"]["config_sha256"],
        "seed": 0,
        "clean_set_sha256": row["key"]["clean_set_sha256"],
    }
    assert (row["truth"]["attack"], row["truth"]["asr"]) == ("badnets", 0.8)
    assert row["clean_set"] == {"name": "toy_100", "images": 100, "degradation": None}
    assert (row["images"], row["repair_images"], row["proof_images"]) == (100, 60, 40)
    # the net knows all four classes and no trigger; afterwards it says class 0 to everything
    assert (row["acc_before"], row["asr_before"], row["ra_before"]) == (1.0, 0.0, 1.0)
    assert (row["acc_after"], row["asr_after"], row["ra_after"]) == (0.25, 0.0, 4 / 12)
    assert (row["outcome"], row["failure"], row["pruned"]) == ("done", None, 0)
    assert row["proof"]["accuracy_after"] == 0.25
    assert row["is_within_budget"] is False
    assert row["reason"].startswith("wreck costs 75.0 points of accuracy on 40 held-out images (")
    assert row["passes"]["forward"] > 0
    assert row["seconds"] > 0
    assert set(row["hardware"]) == {"cpu", "threads", "device"}
    _, (read,) = read_rows([work.out])
    assert (read.name, read.acc_after, read.asr_after) == ("wreck", 0.25, 0.0)
    assert read.passes == sum(row["passes"].values())


def test_clean_models_have_no_attack_success(work: RepairWork) -> None:
    (row,) = run(work, "prune_mbns", only=(CLEAN,))
    names = ("asr_before", "asr_after", "ra_before", "ra_after")
    assert [row[name] for name in names] == [None] * 4
    assert (row["acc_before"], row["pruned"]) == (1.0, 1)


def test_need_that_is_not_met_leaves_the_model_and_is_no_failure(work: RepairWork) -> None:
    changed = replace(work, methods=("picky",), models=replace(work.models, only=(ATTACKED,)))
    assert changed("", lambda _: None) == ()
    (row,) = rows(work.out)
    assert row["outcome"] == "unmet_need"
    assert row["failure"] == row["reason"] == "picky needs 1000000 clean images, got 60"
    assert (row["acc_after"], row["asr_after"]) == (row["acc_before"], row["asr_before"])
    assert row["validation"] is None
    assert row["is_within_budget"] is None


def test_repair_that_raises_is_a_row_and_stops_no_other(work: RepairWork) -> None:
    changed = replace(
        work, methods=("broken", "prune_mbns"), models=replace(work.models, only=(ATTACKED,))
    )
    assert changed("", lambda _: None) == (ATTACKED,)
    found = rows(work.out)
    assert [row["outcome"] for row in found] == ["failed", "done"]
    assert found[0]["failure"] == "RuntimeError: out of luck"
    assert found[0]["acc_after"] == found[0]["acc_before"] == 1.0
    before = work.out.read_bytes()
    assert changed("", lambda _: None) == ()
    assert work.out.read_bytes() == before


def test_rows_cut_at_any_place_are_completed_to_the_same_set(
    work: RepairWork, seen: list[RepairData]
) -> None:
    one = replace(
        work, methods=("prune_mbns", "look"), models=replace(work.models, only=(ATTACKED,))
    )
    one("", lambda _: None)
    whole, expected = work.out.read_bytes(), rows(work.out)
    assert len(seen) == 1
    first = whole.index(b"\n") + 1
    for length in (10, first + 5, len(whole)):
        work.out.write_bytes(whole[:length])
        one("", lambda _: None)
        assert rows(work.out) == expected
    # what was there was not repaired again
    assert len(seen) == 3


def test_other_images_and_seeds_make_other_rows(work: RepairWork) -> None:
    for changes in ({}, {"images": 80}, {"seed": 1}, {}):
        run(work, "prune_mbns", only=(CLEAN,), **changes)
    assert [row["images"] for row in rows(work.out)] == [100, 80, 100]


def test_repairs_see_held_out_clean_images_only(
    work: RepairWork, place: Path, seen: list[RepairData]
) -> None:
    run(work, "look", only=(ATTACKED,))
    data = load_pack(place / "toy_jpeg.npz")
    held_out = {image.numpy().tobytes() for image in data.train_images[128:]}
    (given,) = seen
    pixels = (given.images * 255).round().to(torch.uint8)
    assert {image.numpy().tobytes() for image in pixels} <= held_out
    assert given.mixture is None


def test_mixture_is_given_to_whom_it_is_needed_by(
    work: RepairWork, place: Path, seen: list[RepairData]
) -> None:
    run(work, "look_mixed", only=(ATTACKED,))
    data = load_pack(place / "toy_jpeg.npz")
    card = card_of(work, ATTACKED)
    attack = trained_attack(card, data, folder=work.models.folder)
    (given,) = seen
    assert given.mixture is not None
    assert torch.equal(given.mixture, draw_mixture(card, data, attack))


def test_mixture_holds_the_very_images_that_were_poisoned(work: RepairWork, place: Path) -> None:
    data = load_pack(place / "toy_jpeg.npz")
    card = card_of(work, ATTACKED)
    attack = trained_attack(card, data, folder=work.models.folder)
    assert attack is not None
    mixture = draw_mixture(card, data, attack, images=50)
    clean = draw_mixture(card, data, None, images=50)
    assert mixture.shape == clean.shape == (50, 3, 32, 32)
    attackers = data.train_images[:128].float() / 255
    pool = {image.numpy().tobytes() for image in attackers}
    assert {image.numpy().tobytes() for image in clean} <= pool
    poison, _ = attack.plan.draw(data.train_labels[:128])
    triggered = {image.numpy().tobytes() for image in attack.trigger.apply(attackers[poison])}
    is_changed = (mixture != clean).flatten(1).any(1)
    assert 0 < int(is_changed.sum()) < 50
    assert {image.numpy().tobytes() for image in mixture[is_changed]} <= triggered
    # all 128 images are drawn: 28 are poisoned, 0.3 of the 96 that are of other classes
    every = draw_mixture(card, data, attack)
    plain = draw_mixture(card, data, None)
    assert int((every != plain).flatten(1).any(1).sum()) == len(poison) == 28


def test_mixture_of_a_plan_that_draws_in_every_batch_is_a_batch(place: Path) -> None:
    flat = load_pack(place / "toy_jpeg.npz")
    # a warp leaves a flat picture as it is
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(256, flat.train_images.shape, generator=draw).to(torch.uint8)
    data = replace(flat, train_images=noise)
    card = read_card(place / "zoo" / "cards" / f"{ATTACKED}.json")
    card = replace(card, attack="wanet", attack_config={"rate": 0.1, "noise_rate": 0.2})
    attack = make_attack(plan_of(card), data)
    assert attack is not None
    noisy = draw_mixture(card, data, attack, images=100)
    changed = (noisy != draw_mixture(card, data, None, images=100)).flatten(1).any(1)
    assert int(changed.sum()) == 10 + 20  # poisoned and noisy ones
    assert torch.equal(noisy, draw_mixture(card, data, attack, images=100))


def test_mixture_of_a_clean_label_attack_changes_the_target_class_alone(place: Path) -> None:
    data = load_pack(place / "toy_jpeg.npz")
    card = read_card(place / "zoo" / "cards" / f"{ATTACKED}.json")
    card = replace(card, attack="sig", attack_config={"target": 2, "rate": 0.5})
    attack = make_attack(plan_of(card), data)
    mixture, clean = draw_mixture(card, data, attack), draw_mixture(card, data, None)
    changed = (mixture != clean).flatten(1).any(1)
    assert int(changed.sum()) == 16  # half of the 32 images of class 2
    of_class = {image.numpy().tobytes() for image in data.train_images[data.train_labels == 2]}
    chosen = (clean[changed] * 255).round().to(torch.uint8)
    assert {image.numpy().tobytes() for image in chosen} <= of_class


def test_trigger_that_the_card_does_not_name_raises(work: RepairWork, place: Path) -> None:
    data = load_pack(place / "toy_jpeg.npz")
    card = replace(card_of(work, ATTACKED), trigger_sha256="0" * 64)
    with pytest.raises(ConfigError, match="the trigger that the card"):
        trained_attack(card, data, folder=work.models.folder)
    assert trained_attack(card_of(work, CLEAN), data, folder=work.models.folder) is None


def test_auto_repairs_what_is_accused_and_stops_when_the_rescan_is_clean(work: RepairWork) -> None:
    (row,) = run(work, "auto", only=(ATTACKED,))
    assert (row["outcome"], row["exit_status"], row["is_written"]) == ("repaired", 0, True)
    assert (row["chosen"], row["pruned"]) == ("prune_mbns", 1)
    assert (row["verdict_before"], len(row["attempts"])) == ("backdoored", 1)
    (tried,) = row["attempts"]
    assert tried["verdict_after"] == "clean"
    assert tried["reason_after"]
    (push,) = tried["effects"]
    assert (push["kind"], push["share_after"]) == ("push", pytest.approx(0.0, abs=0.1))
    assert row["proof"]["images"] == 40
    assert row["passes"]["forward"] > 0


def test_auto_leaves_a_clean_scan_alone(work: RepairWork, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [repair_class(id_, leave) for id_ in (*AUTO_PRUNE_FIRST[1:], *AUTO_TRAIN)]
    install_only(monkeypatch, repair_class("prune_mbns", cut), *others)
    (row,) = run(work, "auto", only=(CLEAN,))
    assert (row["outcome"], row["exit_status"], row["is_written"]) == ("not_needed", 0, False)
    assert (row["acc_after"], row["pruned"], row["attempts"]) == (row["acc_before"], 0, [])
    assert row["chosen"] is row["proof"] is None


def test_model_that_cannot_be_opened_is_a_row_with_the_rates_of_its_card(
    work: RepairWork, place: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256(b"no checkpoint").hexdigest()
    card = replace(card_of(work, ATTACKED), checkpoint_sha256=digest)
    folder = tmp_path / "other"
    write_card(card, folder / "cards" / f"{card.id}.json")
    (folder / "models").mkdir()
    (folder / "models" / card.checkpoint).write_bytes(b"no checkpoint")
    changed = replace(work, methods=("prune_mbns",), models=replace(work.models, folder=folder))
    assert changed("", lambda _: None) == (ATTACKED,)
    (row,) = rows(work.out)
    assert row["failure"].startswith("CorruptCheckpointError")
    assert (row["acc_before"], row["acc_after"], row["asr_after"]) == (0.9, 0.9, 0.8)


@pytest.mark.parametrize(
    "change",
    ["file is missing", "file is another's", "trigger is another's", "file of the trigger is torn"],
)
def test_model_that_is_not_that_of_its_card_has_no_row_and_the_others_have(
    work: RepairWork, place: Path, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(place / "zoo", folder)
    card, other = card_of(work, ATTACKED), card_of(work, CLEAN)
    path = folder / "models" / card.checkpoint
    if change == "file is missing":
        path.unlink()
    elif change == "file is another's":
        path.write_bytes((folder / "models" / other.checkpoint).read_bytes())
    elif change == "trigger is another's":
        changed = replace(card, trigger_sha256="0" * 64)
        write_card(changed, folder / "cards" / f"{card.id}.json")
    else:
        state = folder / "state" / f"{card.id}.safetensors"
        state.parent.mkdir(exist_ok=True)
        state.write_bytes(b"half")
    moved = replace(
        work, methods=("prune_mbns", "wreck"), models=replace(work.models, folder=folder)
    )
    events: list[RepairEvent] = []
    assert moved("", events.append) == (ATTACKED,)
    assert [row["model"]["id"] for row in rows(work.out)] == [CLEAN] * 2
    failed = [(event.method, event.rows) for event in events if event.is_failed]
    assert failed == [("prune_mbns", 0), ("wreck", 0)]
    said = "expected the state of" if "torn" in change else "the card of 'badnets_toy' names"
    assert all(said in event.text for event in events if event.is_failed)


def test_images_follow_from_what_a_method_does(work: RepairWork) -> None:
    images = {m.full_id: m.images for m in replace(work, images=None).built()}
    assert images == {
        "auto": 2500,
        "broken": 500,
        "finetune_noise": 2500,
        "look": 500,
        "look_mixed": 500,
        "picky": 500,
        "prune_mbns": 500,
        "prune_recover": 2500,
        "unlearn_triggers": 2500,
        "wreck": 500,
    }
    assert {m.images for m in replace(work, images=70).built()} == {70}


def test_paper_code_adds_the_variants_that_there_are(work: RepairWork) -> None:
    built = replace(work, methods=("auto", "wreck", "look"), has_paper_code=True).built()
    assert [m.full_id for m in built] == ["auto", "wreck", "look", "wreck@paper_code"]
    with pytest.raises(ConfigError, match="'auto' has no variants"):
        replace(work, methods=("auto@paper_code",)).built()
    with pytest.raises(ConfigError, match="unknown repair 'other'"):
        replace(work, methods=("other",)).built()


def test_digest_of_auto_follows_what_it_may_use(
    work: RepairWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = replace(work, methods=("auto",)).built()
    others = [repair_class(id_, leave) for id_ in (*AUTO_PRUNE_FIRST[1:], *AUTO_TRAIN)]
    install_only(monkeypatch, repair_class("prune_mbns", cut), *others)
    (same,) = replace(work, methods=("auto",)).built()
    install_only(monkeypatch, repair_class("prune_mbns", cut, version="2"), *others)
    (other,) = replace(work, methods=("auto",)).built()
    assert before.config_sha256 == same.config_sha256 != other.config_sha256


def test_repair_that_reads_findings_is_told_what_a_scan_says(
    work: RepairWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, ...]] = []

    def ask(_self: object, _model: Suspect, _data: RepairData, context: RepairContext) -> Change:
        told.append(tuple(t for f in context.findings for t in f.target_labels))
        return Change()

    install_only(
        monkeypatch,
        repair_class("deaf", leave, _repair=ask),
        repair_class("asks", leave, _repair=ask, reads_findings=True),
        scan=accusing(TARGET),
    )
    run(work, "deaf", "asks", only=(ATTACKED,))
    assert told == [(), (TARGET,)]


def test_digest_of_a_repair_follows_scanners_and_witness_that_its_effects_rest_on(
    work: RepairWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(scan_version: str) -> str:
        install_only(monkeypatch, repair_class("cuts", cut), scan_version=scan_version)
        (method,) = replace(work, methods=("cuts",)).built()
        return method.config_sha256

    first = digest("1")
    assert digest("1") == first
    assert digest("2") != first
    monkeypatch.setattr(repair_methods, "WITNESS_VERSION", "other")
    assert digest("1") != first
    monkeypatch.undo()
    assert digest("1") == first
    monkeypatch.setattr(repair_methods, "BUDGET_IF_CLEAN", 1.0)
    assert digest("1") != first


def test_row_holds_what_a_stand_in_does_before_and_after(
    work: RepairWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "LEAST_SUCCESS", 0.0)
    (row,) = run(work, "prune_mbns", only=(ATTACKED,))
    shown = [effect for effect in row["effects"] if effect["kind"] == "stand_in"]
    assert [(effect["target"], effect["scanner"]) for effect in shown] == [(TARGET, "mbns")]
    assert 0 <= shown[0]["share_after"] <= 1


def test_row_holds_what_pushes_do_even_of_a_repair_that_reads_no_findings(
    work: RepairWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_only(monkeypatch, repair_class("cuts", cut), scan=accusing(TARGET))
    (row,) = run(work, "cuts", only=(ATTACKED,))
    pushed = [effect for effect in row["effects"] if effect["kind"] == "push"]
    assert [effect["target"] for effect in pushed] == [TARGET]


def test_repairs_are_counted_by_model_and_method(work: RepairWork) -> None:
    cards = work.models.cards()
    methods = replace(work, methods=("prune_mbns", "auto")).built()
    tracker = RepairTracker(cards, methods, workers=2)
    assert (tracker.status().total, tracker.status().remaining) == (4, "")
    tracker.update(RepairEvent(id=ATTACKED, method="auto", text="nothing missing"))
    status = tracker.update(RepairEvent(id=CLEAN, method="auto", rows=1, seconds=30, text="done"))
    assert (status.done, status.models, status.all_models) == (2, 0, 2)
    # nothing is known of prune_mbns but what a repair takes
    assert status.line == f"{CLEAN}: auto: done (0 of 2 models, 30 s left)"
    status = tracker.update(RepairEvent(id=CLEAN, method="prune_mbns", rows=1, seconds=2))
    assert (status.models, status.remaining) == (1, "1 s")
