from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import torch

from modelaudit.calibration import Circumstances, Population, ScannedModel, build
from modelaudit.calibration import dumps as dumps_populations
from modelaudit.engine import ScanRequest
from modelaudit.engine.scan import adjusted_p_values, confident, scan
from modelaudit.errors import ConfigError
from modelaudit.progress import NoProgress
from modelaudit.report import dumps, to_document, without_seconds
from modelaudit.results import (
    Cost,
    FailedScan,
    Finding,
    Match,
    ScanReport,
    SkippedScan,
    Verdict,
)
from modelaudit.scanners import CleanImages, Observation, ScanContext
from tests.helpers.calibration import result
from tests.helpers.engine import (
    FOLDERS,
    HALF,
    SIDE,
    install,
    loud,
    raising,
    scanner_class,
    trained,
    write_checkpoint,
    write_data,
)
from tests.helpers.images import write_folders

if TYPE_CHECKING:
    from collections.abc import Generator

    from modelaudit.progress import Task
    from modelaudit.suspect import Suspect

PER_FOLDER = 26
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "schema" / "report-1.json").read_text("utf-8"))
)
#: The built-in scanners, as short as they can be told to be.
SHORT = (
    ("ban", "restarts", "1"),
    ("ban", "steps", "1"),
    ("ban", "mask_steps", "2"),
    ("ban", "targeted_steps", "1"),
    ("ban", "profile_images", "0"),
    ("mm_bd", "starts", "1"),
    ("mm_bd", "survivors", "1"),
    ("mm_bd", "screen_steps", "1"),
    ("mm_bd", "steps", "2"),
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder that it knows."""
    root = tmp_path_factory.mktemp("scan")
    return write_checkpoint(root / "model.pt", trained(PER_FOLDER)), write_data(
        root / "clean", PER_FOLDER
    )


def request(paths: tuple[Path, Path], **options: Any) -> ScanRequest:
    given = {"preprocessing": HALF, "input_size": SIDE, "budget_seconds": None} | options
    return ScanRequest(checkpoint=paths[0], data=paths[1], **given)


def run(paths: tuple[Path, Path], **options: Any) -> ScanReport:
    return scan(request(paths, **options), progress=NoProgress())


def unconfirmed(suspect: Suspect, clean: CleanImages, context: ScanContext) -> Observation:
    """Accuse class 1 without any confirmation."""
    return replace(loud(suspect, clean, context), is_confirmed=False)


def population_of(report: ScanReport) -> Population:
    """Return a population of five clean models that were scanned as the report's suspect was."""
    models = [
        ScannedModel(
            id=str(i),
            circumstances=Circumstances(
                architecture=report.suspect.architecture,
                images=report.clean_set.images,
                input_size=SIDE,
                classes=len(FOLDERS),
                has_batchnorm=True,
            ),
            outcomes=tuple(
                replace(r, finding=Finding.NONE, score=0.1 + 0.01 * i) for r in report.scanners
            ),
        )
        for i in range(5)
    ]
    return build(models, id_="mine").populations[0]


@pytest.fixture(scope="module")
def quick(paths: tuple[Path, Path]) -> ScanReport:
    """A scan by the two scanners that need no search."""
    return run(paths, scanners=("mbns", "dde"))


def test_a_scan_with_nothing_given_ends_in_a_valid_document(paths: tuple[Path, Path]) -> None:
    asked = ScanRequest(checkpoint=paths[0], data=paths[1], settings=SHORT, budget_seconds=None)
    report = scan(asked, progress=NoProgress())
    document = json.loads(dumps(report))
    SCHEMA.validate(document)
    assert document["verdict"] in {"clean", "backdoored", "inconclusive"}
    assert (
        document["exit_code"]
        == {"clean": 0, "backdoored": 1, "inconclusive": 5}[document["verdict"]]
    )
    ran = {r.id for r in report.scanners} | {s.id for s in report.skipped}
    assert ran >= {"ban", "mbns", "dde", "mm_bd"}
    assert report.failed == ()
    assert report.clean_set.preprocessing["id"] == "half"
    assert {choice.name for choice in report.clean_set.choices} >= {
        "architecture",
        "preprocessing",
        "input_size",
        "labels",
    }


def test_the_report_names_file_data_cost_and_stages(
    quick: ScanReport, paths: tuple[Path, Path]
) -> None:
    assert quick.suspect.sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert quick.clean_set.images == len(FOLDERS) * PER_FOLDER
    assert [r.id for r in quick.scanners] == ["mbns", "dde"]
    assert list(quick.stage_seconds) == [
        "read checkpoint",
        "recognise architecture",
        "read clean set",
        "fit",
        "profile",
        "scanners",
    ]
    scanned = sum(r.cost.forward for r in quick.scanners)
    assert quick.cost.forward == scanned + len(FOLDERS) * PER_FOLDER
    assert quick.cost.seconds == pytest.approx(sum(quick.stage_seconds.values()))
    assert quick.false_positive_rate is None


def test_the_same_seed_gives_the_same_document_apart_from_times(
    quick: ScanReport, paths: tuple[Path, Path]
) -> None:
    again = run(paths, scanners=("mbns", "dde"))
    assert without_seconds(to_document(again)) == without_seconds(to_document(quick))


def test_neither_file_nor_folder_is_written(quick: ScanReport, paths: tuple[Path, Path]) -> None:
    names = sorted(p.name for p in paths[1].rglob("*"))
    assert names == sorted([*FOLDERS, *[f"{i}.png" for i in range(PER_FOLDER)] * len(FOLDERS)])
    assert hashlib.sha256(paths[0].read_bytes()).hexdigest() == quick.suspect.sha256


def test_an_uncalibrated_plugin_never_moves_the_verdict(
    quick: ScanReport, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("loud", loud, is_calibrated=False))
    report = run(paths, scanners=("loud", "mbns", "dde"))
    shown = report.scanners[0]
    assert (shown.id, shown.finding, shown.is_calibrated) == ("loud", Finding.STRONG, False)
    assert report.verdict == quick.verdict
    strip = [replace(r, cost=replace(r.cost, seconds=0.0)) for r in report.scanners[1:]]
    assert strip == [replace(r, cost=replace(r.cost, seconds=0.0)) for r in quick.scanners]


def test_a_calibrated_plugin_that_is_confirmed_is_heard(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("loud", loud))
    report = run(paths, scanners=("loud", "dde"))
    assert report.verdict.verdict is Verdict.BACKDOORED
    assert report.verdict.target_labels == (1,)
    assert report.exit_status == 1


def test_a_setting_makes_a_scanner_uncalibrated(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("loud", loud))
    report = run(paths, scanners=("loud", "dde"), settings=(("loud", "steps", "4"),))
    assert not report.scanners[0].is_calibrated
    assert report.verdict.verdict is Verdict.INCONCLUSIVE


def test_the_report_says_that_no_population_fits_a_model_of_four_classes(
    quick: ScanReport,
) -> None:
    assert quick.combined is not None
    assert quick.combined.match is Match.NONE
    assert "classes instead of 2 to 4" in quick.combined.reason
    assert (quick.calibration, quick.false_positive_rate) == (None, None)


def test_agreement_without_a_population_is_not_enough(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        monkeypatch,
        scanner_class("first", unconfirmed),
        scanner_class("second", unconfirmed),
    )
    report = run(paths, scanners=("first", "second"))
    assert report.verdict.reason_code == "MA-V508"
    assert report.verdict.verdict is Verdict.INCONCLUSIVE


def test_a_users_population_is_preferred_and_lets_agreement_accuse(
    paths: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        monkeypatch,
        scanner_class("first", unconfirmed),
        scanner_class("second", unconfirmed),
    )
    file = tmp_path / "mine.json"
    file.write_text(dumps_populations([population_of(run(paths, scanners=("first", "second")))]))
    report = run(paths, scanners=("first", "second"), calibrations=(file,))
    assert report.combined is not None
    assert report.combined.match is Match.MATCHED
    assert report.calibration == "mine"
    assert report.verdict.reason_code == "MA-V101"
    assert report.combined.clean_models == 5
    SCHEMA.validate(json.loads(dumps(report)))


def test_a_bad_calibration_file_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text("{}")
    asked = ScanRequest(
        checkpoint=tmp_path / "missing.pt", data=tmp_path / "missing", calibrations=(file,)
    )
    with pytest.raises(ConfigError, match=r"bad\.json.*expected a field 'format'"):
        scan(asked, progress=NoProgress())


def test_own_p_values_are_corrected_by_holm() -> None:
    results = [
        result("a", 1.0, p_value=0.01),
        result("b", 1.0, p_value=0.04),
        result("c", 1.0),
        result("d", 1.0, p_value=0.03),
    ]
    assert adjusted_p_values(results) == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06})
    assert adjusted_p_values([]) == {}


