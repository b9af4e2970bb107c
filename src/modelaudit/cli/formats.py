"""``--format``."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """How a command prints its result."""

    TERMINAL = "terminal"
    JSON = "json"
