from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest

from modelaudit.errors import ConfigError
from modelaudit.report import dumps, to_document, without_seconds
from modelaudit.report.json import outcome_from_record, outcome_record
from modelaudit.results import CombinedScore, Cost, Json, Match, ScannerResult
from tests.helpers.reports import all_reports, backdoored, clean, scanner_result

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "report-1.json").read_text(encoding="utf-8"))


def refused_by_schema(document: object) -> bool:
    return not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


def test_the_schema_is_a_draft_2020_12_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", list(all_reports()))
def test_every_verdict_fits_the_schema(name: str) -> None:
    jsonschema.validate(json.loads(dumps(all_reports()[name])), SCHEMA)


def test_the_schema_lists_the_documents_keys_in_their_order() -> None:
    document = to_document(backdoored())
    assert list(document) == list(SCHEMA["properties"])
    assert SCHEMA["required"] == list(document)
    for key in ("suspect", "clean_set", "cost", "tool", "reason", "static"):
        part = document[key]
        assert isinstance(part, dict)
        assert list(part) == SCHEMA["properties"][key]["required"]


def test_the_schema_lists_a_scanners_fields() -> None:
    fields = [f.name for f in dataclasses.fields(ScannerResult)]
    assert SCHEMA["$defs"]["scanner"]["required"] == fields


COMBINED = CombinedScore(
    match=Match.MATCHED,
    population="cifar-a",
    clean_models=30,
    scanners=("ban",),
    score=2.5,
    suspicious=3.6,
    strong=5.1,
    predictive_p_value=0.25,
    false_positive_rate=0.0,
    false_positive_interval=(0.0, 0.1157),
    false_positive_models=30,
)


def test_the_combined_score_is_in_the_document_and_fits_the_schema() -> None:
    assert to_document(clean())["combined"] is None
    full = clean(combined=COMBINED, calibration="cifar-a", adjusted_p_values={"ban": 0.61})
    document = json.loads(dumps(full))
    jsonschema.validate(document, SCHEMA)
    assert document["combined"]["match"] == "matched"
    assert document["combined"]["false_positive_interval"] == [0.0, 0.1157]
    assert document["combined"]["p_value"] is None
    assert document["adjusted_p_values"] == {"ban": 0.61}
    assert list(document["combined"]) == SCHEMA["$defs"]["combined"]["required"]
    assert list(document["combined"]) == [f.name for f in dataclasses.fields(CombinedScore)]
    document["combined"]["match"] = "perhaps"
    assert refused_by_schema(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("exit_code", 0),
        ("verdict", "safe"),
        ("verdict", "usage"),
        ("schema_version", "2"),
        ("target_labels", ["3"]),
        ("false_positive_rate", 1.5),
    ],
)
def test_the_schema_refuses_contradictions(key: str, value: object) -> None:
    document = json.loads(dumps(backdoored()))
    assert not refused_by_schema(document)
    document[key] = value
    assert refused_by_schema(document)


def test_the_schema_refuses_a_missing_key() -> None:
    document = json.loads(dumps(clean()))
    del document["failed"]
    assert refused_by_schema(document)


def test_document_states_verdict_status_and_targets() -> None:
    document = json.loads(dumps(backdoored()))
    assert document["verdict"] == "backdoored"
    assert document["exit_code"] == 1
    assert document["target_labels"] == [3]
    assert document["target_names"] == ["cat"]
    assert document["pattern"] == "all_to_one"
    assert document["scanners"][0]["evidence"]["agreement"] == [0.9, 1.0]
    assert document["cost"]["stage_seconds"] == {"load": 0.1, "fit": 1.5, "ban": 9.8}


def test_an_unnamed_target_has_a_null_name() -> None:
    report = backdoored()
    record = dataclasses.replace(report.verdict, target_labels=(3, 12))
    assert to_document(dataclasses.replace(report, verdict=record))["target_names"] == ["cat", None]


@pytest.mark.parametrize("value", [[None], ["0.5"], [1.5], [True], 0.5, None])
def test_p_values_that_are_none_are_refused(value: Json) -> None:
    row = outcome_record(scanner_result(targets=(1,), per_class=(0.1, 0.9)))
    assert outcome_from_record(row) == scanner_result(targets=(1,), per_class=(0.1, 0.9))
    assert isinstance(row["result"], dict)
    broken = {**row, "result": {**row["result"], "class_p_values": value}}
    with pytest.raises(ConfigError, match="expected the record of a scanner"):
        outcome_from_record(broken)


def test_numbers_that_are_not_finite_become_null() -> None:
    result = scanner_result(per_class=(math.nan, math.inf, -math.inf, 1.0))
    document = json.loads(dumps(clean(scanners=(result,))), parse_constant=pytest.fail)
    assert document["scanners"][0]["per_class"] == [None, None, None, 1.0]


def test_same_report_gives_the_same_bytes() -> None:
    assert dumps(backdoored()) == dumps(backdoored())


def test_reports_agree_once_times_are_removed() -> None:
    slow = backdoored(cost=Cost(forward=12_345, forward_backward=56_789, seconds=99.0))
    slow = dataclasses.replace(slow, stage_seconds={"load": 7.0})
    assert dumps(slow) != dumps(backdoored())
    assert without_seconds(to_document(slow)) == without_seconds(to_document(backdoored()))
    assert '"seconds"' not in json.dumps(without_seconds(to_document(slow)))


def test_the_budget_is_a_setting_and_stays() -> None:
    stripped = without_seconds(to_document(backdoored()))
    assert isinstance(stripped, dict)
    assert stripped["budget_seconds"] == 120.0


def test_strings_from_the_file_carry_no_control_characters() -> None:
    hostile = clean(notes=("\x1b[2J\u202ekey\n",), versions={"a\nb": "1"})
    document = to_document(hostile)
    assert document["notes"] == ["\\x1b[2J\\u202ekey\\n"]
    assert document["versions"] == {"a\\nb": "1"}


def test_the_text_is_ascii() -> None:
    assert dumps(clean(notes=("naïve",))).isascii()


def test_a_tensor_in_a_report_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="plain values only, got object"):
        dumps(clean(scanners=(dataclasses.replace(scanner_result(), evidence={"x": object()}),)))
