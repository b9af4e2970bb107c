from __future__ import annotations

import dataclasses
import math

from modelaudit.report.terminal import render
from modelaudit.results import Finding
from tests.helpers.reports import backdoored, clean, scanner_result


def bars(text: str) -> list[str]:
    """Return the lines of the evidence table without its heading."""
    lines = text.splitlines()
    start = lines.index("Evidence per class") + 2
    return lines[start : start + lines[start:].index("")]


def test_the_target_is_marked_and_has_the_longest_bar() -> None:
    rows = bars(render(backdoored()))[:10]
    lengths = [row.count("█") for row in rows]
    assert lengths.index(max(lengths)) == 3
    assert [i for i, row in enumerate(rows) if "▸" in row] == [3]
    assert "3 cat" in rows[3]
    assert "0.93" in rows[3]


def test_without_values_per_class_there_is_no_table() -> None:
    assert "Evidence" not in render(clean(scanners=(scanner_result(),)))


def test_many_classes_keep_targets_and_the_most_evidence_in_order() -> None:
    shares = [0.001 * k for k in range(200)]
    result = scanner_result("ban", finding=Finding.STRONG, targets=(3,), per_class=shares)
    rows = bars(render(backdoored(scanners=(result,))))
    shown = [int(row.replace("▸", " ").split()[0]) for row in rows[:16]]
    assert shown == [3, *range(185, 200)]
    assert rows[16].strip() == "184 classes with less evidence left out"


def test_scanners_with_fewer_classes_leave_cells_empty() -> None:
    short = scanner_result("ban", per_class=(0.1, 0.2))
    long = scanner_result("mbns", per_class=(0.1, 0.2, 0.3))
    rows = bars(render(clean(scanners=(short, long))))
    assert " - " in rows[2]
    assert "0.3" in rows[2]


def test_values_that_are_not_finite_have_no_bar() -> None:
    result = scanner_result("ban", per_class=(math.nan, math.inf, 0.5))
    rows = bars(render(clean(scanners=(result,))))
    assert "█" not in rows[0]
    assert "█" not in rows[1]
    assert "█" in rows[2]


def test_all_zero_evidence_draws_no_bar() -> None:
    result = scanner_result("ban", per_class=(0.0, 0.0))
    assert not any("█" in row for row in bars(render(clean(scanners=(result,)))))


def test_negative_values_start_at_the_least() -> None:
    result = scanner_result("ban", per_class=(-2.0, -1.0))
    rows = bars(render(clean(scanners=(result,))))
    assert "█" not in rows[0]
    assert "█" in rows[1]


def test_a_threshold_in_the_same_unit_keeps_small_evidence_small() -> None:
    low = dataclasses.replace(
        scanner_result("ban", per_class=(0.1, 0.05)), score=0.1, threshold=1.0
    )
    other_unit = dataclasses.replace(low, score=7.0)
    long = bars(render(clean(scanners=(other_unit,))))[0].count("█")
    short = bars(render(clean(scanners=(low,))))[0].count("█")
    assert 0 < short < long / 5


def test_long_class_names_are_cut() -> None:
    report = clean()
    names = ("a very long class name indeed", *report.clean_set.class_names[1:])
    record = dataclasses.replace(report.clean_set, class_names=names)
    rows = bars(render(dataclasses.replace(report, clean_set=record)))
    assert "a very long~" in rows[0]


def test_column_units_stand_below_the_table_where_there_are_any() -> None:
    named = scanner_result("ban", per_class=(0.1, 0.2))
    unnamed = dataclasses.replace(named, id="mbns", per_class_name="")
    rows = bars(render(clean(scanners=(named, unnamed))))
    assert rows[2:] == [" ban: share of off-class predictions"]


def test_large_and_tiny_numbers_fit_beside_the_bars_of_four_scanners() -> None:
    values = (-1234567.0, 0.000012345, 12345.6, 0.98765)
    results = tuple(scanner_result(name, per_class=values) for name in ("ban", "mbns", "dde", "x"))
    rows = bars(render(clean(scanners=results)))
    for row, text in zip(rows, ("-1.2e+06", "1.2e-05", "12346", "0.988"), strict=False):
        assert row.count(text) == 4


def test_a_fifth_scanner_with_values_per_class_keeps_its_row_in_the_scanner_table() -> None:
    results = tuple(scanner_result(f"s{k}", per_class=(0.1, 0.2)) for k in range(5))
    text = render(clean(scanners=results))
    assert "s4" not in bars(text)[-1]
    assert "\n s4 " in text
