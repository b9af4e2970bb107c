"""What a file says of its own repair is read in the form that we write, and in no other."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from modelaudit.checkpoint import DEFAULT_LIMITS, RepairClaim, read_checkpoint
from modelaudit.checkpoint._claim import read_claim
from modelaudit.checkpoint._opcodes import Stream
from modelaudit.checkpoint._unpickle import walk
from modelaudit.checkpoint._values import Parsed
from modelaudit.checkpoint.write import RECORD_KEY, encode_like
from modelaudit.results import Verdict
from tests.helpers.checkpoint import net

if TYPE_CHECKING:
    from pathlib import Path

CLAIM = {
    "method": "prune_mbns, then nad@paper_code",
    "input_sha256": "0123456789abcdef" * 4,
    "trained_against": ["mbns"],
    "rescan": {"verdict": "inconclusive", "reason_code": "MA-V512"},
}
READ = RepairClaim(
    method="prune_mbns, then nad@paper_code",
    input_sha256="0123456789abcdef" * 4,
    verdict=Verdict.INCONCLUSIVE,
    reason_code="MA-V512",
    trained_against=("mbns",),
)


@pytest.mark.parametrize(
    "container", ["bare", "nested", "bare, legacy", "nested, legacy", "header"]
)
def test_a_reader_finds_what_the_record_says(tmp_path: Path, container: str) -> None:
    path = tmp_path / "in.bin"
    state = net().state_dict()
    if container == "header":
        save_file(state, path)
    else:
        is_bare = container.startswith("bare")
        document = state if is_bare else {"epoch": 1, "inner": {"state_dict": state}}
        torch.save(document, path, _use_new_zipfile_serialization="legacy" not in container)
    read = read_checkpoint(path)
    assert read.repair is None
    tensors = read.weights.tensors
    rewritten = encode_like(path, tensors, sha256=read.sha256, record=CLAIM)
    out = tmp_path / "out.bin"
    out.write_bytes(rewritten.data)
    assert read_checkpoint(out).repair == READ


def test_a_record_may_be_silent_about_the_re_scan(tmp_path: Path) -> None:
    record = {name: CLAIM[name] for name in ("method", "input_sha256")}
    path = tmp_path / "in.safetensors"
    save_file(net().state_dict(), path, metadata={RECORD_KEY: json.dumps(record)})
    claim = read_checkpoint(path).repair
    assert claim == RepairClaim(method=READ.method, input_sha256=READ.input_sha256)


TEXTS = {
    "empty": "",
    "text": "no JSON",
    "list": "[]",
    "nothing": "{}",
    "nested": "[" * 100_000,
    "long": json.dumps(CLAIM | {"x": "y" * (1 << 20)}),
}
FIELDS: dict[str, dict[str, object]] = {
    "number for a method": {"method": 3},
    "sentence for a method": {"method": "a repair that was certified"},
    "long method": {"method": "m" * 200},
    "sentence for a digest": {"input_sha256": "by Alice"},
    "no digest": {"input_sha256": None},
    "re-scan of another type": {"rescan": ["clean"]},
    "sentence for a verdict": {"rescan": {"verdict": "clean indeed", "reason_code": "MA-V001"}},
    "list for a verdict": {"rescan": {"verdict": ["clean"], "reason_code": "MA-V001"}},
    "status for a verdict": {"rescan": {"verdict": "usage", "reason_code": "MA-V001"}},
    "code of another kind": {"rescan": {"verdict": "clean", "reason_code": "MA-R001"}},
    "sentence for a code": {"rescan": {"verdict": "clean", "reason_code": "safe to deploy"}},
    "text for scanners": {"trained_against": "mbns"},
    "sentence for a scanner": {"trained_against": ["mbns", "and nothing else"]},
    "number for a scanner": {"trained_against": [1]},
    "many scanners": {"trained_against": ["mbns"] * 17},
}


@pytest.mark.parametrize("name", [*TEXTS, *FIELDS])
def test_a_record_that_we_did_not_write_claims_nothing(tmp_path: Path, name: str) -> None:
    text = TEXTS[name] if name in TEXTS else json.dumps(CLAIM | FIELDS[name])
    path = tmp_path / "in.safetensors"
    save_file(net().state_dict(), path, metadata={RECORD_KEY: text})
    assert read_checkpoint(path).repair is None


@pytest.mark.parametrize("name", FIELDS)
def test_nor_does_one_in_a_container(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in.pt"
    torch.save({"state_dict": net().state_dict(), RECORD_KEY: CLAIM | FIELDS[name]}, path)
    assert read_checkpoint(path).repair is None


def test_a_record_of_another_dict_of_the_file_says_nothing_of_the_weights(tmp_path: Path) -> None:
    teacher = OrderedDict(net().state_dict())
    teacher._metadata = OrderedDict({RECORD_KEY: CLAIM})  # type: ignore[attr-defined]
    path = tmp_path / "in.pt"
    torch.save({"state_dict": net().state_dict(), "history": [teacher]}, path)
    assert read_checkpoint(path).repair is None


def test_junk_beside_a_record_does_not_hide_it(tmp_path: Path) -> None:
    state = OrderedDict(net().state_dict())
    state._metadata = OrderedDict({RECORD_KEY: CLAIM})  # type: ignore[attr-defined]
    state[RECORD_KEY] = torch.ones(1)
    path = tmp_path / "in.pt"
    torch.save(state, path)
    assert read_checkpoint(path).repair == READ


def attach(value: dict[str, Any], attributes: object) -> bytes:
    """Pickle a dict that would get `attributes` as its state."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: object) -> Any:
            if obj is value:
                return OrderedDict, (), attributes, None, iter(value.items())
            return NotImplemented

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "attributes", [(1, 2), [3], 7, {"_metadata": 3}, {"_metadata": {RECORD_KEY: [1]}}]
)
def test_what_is_attached_to_a_dict_may_be_anything(attributes: object) -> None:
    stream = Stream(attach(OrderedDict(a=1), attributes))
    walked = walk(stream, 0, name="file", limits=DEFAULT_LIMITS)
    parsed = Parsed(
        format="pickle", value=walked.value, storages={}, attached=tuple(walked.attached)
    )
    ((target, state),) = walked.attached
    assert target is walked.value
    assert state == attributes
    assert read_claim(parsed) is None
