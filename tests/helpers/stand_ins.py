"""Watch the searches of stand-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelaudit.repairs import place_search

if TYPE_CHECKING:
    import pytest


def watched_sides(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return the list that every comparison with traces adds `is_opposite` to."""
    sides: list[bool] = []

    class Watched(place_search.TraceMatch):
        def __init__(self, *given: Any, is_opposite: bool, **more: Any) -> None:
            sides.append(is_opposite)
            super().__init__(*given, is_opposite=is_opposite, **more)

    monkeypatch.setattr(place_search, "TraceMatch", Watched)
    return sides
