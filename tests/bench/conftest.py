from __future__ import annotations

import pytest

from modelaudit.engine import witness


@pytest.fixture(autouse=True)
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search stand-ins for a moment only; tests of what they show set what they need."""
    monkeypatch.setattr(witness, "STARTS", 1)
    monkeypatch.setattr(witness, "STEPS", 2)
    monkeypatch.setattr(witness, "BATCH", 8)
