from __future__ import annotations

import pytest

from modelaudit.report.symbols import Symbols


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bars_have_the_width_that_was_asked_for(encoding: str) -> None:
    symbols = Symbols.for_encoding(encoding)
    assert {len(symbols.bar(f / 100, 20)) for f in range(-5, 110)} == {20}


def test_an_empty_bar_means_zero() -> None:
    symbols = Symbols.for_encoding("utf-8")
    assert symbols.bar(0.0, 10).strip() == ""
    assert symbols.bar(1e-6, 10).strip() == "▏"
    assert Symbols.for_encoding("ascii").bar(1e-6, 10).strip() == "#"


def test_bars_grow_with_the_fraction() -> None:
    symbols = Symbols.for_encoding("utf-8")
    assert symbols.bar(0.5, 4) == "██  "
    assert symbols.bar(7.0, 4) == "████"


def test_ascii_streams_get_ascii() -> None:
    symbols = Symbols.for_encoding("ascii")
    assert symbols.arrow == ">"
    assert symbols.bar(0.5, 4) == "##  "
    assert Symbols.for_encoding("utf-8").arrow == "▸"
