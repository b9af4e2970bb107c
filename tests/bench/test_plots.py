from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.bench.plots import draw
from modelaudit.bench.tables import Report, build, read_rows
from modelaudit.errors import ConfigError
from tests.helpers.bench_rows import facts, found, result, scan_rows, skipped, write

if TYPE_CHECKING:
    from pathlib import Path


def report(tmp_path: Path) -> Report:
    rows: list[dict[str, Any]] = []
    for i in range(3):
        rows += scan_rows(facts(f"clean_{i}"), [result("mbns", 2.0 + i)])
        rows += scan_rows(
            facts(f"bad_{i}", attack="badnets", target=1), [result("mbns", 90.0 + i, "strong")]
        )
    rows += scan_rows(facts("blend", attack="blend", target=2), [skipped("mbns")])
    return build(*read_rows([write(tmp_path / "rows", rows)]))


def test_every_block_is_drawn_in_both_forms_and_always_the_same(tmp_path: Path) -> None:
    mpl = pytest.importorskip("matplotlib")
    tables = report(tmp_path)
    settings = dict(mpl.rcParams)
    first = draw(tables.blocks, tables.detectors)

    assert dict(mpl.rcParams) == settings
    assert sorted(first) == ["roc_B.png", "roc_B.svg", "scores_B.png", "scores_B.svg"]
    assert first["scores_B.png"].startswith(b"\x89PNG")
    assert b"<svg" in first["roc_B.svg"]
    assert draw(tables.blocks, tables.detectors) == first


def test_a_block_without_clean_models_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = scan_rows(facts("bad", attack="badnets", target=1), found(1))
    tables = build(*read_rows([write(tmp_path / "rows", rows)]))

    assert draw(tables.blocks, tables.detectors) == {}


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ConfigError, match=r"pip install '\.\[report\]'"):
        draw((), ())
