"""Tables of what `bench scan` and `bench repair` measured, as Markdown and CSV."""

from __future__ import annotations

from modelaudit.bench.tables.build import Report, build
from modelaudit.bench.tables.read import read_rows
from modelaudit.bench.tables.rows import RepairRow, ScanRow
from modelaudit.bench.tables.table import Table

__all__ = ["RepairRow", "Report", "ScanRow", "Table", "build", "read_rows"]
