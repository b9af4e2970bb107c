from __future__ import annotations

import pytest

from modelaudit.engine import witness


@pytest.fixture(autouse=True)
def _no_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search stand-ins for a moment, and believe none; tests of them set what they need."""
    monkeypatch.setattr(witness, "STARTS", 1)
    monkeypatch.setattr(witness, "STEPS", 2)
    monkeypatch.setattr(witness, "BATCH", 8)
    monkeypatch.setattr(witness, "LEAST_SUCCESS", 1.1)
