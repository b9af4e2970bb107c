from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelaudit.bench import scan
from modelaudit.bench.cards import read_card, write_card
from modelaudit.bench.scan import ScanEvent, ScanWork, method_sha256
from modelaudit.bench.selection import Selection
from modelaudit.bench.train_work import TrainWork
from modelaudit.engine.components import build_scanners
from modelaudit.errors import ConfigError
from modelaudit.report.json import outcome_from_record, outcome_record
from modelaudit.results import ScannerResult, SkippedScan
from tests.helpers.populations import fake_outcomes, rows, write_toy

if TYPE_CHECKING:
    from modelaudit.results import Json, ScanOutcome


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A population, trained once for all tests of this file."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder)
    work = TrainWork(plan=str(folder / "plan.toml"), folder=folder / "zoo", data_root=folder)
    assert work("", lambda _: None) == ()
    for path in (folder / "zoo" / "cards").glob("*.json"):
        card = read_card(path)
        if card.attack == "badnets":
            write_card(replace(card, gate_passed=True, gate_reasons=()), path)
        elif card.attack is not None:
            write_card(replace(card, gate_passed=False, gate_reasons=("weak",)), path)
    return folder


@pytest.fixture
def real_work(toy: Path, tmp_path: Path) -> ScanWork:
    return ScanWork(
        models=Selection(folder=toy / "zoo", data_root=toy),
        out=tmp_path / "rows.jsonl",
        scanners=("mbns", "dde"),
        images=100,
    )


@pytest.fixture
def work(real_work: ScanWork, monkeypatch: pytest.MonkeyPatch) -> ScanWork:
    monkeypatch.setattr(scan, "_outcomes", fake_outcomes)
    return real_work


def test_every_model_gets_a_row_per_scanner(work: ScanWork) -> None:
    events: list[ScanEvent] = []
    assert work("", events.append) == ()
    found = rows(work.out)
    assert [(row["model"]["id"], row["key"]["scanner"]) for row in found] == [
        (id_, scanner)
        for id_ in (
            "badnets_toy_resnet18w4_s1_t2",
            "clean_toy_resnet18w4_s1",
            "clean_toy_vgg16w4_s2",
        )
        for scanner in ("mbns", "dde")
    ]
    assert [event.rows for event in events] == [2, 2, 2]


def test_row_says_what_the_contract_asks(work: ScanWork) -> None:
    replace(
        work,
        scanners=("mbns",),
        models=replace(work.models, only=("badnets_toy_resnet18w4_s1_t2",)),
    )("", lambda _: None)
    (row,) = (json.loads(line) for line in work.out.read_text("utf-8").splitlines())
    card = read_card(work.models.folder / "cards" / "badnets_toy_resnet18w4_s1_t2.json")
    (scanner,) = build_scanners(("mbns",), ())
    assert row["key"] == {
        "checkpoint_sha256": card.checkpoint_sha256,
        "scanner": "mbns",
        "variant": None,
        "config_sha256": method_sha256(scanner),
        "seed": 0,
        "clean_set_sha256": row["key"]["clean_set_sha256"],
    }
    assert row["model"] == {
        "id": card.id,
        "plan": "toy",
        "population": "A",
        "dataset": "toy",
        "architecture": "cifar_resnet18",
        "width": 4,
        "classes": 4,
        "input_size": 32,
    }
    assert row["truth"] == {
        "attack": "badnets",
        "label_map": "one",
        "target": 2,
        "victim": None,
        "acc": card.acc,
        "twin_acc": card.twin_acc,
        "asr": card.asr,
        "benign_asr": card.benign_asr,
        "gate_passed": True,
    }
    assert row["clean_set"] == {"name": "toy_100", "images": 100, "degradation": None}
    assert set(row) == {
        *("key", "model", "truth", "clean_set", "obstacles", "obstacles_to_clean"),
        *("outcome", "result", "hardware", "versions"),
    }
    assert set(row["hardware"]) == {"cpu", "threads", "device"}
    assert "torch" in row["versions"]


