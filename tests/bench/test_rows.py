from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from modelaudit.bench.rows import append_rows, read_keys
from modelaudit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def row(number: int) -> dict[str, object]:
    return {"key": {"scanner": "mbns", "seed": number}, "text": "é" * number}


def test_rows_are_appended_and_their_keys_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    assert read_keys(path) == set()
    assert append_rows(path, [row(1), row(2)]) == 2
    assert append_rows(path, [row(3)]) == 1
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        row(1),
        row(2),
        row(3),
    ]
    assert len(read_keys(path)) == 3


def test_a_key_is_never_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(1)])
    assert append_rows(path, [row(1), row(2), row(2)]) == 1
    assert len(path.read_text("utf-8").splitlines()) == 2


def test_order_of_the_keys_fields_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"key": {"a": 1, "b": 2}}])
    assert append_rows(path, [{"key": {"b": 2, "a": 1}}]) == 0


def test_every_torn_end_is_cut_off_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(1), row(2), row(3)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert len(read_keys(path)) == whole[:length].count(b"\n")
        append_rows(path, [row(1), row(2), row(3)])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{", b"3", b"{}", b"\xff\xfe"])
def test_whole_line_that_is_no_row_raises_and_is_left_alone(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(1)])
    before = path.read_bytes() + line + b"\n"
    path.write_bytes(before)
    with pytest.raises(DataError, match="expected a result in line 2"):
        append_rows(path, [row(2)])
    assert path.read_bytes() == before