def test_an_uncalibrated_plugin_that_fails_or_starves_leaves_the_verdict(
    quick: ScanReport, paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = scanner_class("bad", raising(ValueError("broken")), is_calibrated=False)
    greedy = scanner_class("greedy", cost=Cost(forward_backward=10**12), is_calibrated=False)
    install(monkeypatch, broken, greedy)
    report = run(paths, scanners=("bad", "greedy", "mbns", "dde"), budget_seconds=1e6)
    assert [(f.id, f.is_calibrated) for f in report.failed] == [("bad", False)]
    assert [(s.id, s.is_calibrated) for s in report.skipped] == [("greedy", False)]
    assert report.verdict == quick.verdict


def test_a_calibrated_plugin_that_starves_is_missed(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("greedy", cost=Cost(forward_backward=10**12)))
    report = run(paths, scanners=("greedy", "mbns", "dde"), budget_seconds=1e6)
    assert report.verdict.verdict is not Verdict.CLEAN
    assert "greedy did not run" in report.verdict.reason


def test_a_failing_plugin_is_shown_beside_the_findings(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("bad", raising(ValueError("broken"))))
    report = run(paths, scanners=("bad", "mbns", "dde"))
    assert report.failed == (FailedScan(id="bad", error="ValueError: broken"),)
    assert [r.id for r in report.scanners] == ["mbns", "dde"]
    SCHEMA.validate(json.loads(dumps(report)))


def test_an_interrupt_in_a_scanner_leaves_the_scan(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("bad", raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(paths, scanners=("bad",))


def test_few_images_are_inconclusive_with_the_reason(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    few = write_data(tmp_path / "few", 8)
    report = run((paths[0], few), scanners=("mbns", "dde"))
    assert (report.verdict.verdict, report.exit_status) == (Verdict.INCONCLUSIVE, 5)
    assert report.verdict.reason_code == "MA-V501"
    assert "a verdict needs at least 100 clean images, got 32" in report.verdict.reason
    SCHEMA.validate(json.loads(dumps(report)))


def test_labels_that_do_not_fit_are_inconclusive_and_no_scanner_runs(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    turned = write_folders(
        tmp_path / "turned", ("1", "2", "3", "0"), per_folder=PER_FOLDER, size=SIDE
    )
    report = run((paths[0], turned), scanners=("mbns", "dde"))
    assert (report.verdict.verdict, report.exit_status) == (Verdict.INCONCLUSIVE, 5)
    assert "preprocessing or labels do not fit" in report.verdict.reason
    assert report.scanners == ()
    assert [s.id for s in report.skipped] == ["mbns", "dde"]
    assert not any(s.is_declared_need for s in report.skipped)
    assert report.cost.forward == 0
    assert "profile" not in report.stage_seconds
    SCHEMA.validate(json.loads(dumps(report)))


def test_a_budget_too_small_for_a_scanner_is_a_skip_with_the_reason(
    paths: tuple[Path, Path],
) -> None:
    report = run(paths, scanners=("mbns",), budget_seconds=1e-6)
    (skip,) = report.skipped
    assert isinstance(skip, SkippedScan)
    assert "raise --budget" in skip.reason
    assert report.verdict.verdict is Verdict.INCONCLUSIVE


def test_an_unknown_scanner_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    asked = ScanRequest(
        checkpoint=tmp_path / "missing.pt", data=tmp_path / "missing", scanners=("bann",)
    )
    with pytest.raises(ConfigError, match="unknown scanner 'bann'"):
        scan(asked, progress=NoProgress())


def test_progress_is_reported_by_stage(paths: tuple[Path, Path]) -> None:
    from contextlib import contextmanager

    done: dict[str, list[int]] = {}

    class Recorder:
        @contextmanager
        def task(self, name: str, total: int) -> Generator[Task]:
            done[name] = [total, 0]

            class Counter:
                def advance(self, amount: int = 1) -> None:
                    done[name][1] += amount

            yield Counter()

    scan(request(paths, scanners=("mbns",)), progress=Recorder())
    n = len(FOLDERS) * PER_FOLDER
    assert done["profile"] == [n, n]


def test_unsure_unlabelled_images_leave_the_search_set_and_labelled_ones_stay() -> None:
    images = torch.zeros(4, 3, 2, 2)
    clean = CleanImages(
        images=images,
        labels=torch.zeros(4, dtype=torch.int64),
        has_labels=False,
        search=torch.tensor([0, 1, 2]),
        judge=torch.tensor([3]),
        predictions=torch.zeros(4, dtype=torch.int64),
        as_trained=images,
    )
    sure, unsure = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
    logits = torch.tensor([sure, unsure, sure, unsure])
    assert confident(clean, logits).search.tolist() == [0, 2]
    assert confident(clean, torch.tensor([unsure] * 4)).search.tolist() == [0, 1, 2]
    labelled = replace(clean, has_labels=True)
    assert confident(labelled, logits) is labelled
