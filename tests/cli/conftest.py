from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import modelaudit
from tests.helpers.reports import FakeEngine, clean

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine(clean())
    monkeypatch.setitem(sys.modules, "modelaudit.engine", fake)
    monkeypatch.setattr(modelaudit, "engine", fake, raising=False)
    return fake


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Arguments of a scan whose files exist."""
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights")
    data = tmp_path / "clean"
    data.mkdir()
    return ["scan", str(checkpoint), "--data", str(data), "--device", "cpu"]
