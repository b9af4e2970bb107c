from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from modelaudit.engine import ScanRequest
from modelaudit.errors import ConfigError


def request(**options: Any) -> ScanRequest:
    return ScanRequest(checkpoint=Path("m.pt"), data=Path("clean"), **options)


def test_the_defaults_are_those_of_the_command_line() -> None:
    asked = request()
    assert (asked.max_images, asked.budget_seconds, asked.seed, asked.alpha) == (
        500,
        120.0,
        0,
        0.05,
    )
    assert asked.scanners == ()
    assert asked.device == "cpu"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_images", 0),
        ("input_size", 0),
        ("budget_seconds", 0.0),
        ("budget_seconds", -1.0),
        ("budget_seconds", float("nan")),
        ("alpha", 0.0),
        ("alpha", 1.5),
    ],
)
def test_options_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"ScanRequest.{field} must be in"):
        request(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("budget_seconds", None), ("input_size", None), ("max_images", 1), ("alpha", 1.0)],
)
def test_options_at_the_edge_are_taken(field: str, value: float | None) -> None:
    assert getattr(request(**{field: value}), field) == value


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        request().seed = 1  # type: ignore[misc]  # on purpose
