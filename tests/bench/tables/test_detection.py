from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from modelaudit.bench.tables import read_rows
from modelaudit.bench.tables.detection import false_alarm_table
from modelaudit.bench.tables.population import blocks, group
from modelaudit.results import CombinedScore, Match
from tests.helpers.bench_rows import facts, nothing, scan_rows, write

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.tables.population import ModelScan


def scanned(path: Path, score: float, match: Match = Match.MATCHED, *, bad: bool) -> ModelScan:
    """Return a scan whose combined score is compared with thresholds of 3 and 6."""
    about = facts("b", attack="badnets", target=1) if bad else facts("b")
    (scan,) = group(read_rows([write(path, scan_rows(about, nothing()))])[0])
    combined = CombinedScore(match=match, score=score, suspicious=3.0, strong=6.0)
    return dataclasses.replace(scan, combined=combined)


def test_the_combined_score_is_shown_at_the_populations_thresholds(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    scans = [scanned(path, score, bad=True) for score in (2.9, 3.0, 6.0, 6.1)]
    scans += [scanned(path, 9.0, Match.BORROWED, bad=True)]
    scans += [scanned(path, score, bad=False) for score in (1.0, 3.5)]
    scans += [scanned(path, 9.0, match, bad=False) for match in (Match.BORROWED, Match.NONE)]
    shown = false_alarm_table(blocks(scans), ["ban"])

    rows = {row[1]: row[2:] for row in shown.rows}
    # 3 of 4: Clopper-Pearson 19.4 to 99.4; what is as high as the strong threshold is not strong.
    assert list(rows) == ["verdict", "ban", "combined, suspicious", "combined, strong"]
    assert rows["combined, suspicious"] == (
        "3/4, 75.0 % (19.4 to 99.4)",
        "1/2, 50.0 % (1.3 to 98.7)",
        "1 not judged",
        "2 not judged",
    )
    assert rows["combined, strong"][0].startswith("1/4")
    assert rows["combined, strong"][1].startswith("0/2")
    assert [r["not_judged_clean"] for r in shown.records] == [0, 0, 2, 2]


@pytest.mark.parametrize("match", [Match.BORROWED, Match.NONE])
def test_without_a_matched_population_there_is_no_combined_row(
    tmp_path: Path, match: Match
) -> None:
    scans = [scanned(tmp_path / "rows", 9.0, match, bad=True)]

    assert [row[1] for row in false_alarm_table(blocks(scans), []).rows] == ["verdict"]
