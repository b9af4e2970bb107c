from __future__ import annotations

import pytest

from modelaudit.text import escape_untrusted, points_text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("a\nb\r\t\0", "a\\nb\\r\\t\\x00"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("abc\u202egnp", "abc\\u202egnp"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("line\u2028", "line\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("back\\slash", "back\\\\slash"),
        ("größe 画像", "größe 画像"),
        ("", ""),
    ],
)
def test_text_is_escaped_to_one_printable_line(raw: str, shown: str) -> None:
    assert escape_untrusted(raw) == shown
    assert escape_untrusted(raw).isprintable()


def test_long_text_is_cut_to_the_limit_and_says_so() -> None:
    assert escape_untrusted("x" * 10, 10) == "x" * 10
    assert escape_untrusted("x" * 11, 10) == "x" * 9 + "…"
    assert len(escape_untrusted("\0" * 10**6, 200)) <= 200


def test_an_escape_is_never_cut_in_half() -> None:
    assert escape_untrusted("abcd\x00tail", 7) == "abcd…"
    assert escape_untrusted("\0\0", 1) == "…"


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(0.02, "2.0"), (-0.0201, "-2.0"), (0.0, "0.0"), (-0.0004, "0.0"), (1.0, "100.0")],
)
def test_points_have_one_decimal_and_zero_no_sign(fraction: float, shown: str) -> None:
    assert points_text(fraction) == shown
