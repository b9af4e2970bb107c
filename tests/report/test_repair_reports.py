from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from modelaudit.engine.budget import check_budget
from modelaudit.errors import ConfigError
from modelaudit.repair_results import (
    BudgetCheck,
    Measurements,
    RepairAttempt,
    RepairOutcome,
    RepairReport,
    ScanSummary,
)
from modelaudit.report import dumps
from modelaudit.report.repair_json import dump_repair, prior_scan, to_repair_document
from modelaudit.report.repair_terminal import render_repair, short_outcome
from tests.helpers.repair_reports import TRIED, all_repair_reports, proof_of, repaired
from tests.helpers.reports import all_reports, backdoored, inconclusive

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "repair-1.json").read_text(encoding="utf-8"))
SCAN_SCHEMA = json.loads((ROOT / "docs" / "schema" / "report-1.json").read_text(encoding="utf-8"))


def test_there_is_a_report_for_every_outcome() -> None:
    assert set(all_repair_reports()) == {outcome.value for outcome in RepairOutcome}


@pytest.mark.parametrize("name", list(all_repair_reports()))
def test_every_outcome_fits_the_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(dump_repair(all_repair_reports()[name])), SCHEMA)


def test_the_schema_lists_the_documents_keys_in_their_order() -> None:
    document = to_repair_document(repaired())
    assert list(document) == list(SCHEMA["properties"])
    assert SCHEMA["required"] == list(document)
    names = [f.name for f in dataclasses.fields(RepairAttempt)]
    assert SCHEMA["$defs"]["attempt"]["required"] == [*names, "pruned_neurons"]
    for name, record in (("measurements", Measurements), ("budget", BudgetCheck)):
        fields = [f.name for f in dataclasses.fields(record)]
        assert SCHEMA["$defs"][name]["required"] == fields
        assert list(SCHEMA["$defs"][name]["properties"]) == fields


def test_both_schemas_describe_a_scanner_alike() -> None:
    assert SCHEMA["$defs"]["scanner"] == SCAN_SCHEMA["$defs"]["scanner"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("exit_code", 1), ("outcome", "safe"), ("proof_images", -1), ("written", {"path": "x"})],
)
def test_the_schema_refuses_contradictions(key: str, value: object) -> None:
    document = json.loads(dump_repair(repaired()))
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(document)
    document[key] = value
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


@pytest.mark.parametrize("name", list(all_repair_reports()))
def test_every_outcome_is_a_page_of_80_columns(name: str) -> None:
    text = render_repair(all_repair_reports()[name])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert name.upper().replace("_", " ") in text
    assert "\x1b" not in text
    assert render_repair(all_repair_reports()[name], encoding="ascii").isascii()


def test_the_page_shows_cost_change_and_file() -> None:
    text = " ".join(render_repair(repaired(), width=120).split())
    for fact in (
        *("93.0%", "92.0%", "98.5%"),
        *("prune_dde needs a mixture", "layer1.0.bn1: 2, 5", "and 10 more"),
        *("98.0%", "5.0%", "repaired.safetensors", "scheduler"),
        *("300 images for repairs, 200 held out", "stopped where accuracy fell"),
        "not a proof that no backdoor is left",
    ):
        assert fact in text


def test_page_and_json_say_which_mode_of_pruning_a_number_rests_on() -> None:
    tried = dataclasses.replace(TRIED, details={"prune_mode": "official"})
    report = dataclasses.replace(repaired(), attempts=(tried,))
    assert "Pruned neurons (32, mode official)" in render_repair(report)
    assert json.loads(dump_repair(report))["attempts"][0]["details"] == {"prune_mode": "official"}
    assert "Pruned neurons (32)" in render_repair(repaired())


def test_the_page_shows_what_the_images_can_say_of_the_loss() -> None:
    proof = proof_of(lost=14, won=10)
    several = dataclasses.replace(
        TRIED, proof=proof, budget=check_budget(proof, models=3, max_accuracy_drop=0.02)
    )
    alone = dataclasses.replace(
        TRIED, proof=proof, budget=check_budget(proof, models=1, max_accuracy_drop=0.02)
    )
    texts = [
        " ".join(render_repair(dataclasses.replace(repaired(), attempts=(a,))).split())
        for a in (several, alone)
    ]
    assert all("Points lost on the held-out images; 2.0 allowed" in text for text in texts)
    assert "prune_mbns 2.0 -2.9 to 6.9 4.1 over open ~4,900 images" in texts[0]
    assert "of 3 models that leave as much of the backdoor" in texts[0]
    assert "prune_mbns 2.0 -2.9 to 6.9 2.0 within open ~4,900 images" in texts[1]
    assert "as much of the backdoor" not in texts[1]
    chain = dataclasses.replace(several, id="finetune_noise", goes_on_from=("prune_recover",))
    page = render_repair(dataclasses.replace(repaired(), attempts=(chain,)))
    assert "-2.9 to 6.9        4.1  over    open      ~4,900 images" in page


