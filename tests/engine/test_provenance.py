"""What a repaired file says of itself warns a reader; it clears and accuses nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelaudit.checkpoint import RepairClaim
from modelaudit.checkpoint.write import encode_safetensors
from modelaudit.engine import ScanRequest
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.provenance import repair_notes, repair_obstacles
from modelaudit.progress import NoProgress
from tests.helpers.engine import HALF, SIDE, trained, write_data

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = RepairClaim(
    method="unlearn_triggers",
    input_sha256="0123456789abcdef" * 4,
    verdict="inconclusive",
    reason_code="MA-V512",
)
SAID = (
    "the file says that modelaudit repaired it by unlearn_triggers from a file of SHA-256 "
    "0123456789ab..., with a re-scan that was inconclusive (MA-V512)"
)


def test_a_file_without_a_claim_has_neither_note_nor_obstacle() -> None:
    assert (repair_notes(None), repair_obstacles(None)) == ((), ())


def test_a_claim_is_a_note_and_an_obstacle_to_clean() -> None:
    (note,) = repair_notes(CLAIM)
    (obstacle,) = repair_obstacles(CLAIM)
    assert note.startswith(f"{SAID}; ")
    assert obstacle.reason.startswith(f"{SAID}: ")
    assert obstacle.reason_code == "MA-V513"


def test_a_clean_re_scan_is_no_obstacle() -> None:
    claim = RepairClaim(method="prune_mbns", verdict="clean", reason_code="MA-V002")
    assert repair_obstacles(claim) == ()
    assert "with a re-scan that was clean (MA-V002)" in repair_notes(claim)[0]


@pytest.mark.parametrize("verdict", ["", "CLEAN", "clean "])
def test_a_claim_that_does_not_say_clean_is_an_obstacle(verdict: str) -> None:
    (obstacle,) = repair_obstacles(RepairClaim(method="m", verdict=verdict))
    assert ("does not say how" in obstacle.reason) is (verdict == "")


def test_a_strangers_text_is_escaped_and_cut() -> None:
    claim = RepairClaim(method="\x1b[31m" + "m" * 150, input_sha256="\n" * 60, verdict="\u202e")
    (note,) = repair_notes(claim)
    assert note.isprintable()
    assert "m" * 61 not in note


@pytest.mark.parametrize("verdict", ["clean", "inconclusive", "backdoored"])
def test_a_scan_of_a_repaired_file_says_so(tmp_path: Path, verdict: str) -> None:
    record = {"method": "cut", "rescan": {"verdict": verdict, "reason_code": "MA-V001"}}
    path = tmp_path / "repaired.safetensors"
    path.write_bytes(encode_safetensors(trained(8).state_dict(), record=record))
    request = ScanRequest(
        checkpoint=path,
        data=write_data(tmp_path / "clean", 8),
        preprocessing=HALF,
        input_size=SIDE,
    )
    opened = open_suspect(request, progress=NoProgress(), stopwatch=Stopwatch())
    assert opened.notes[-1].startswith("the file says that modelaudit repaired it by cut, ")
    codes = [obstacle.reason_code for obstacle in opened.obstacles_to_clean]
    assert codes == ([] if verdict == "clean" else ["MA-V513"])