def test_what_is_there_is_not_scanned_again(work: ScanWork) -> None:
    replace(work, scanners=("mbns",))("", lambda _: None)
    before = work.out.read_bytes()
    events: list[ScanEvent] = []
    replace(work, scanners=("mbns",))("", events.append)
    assert work.out.read_bytes() == before
    assert {event.text for event in events} == {"nothing missing"}
    work("", events.append)
    assert work.out.read_bytes().startswith(before)
    assert [row["key"]["scanner"] for row in rows(work.out)[3:]] == ["dde"] * 3


def test_rows_cut_at_any_place_are_completed_to_the_same_set(work: ScanWork) -> None:
    one = replace(work, models=replace(work.models, only=("clean_toy_resnet18w4_s1",)))
    one("", lambda _: None)
    whole = work.out.read_bytes()
    expected = rows(work.out)
    for length in (0, 10, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1):
        work.out.write_bytes(whole[:length])
        one("", lambda _: None)
        assert rows(work.out) == expected


def test_another_number_of_images_or_seed_makes_other_rows(work: ScanWork) -> None:
    one = replace(
        work, scanners=("mbns",), models=replace(work.models, only=("clean_toy_resnet18w4_s1",))
    )
    for changed in (one, replace(one, images=80), replace(one, seed=1)):
        changed("", lambda _: None)
    assert [row["clean_set"]["name"] for row in rows(work.out)] == ["toy_100", "toy_80", "toy_100"]


def test_models_that_failed_the_gate_are_scanned_when_asked_for(work: ScanWork) -> None:
    ids = [card.id for card in replace(work.models, is_with_failed=True).cards()]
    assert ids == sorted([*(card.id for card in work.models.cards()), "blend_toy_vgg16w4_s2_t1"])


def test_population_and_plan_choose_models(work: ScanWork, toy: Path) -> None:
    assert [card.id for card in replace(work.models, population="B").cards()] == [
        "clean_toy_vgg16w4_s2"
    ]
    assert replace(work.models, plan=str(toy / "plan.toml")).cards() == work.models.cards()
    assert replace(work.models, plan="smoke").cards() == ()


def test_paper_code_adds_the_variants_that_there_are(work: ScanWork) -> None:
    ids = replace(work, scanners=("ban", "mbns@paper_code"), has_paper_code=True).scanner_ids()
    assert ids == ("ban", "mbns@paper_code", "ban@paper_code")
    every = replace(work, scanners=(), has_paper_code=True).scanner_ids()
    assert {"ban", "ban@paper_code"} <= set(every)