def test_json_says_what_the_images_can_say_of_the_loss() -> None:
    attempts = json.loads(dump_repair(repaired()))["attempts"]
    assert attempts[0]["budget"] is None
    assert attempts[1]["budget"]["models"] == 2
    assert attempts[1]["budget"]["interval"] == "open"
    assert attempts[1]["budget"]["images_to_settle"] > 200
    assert attempts[1]["proof"]["lost"] == 3
    assert attempts[1]["proof"]["interval_drop"] == [-0.011, 0.034]


def test_no_verdict_and_no_id_is_cut_at_80_columns() -> None:
    scan = inconclusive()
    undecided = dataclasses.replace(
        TRIED, id="unlearn_triggers", after=ScanSummary.of(scan), verdict=scan.verdict
    )
    report = dataclasses.replace(repaired(), attempts=(undecided,))
    tried = render_repair(report).split("What was tried")[1].split("Points lost")[0]
    assert "inconclusive" in tried
    assert "unlearn_triggers" in tried


def test_the_page_shows_what_a_target_and_the_worst_class_lost() -> None:
    text = " ".join(render_repair(repaired(), width=120).split())
    assert "3 20 90.0% 85.0% named as target" in text
    assert "5 20 90.0% 55.0% largest loss" in text
    assert "0 20 95.0%" not in text


def test_the_page_says_which_findings_are_traces_that_lead_nowhere() -> None:
    text = " ".join(render_repair(repaired(), width=120).split())
    assert "mbns after the repair: traces of before in running statistics" in text
    assert "2.1%" in text
    other = dataclasses.replace(repaired(), attempts=(dataclasses.replace(TRIED, explained=()),))
    assert "traces" not in render_repair(other, width=120)


def test_the_page_marks_what_decides_nothing() -> None:
    told = []
    for is_deciding in (True, False):
        effects = tuple(dataclasses.replace(e, is_deciding=is_deciding) for e in TRIED.effects)
        tried = dataclasses.replace(TRIED, effects=effects)
        text = render_repair(dataclasses.replace(repaired(), attempts=(tried,)), width=120)
        told.append(" ".join(text.split()).count("shown only"))
    assert told == [0, 2]


def test_a_step_that_goes_on_from_another_is_marked() -> None:
    step = dataclasses.replace(TRIED, id="finetune_noise", goes_on_from=("prune_mbns",))
    report = dataclasses.replace(repaired(), attempts=(TRIED, step))
    assert "+ finetune_noise" in render_repair(report, width=120)
    assert step.chain == "prune_mbns, then finetune_noise"
    document = to_repair_document(report)
    assert document["attempts"][1]["goes_on_from"] == ["prune_mbns"]  # type: ignore[call-overload, index]


def test_a_hostile_name_stays_on_its_line() -> None:
    hostile = dataclasses.replace(
        repaired(), suspect=dataclasses.replace(repaired().suspect, path="a\x1b[31m\nREPAIRED")
    )
    assert "\x1b" not in render_repair(hostile)
    assert "\nREPAIRED" not in render_repair(hostile)


def test_no_report_says_that_the_backdoor_is_gone() -> None:
    for report in all_repair_reports().values():
        text = render_repair(report).lower() + short_outcome(report).lower()
        assert not re.search(r"\b(gone|safe|removed the backdoor|free of)\b", text)


@pytest.mark.parametrize("name", ["clean", "backdoored", "inconclusive"])
def test_a_scans_report_can_start_a_repair(name: str) -> None:
    report = all_reports()[name]
    prior = prior_scan(json.loads(dumps(report)))
    assert prior.checkpoint_sha256 == report.suspect.sha256
    assert prior.clean_set_sha256 == report.clean_set.sha256
    assert report.load is not None
    assert prior.state_dict_key == report.load.state_dict_key
    assert prior.summary.verdict == report.verdict
    assert [r.id for r in prior.summary.scanners] == [r.id for r in report.scanners]
    assert [r.target_labels for r in prior.summary.scanners] == [
        r.target_labels for r in report.scanners
    ]


def _without(key: str) -> dict[str, Any]:
    document = json.loads(dumps(backdoored()))
    del document[key]
    return document  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "document",
    [
        *(None, [], {}, {"verdict": "clean"}),
        *(_without(key) for key in ("verdict", "suspect", "scanners", "target_labels")),
        {**json.loads(dumps(backdoored())), "scanners": [{"id": "x"}]},
        {**json.loads(dumps(backdoored())), "verdict": "refused"},
        {**json.loads(dumps(backdoored())), "scanners": 5},
    ],
)
def test_anything_else_cannot(document: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        prior_scan(document)


def test_the_report_has_one_chosen_attempt() -> None:
    report: RepairReport = repaired()
    assert report.chosen is report.attempts[1]
    assert report.chosen.pruned_neurons == 32
