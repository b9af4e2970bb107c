from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.bench.tables import build, read_rows
from modelaudit.errors import ConfigError
from tests.helpers.bench_rows import facts, repair_row, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelaudit.bench.tables import Table


def table(path: Path, rows: Sequence[dict[str, Any]], name: str) -> Table:
    report = build(*read_rows([write(path / "rows", rows)]))
    return next(table for table in report.tables if table.name == name)


def row(id_: str, ra: tuple[float, float] | None = None, **about: Any) -> dict[str, Any]:
    made = facts(id_, target=0, **({"attack": "badnets"} | about))
    rates = {} if ra is None else {"ra_before": ra[0], "ra_after": ra[1]}
    return repair_row(made, "nad", acc=(0.8, 0.8), asr=(0.9, 0.1), **rates)


def test_triggered_images_that_get_their_own_label_again_are_counted(tmp_path: Path) -> None:
    # the third row is older than this rate
    rows = [row("b_1", (0.01, 0.7)), row("b_2", (0.03, 0.6)), row("b_3")]

    records = table(tmp_path, rows, "repair_models").records
    assert [(r["ra_before"], r["ra_after"]) for r in records] == [
        (0.01, 0.7),
        (0.03, 0.6),
        (None, None),
    ]
    found = table(tmp_path, rows, "repair_badnets")
    assert found.rows[0][found.header.index("RA")] == "2.0 % → 65.0 %"
    assert found.records[0]["ra_before_mean"] == pytest.approx(0.02)
    assert found.records[0]["ra_after_mean"] == pytest.approx(0.65)


def test_two_rows_of_one_repair_agree_on_triggered_images_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repair 'b' by 'nad' with different results"):
        table(tmp_path, [row("b", (0.0, 0.5)), row("b", (0.0, 0.6))], "repair_models")


def test_where_papers_print_nothing_of_an_architecture_resnet_18_stands_and_is_named(
    tmp_path: Path,
) -> None:
    rows = [row("b_1"), row("b_2", architecture="cifar_vgg16")]
    own, other = table(tmp_path, rows, "repair_badnets").rows

    assert own[-1] == "93.36/2.43 (DDE22 T1)"
    assert other[-1] == "93.36/2.43 (DDE22 T1, ResNet18)"
    (clean,) = table(tmp_path, [row("c", attack=None)], "repair_clean").rows
    assert clean[-1] == "–"