def test_model_that_cannot_be_opened_is_a_row_of_its_own(
    real_work: ScanWork, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    digest = hashlib.sha256(b"no checkpoint").hexdigest()
    card = replace(real_work.models.cards()[0], checkpoint_sha256=digest)
    write_card(card, folder / "cards" / f"{card.id}.json")
    (folder / "models").mkdir()
    (folder / "models" / card.checkpoint).write_bytes(b"no checkpoint")
    broken = replace(real_work, models=replace(real_work.models, folder=folder))
    assert broken("", lambda _: None) == (card.id,)
    found = rows(real_work.out)
    assert [row["outcome"] for row in found] == ["failed", "failed"]
    assert found[0]["result"]["error"].startswith("CorruptCheckpointError")


@pytest.mark.parametrize("is_missing", [True, False])
def test_model_whose_file_is_not_that_of_its_card_has_no_row_until_it_is_put_right(
    work: ScanWork, toy: Path, tmp_path: Path, is_missing: bool
) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(toy / "zoo", folder)
    moved = replace(work, models=replace(work.models, folder=folder))
    card, other, _ = moved.models.cards()
    path = folder / "models" / card.checkpoint
    content = path.read_bytes()
    if is_missing:
        path.unlink()
    else:
        path.write_bytes((folder / "models" / other.checkpoint).read_bytes())
    events: list[ScanEvent] = []
    assert moved("", events.append) == (card.id,)
    assert {row["model"]["id"] for row in rows(work.out)} == {
        one.id for one in moved.models.cards()[1:]
    }
    assert (events[0].id, events[0].rows, events[0].failed) == (card.id, 0, ("mbns", "dde"))
    assert f"the card of {card.id!r} names at {str(path)!r}" in events[0].text
    path.write_bytes(content)
    assert moved("", events.append) == ()
    assert [row["model"]["id"] for row in rows(work.out)[-2:]] == [card.id] * 2


def test_folder_without_cards_raises(work: ScanWork, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected model cards"):
        replace(work, models=replace(work.models, folder=tmp_path))("", lambda _: None)


def test_unknown_model_raises(work: ScanWork) -> None:
    with pytest.raises(ConfigError, match="has no models"):
        replace(work.models, only=("other",)).cards()


def test_card_without_a_population_raises(work: ScanWork, tmp_path: Path) -> None:
    card = replace(work.models.cards()[0], population=None)
    write_card(card, tmp_path / "cards" / f"{card.id}.json")
    with pytest.raises(ConfigError, match="names no population"):
        replace(work.models, folder=tmp_path).cards()


def test_rows_give_the_outcomes_back(work: ScanWork) -> None:
    work("", lambda _: None)
    kinds = set()
    for line in work.out.read_text("utf-8").splitlines():
        row = json.loads(line)
        outcome: ScanOutcome = outcome_from_record(row)
        kinds.add(type(outcome))
        again = outcome_record(outcome)
        assert json.loads(json.dumps(again)) == {k: row[k] for k in ("outcome", "result")}
    assert kinds == {ScannerResult, SkippedScan}


@pytest.mark.parametrize(
    "row",
    [
        {"outcome": "guess", "result": {}},
        {"outcome": "result", "result": None},
        {"outcome": "skipped", "result": {"id": "mbns"}},
        {"outcome": "result", "result": {"id": "mbns", "finding": "maybe"}},
    ],
)
def test_record_that_is_none_raises(row: dict[str, Json]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        outcome_from_record(row)


def test_keys_of_a_later_version_are_passed_over() -> None:
    record: dict[str, Json] = {"id": "dde", "error": "x", "later": 3}
    assert outcome_from_record({"outcome": "failed", "result": record}).id == "dde"


@pytest.mark.slow
def test_the_engine_itself_fills_the_rows(real_work: ScanWork) -> None:
    work = replace(
        real_work,
        scanners=("mbns", "mm_bd"),
        has_paper_code=True,
        models=replace(real_work.models, population="B"),
    )
    work("", lambda _: None)
    found = rows(work.out)
    assert [(row["key"]["scanner"], row["key"]["variant"]) for row in found] == [
        ("mbns", None),
        ("mm_bd", None),
        ("mbns", "paper_code"),
        ("mm_bd", "paper_code"),
    ]
    assert {row["outcome"] for row in found} <= {"result", "skipped"}


def test_digest_of_a_method_follows_its_version_and_settings() -> None:
    (one,) = build_scanners(("mbns",), ())
    (other,) = build_scanners(("dde",), ())
    digests = {method_sha256(one), method_sha256(other)}

    class Newer(type(one)):  # type: ignore[misc]  # a class made from a class
        version = "later"

    digests.add(method_sha256(Newer(one.config)))
    assert len(digests) == 3


def test_a_degraded_clean_set_makes_rows_of_its_own(work: ScanWork) -> None:
    one = replace(
        work, scanners=("mbns",), models=replace(work.models, only=("clean_toy_resnet18w4_s1",))
    )
    one("", lambda _: None)
    replace(one, degradation="snow")("", lambda _: None)
    plain, bad = rows(work.out)
    assert plain["clean_set"]["degradation"] is None
    assert bad["clean_set"] == {"name": "toy_100_snow", "images": 100, "degradation": "snow"}
    assert plain["key"]["clean_set_sha256"] != bad["key"]["clean_set_sha256"]
    with pytest.raises(ConfigError, match="expected a degradation"):
        replace(one, degradation="fog")("", lambda _: None)
