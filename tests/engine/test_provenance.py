"""What a repaired file says of itself warns a reader; it accuses and clears nobody."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import RepairClaim, read_checkpoint
from modelaudit.checkpoint.write import encode_safetensors
from modelaudit.engine import ScanRequest
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.provenance import (
    of_the_model,
    other_weights_notes,
    other_weights_obstacles,
    record_of,
    repair_notes,
    repair_obstacles,
)
from modelaudit.engine.scan import scan
from modelaudit.progress import NoProgress
from modelaudit.repair_results import RepairAttempt
from modelaudit.results import Obstacle, Verdict, VerdictRecord
from tests.helpers.engine import (
    HALF,
    SIDE,
    install,
    loud,
    nothing,
    scanner_class,
    trained,
    write_data,
)
from tests.helpers.repair_reports import repaired

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = RepairClaim(
    method="unlearn_triggers",
    input_sha256="0123456789abcdef" * 4,
    verdict=Verdict.INCONCLUSIVE,
    reason_code="MA-V512",
    trained_against=("mbns",),
)
SAID = (
    "the file says that modelaudit repaired it by 'unlearn_triggers', from a file of SHA-256 "
    "0123456789ab..., with a re-scan that was inconclusive (MA-V512)"
)


def test_a_file_without_a_claim_has_neither_note_nor_obstacle() -> None:
    assert (repair_notes(None), repair_obstacles(None)) == ((), ())


def test_a_claim_is_a_note_and_an_obstacle_to_clean() -> None:
    (note,) = repair_notes(CLAIM)
    (obstacle,) = repair_obstacles(CLAIM)
    assert note.startswith(f"{SAID}. Anybody can write that: what is found here counts, ")
    assert note.endswith("trained against what mbns looks for, whose silence shows little")
    assert obstacle.reason.startswith(f"{SAID}: ")
    assert obstacle.reason_code == "MA-V513"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict.CLEAN, "with a re-scan that was clean (MA-V512). "),
        (None, "and does not say how the re-scan ended. "),
    ],
)
def test_a_re_scan_that_was_not_unclean_is_no_obstacle(verdict: Verdict | None, said: str) -> None:
    claim = replace(CLAIM, verdict=verdict, trained_against=())
    assert repair_obstacles(claim) == ()
    (note,) = repair_notes(claim)
    assert said in note
    assert "trained against" not in note


def test_a_model_made_from_the_file_has_its_own_obstacles_alone() -> None:
    own = Obstacle(reason_code="MA-V507", reason="preprocessing is open", next_step="give it")
    assert of_the_model((own, *repair_obstacles(CLAIM))) == (own,)


def test_the_record_names_every_repair_its_re_scan_and_the_one_before() -> None:
    verdict = VerdictRecord(verdict=Verdict.CLEAN, reason_code="MA-V002", reason="")
    first = RepairAttempt(id="part", version="1", seed=3, config={"layers": (1, 2)})
    last = RepairAttempt(
        id="tune",
        version="2",
        goes_on_from=("part",),
        pruned=(("conv", (4, 5)),),
        trained_against=("mbns", "watch"),
        verdict=verdict,
    )
    record = record_of(repaired(), (first, last), CLAIM)
    assert record["method"] == "part, then tune"
    assert record["trained_against"] == ["mbns", "watch"]
    assert record["rescan"] == {"verdict": "clean", "reason_code": "MA-V002"}
    assert record["pruned_neurons"] == 2
    assert record["steps"] == [
        {"method": "part", "version": "1", "config": {"layers": [1, 2]}, "seed": 3}
        | {"pruned_neurons": 0},
        {"method": "tune", "version": "2", "config": {}, "seed": 0, "pruned_neurons": 2},
    ]
    assert record["earlier"] == {
        "method": "unlearn_triggers",
        "input_sha256": CLAIM.input_sha256,
        "rescan": {"verdict": "inconclusive", "reason_code": "MA-V512"},
        "trained_against": ["mbns"],
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    verdict = VerdictRecord(verdict=Verdict.BACKDOORED, reason_code="MA-V104", reason="")
    ids = ("part", "my-repair@other-form", *(f"tune{i}" for i in range(6)))
    last = RepairAttempt(id="last", goes_on_from=ids, trained_against=("mbns",), verdict=verdict)
    path = tmp_path / "repaired.safetensors"
    record = record_of(repaired(), (last,), CLAIM)
    path.write_bytes(encode_safetensors({"weight": torch.ones(3)}, record=record))
    assert read_checkpoint(path).repair == RepairClaim(
        method=", then ".join((*ids, "last")),
        input_sha256=repaired().suspect.sha256,
        verdict=Verdict.BACKDOORED,
        reason_code="MA-V104",
        trained_against=("mbns",),
    )


def test_a_record_without_a_re_scan_says_null() -> None:
    before = replace(CLAIM, verdict=None, reason_code="")
    record = record_of(repaired(), (RepairAttempt(id="part"),), before)
    assert record["rescan"] is None
    assert isinstance(record["earlier"], dict)
    assert record["earlier"]["rescan"] is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "clean", 25)


def request_of(tmp_path: Path, data: Path, verdict: str) -> ScanRequest:
    record = {
        "method": "cut",
        "input_sha256": CLAIM.input_sha256,
        "rescan": {"verdict": verdict, "reason_code": "MA-V512"},
    }
    path = tmp_path / "repaired.safetensors"
    path.write_bytes(encode_safetensors(trained(25).state_dict(), record=record))
    return ScanRequest(checkpoint=path, data=data, preprocessing=HALF, input_size=SIDE)


@pytest.mark.parametrize("verdict", ["clean", "inconclusive", "backdoored"])
def test_an_opened_file_has_its_claims_note_and_obstacle(
    tmp_path: Path, data: Path, verdict: str
) -> None:
    request = request_of(tmp_path, data, verdict)
    opened = open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())
    assert opened.notes[-1].startswith("the file says that modelaudit repaired it by 'cut', ")
    codes = [obstacle.reason_code for obstacle in opened.obstacles_to_clean]
    assert codes == ([] if verdict == "clean" else ["MA-V513"])


def test_a_scan_does_not_clear_what_the_repair_could_not(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("watch"), scanner_class("shout", loud))
    ends = {}
    for verdict in ("clean", "inconclusive"):
        request = request_of(tmp_path, data, verdict)
        ends[verdict] = scan(replace(request, scanners=("watch",)), progress=NoProgress())
        accused = scan(replace(request, scanners=("shout",)), progress=NoProgress())
        assert accused.verdict.verdict is Verdict.BACKDOORED
    assert ends["clean"].verdict.verdict is Verdict.CLEAN
    assert any("modelaudit repaired it by 'cut'" in note for note in ends["clean"].notes)
    withheld = ends["inconclusive"].verdict
    assert (withheld.verdict, withheld.reason_code) == (Verdict.INCONCLUSIVE, "MA-V513")
    assert withheld.next_step.startswith("read the repair's report")


def average_of(tmp_path: Path, data: Path, *, weights: str | None) -> ScanRequest:
    """Return a scan of a file with a running average beside the weights, which knows nothing."""
    path = tmp_path / "averaged.pt"
    net = trained(30)
    average = {name: torch.zeros_like(tensor) for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": net.state_dict(), "state_dict_ema": average}, path)
    return ScanRequest(
        checkpoint=path,
        data=data,
        weights=weights,
        scanners=("quiet",),
        preprocessing=HALF,
        input_size=SIDE,
    )


def test_weights_that_were_not_scanned_keep_a_file_from_clean_until_one_is_chosen(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("quiet", nothing))
    found = scan(average_of(tmp_path, data, weights=None), progress=NoProgress())
    verdict = found.verdict
    assert (verdict.verdict, verdict.reason_code) == (Verdict.INCONCLUSIVE, "MA-V514")
    assert verdict.reason == (
        "beside the weights that were scanned (state_dict) the file holds others "
        "(state_dict_ema), and what loads the file may take these"
    )
    assert verdict.next_step == "say with --weights which of them you load"
    chosen = scan(average_of(tmp_path, data, weights="state_dict"), progress=NoProgress())
    assert chosen.verdict.verdict is Verdict.CLEAN
    assert any("state_dict_ema); scan these too" in note for note in chosen.notes)
    # What was chosen is what is scanned: this one knows no picture.
    other = scan(average_of(tmp_path, data, weights="state_dict_ema"), progress=NoProgress())
    assert other.verdict.reason_code == "MA-V501"


def test_other_weights_are_none_of_a_model_made_from_the_file(tmp_path: Path, data: Path) -> None:
    request = average_of(tmp_path, data, weights=None)
    read = read_checkpoint(request.checkpoint)
    (obstacle,) = other_weights_obstacles(read, is_chosen=False)
    assert of_the_model((obstacle,)) == ()
    assert other_weights_notes(read, is_chosen=False) == ()
    assert other_weights_obstacles(read, is_chosen=True) == ()
    many = replace(read, other_weights=tuple(f"epoch{i}" for i in range(9)), state_dict_key=None)
    (note,) = other_weights_notes(many, is_chosen=True)
    assert "(its outermost container)" in note
    assert "(epoch0, epoch1, epoch2, epoch3 and 5 more)" in note
