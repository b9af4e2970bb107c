from __future__ import annotations

import inspect
import json
from pathlib import Path

import jsonschema
import pytest

from modelaudit import errors
from modelaudit.engine import (
    RepairRequest,
    ScanRequest,
    failure_report,
    repair_failure_report,
)
from modelaudit.errors import (
    ConfigError,
    CorruptCheckpointError,
    DataError,
    FitError,
    ModelAuditError,
    OutputError,
    PluginError,
    TooFewImagesError,
    UnknownArchitectureError,
    UnsafeCheckpointError,
)
from modelaudit.report import dumps
from modelaudit.results import Verdict

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "schema" / "report-1.json").read_text("utf-8"))
)
REQUEST = ScanRequest(
    checkpoint=Path("model.pt"), data=Path("clean"), seed=7, alpha=0.01, budget_seconds=30.0
)

#: Verdict and exit status of methods/intake.md for whatever may end a scan.
EXPECTED: dict[type[BaseException], tuple[Verdict, int]] = {
    UnsafeCheckpointError: (Verdict.REFUSED, 3),
    CorruptCheckpointError: (Verdict.UNREADABLE, 4),
    UnknownArchitectureError: (Verdict.UNREADABLE, 4),
    errors.CheckpointError: (Verdict.UNREADABLE, 4),
    DataError: (Verdict.UNREADABLE, 4),
    TooFewImagesError: (Verdict.INCONCLUSIVE, 5),
    FitError: (Verdict.UNREADABLE, 4),
    ConfigError: (Verdict.USAGE, 2),
    PluginError: (Verdict.USAGE, 2),
    OutputError: (Verdict.ERROR, 6),
    errors.RepairError: (Verdict.INCONCLUSIVE, 5),
    errors.UnmetNeedError: (Verdict.INCONCLUSIVE, 5),
    KeyboardInterrupt: (Verdict.INTERRUPTED, 130),
    # What scanners raise is a result; outside of one it is a bug.
    ModelAuditError: (Verdict.ERROR, 70),
    errors.ShapeError: (Verdict.ERROR, 70),
    errors.DtypeError: (Verdict.ERROR, 70),
    errors.ScannerError: (Verdict.ERROR, 70),
    errors.DegenerateStatisticError: (Verdict.ERROR, 70),
    errors.BudgetExceededError: (Verdict.ERROR, 70),
    RuntimeError: (Verdict.ERROR, 70),
    AssertionError: (Verdict.ERROR, 70),
    MemoryError: (Verdict.ERROR, 70),
}


def test_every_error_class_has_its_row() -> None:
    raised = {cls for _, cls in inspect.getmembers(errors, inspect.isclass)}
    assert {cls for cls in raised if issubclass(cls, ModelAuditError)} <= set(EXPECTED)


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_what_ended_a_scan_gives_its_verdict_and_status(kind: type[BaseException]) -> None:
    report = failure_report(REQUEST, kind("what was found"))
    assert (report.verdict.verdict, report.exit_status) == EXPECTED[kind]
    assert report.verdict.next_step
    assert report.scanners == report.skipped == report.failed == ()


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_a_failure_on_purpose_keeps_its_code_and_sentence(kind: type[BaseException]) -> None:
    report = failure_report(REQUEST, kind("what was found"))
    if issubclass(kind, ModelAuditError):
        assert report.verdict.reason_code == kind.code
    else:
        assert report.verdict.reason_code == f"MA-E{report.exit_status:03d}"
    expected = {
        70: f"{kind.__name__}: what was found",
        130: "interrupted",
    }.get(report.exit_status, "what was found")
    assert report.verdict.reason == expected


@pytest.mark.parametrize(
    "kind",
    [kind for kind, (verdict, _) in EXPECTED.items() if verdict is not Verdict.USAGE],
    ids=lambda kind: kind.__name__,
)
def test_a_failure_is_a_valid_document(kind: type[BaseException]) -> None:
    document = json.loads(dumps(failure_report(REQUEST, kind("what was found"))))
    SCHEMA.validate(document)
    assert document["exit_code"] == EXPECTED[kind][1]


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_what_ends_a_repair_has_the_same_status_and_speaks_of_repairing(
    kind: type[BaseException],
) -> None:
    report = repair_failure_report(RepairRequest(scan=REQUEST), kind("what was found"))
    assert report.exit_status == EXPECTED[kind][1]
    assert report.next_step
    assert "scan" not in report.next_step
    assert "--output" not in report.next_step


def test_a_repair_that_could_not_be_written_names_its_own_option() -> None:
    report = repair_failure_report(RepairRequest(scan=REQUEST), OutputError("disk full"))
    assert "--out," in report.next_step
    assert "--output" in failure_report(REQUEST, OutputError("disk full")).verdict.next_step


def test_a_failure_names_what_was_asked_for() -> None:
    report = failure_report(REQUEST, DataError("clean: no images"))
    assert (report.suspect.path, report.clean_set.path) == ("model.pt", "clean")
    assert (report.seed, report.alpha, report.budget_seconds) == (7, 0.01, 30.0)
    assert report.device == "cpu"
    assert {"python", "torch", "numpy"} <= set(report.versions)


def test_an_unknown_architecture_is_told_with_the_closest() -> None:
    error = UnknownArchitectureError("no family fits", closest=("resnet18: conv1", "vgg11: a.0"))
    report = failure_report(REQUEST, error)
    assert report.verdict.reason == "no family fits; closest: resnet18: conv1; vgg11: a.0"


def test_codes_are_unique_except_for_those_inherited() -> None:
    codes = [cls.code for cls in EXPECTED if issubclass(cls, ModelAuditError)]
    assert len(set(codes)) == len(codes)


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelaudit.engine import versions as module

    monkeypatch.setattr(module, "_PACKAGES", ("torch", "no-such-distribution-here"))
    assert set(module.versions()) == {"python", "torch"}
