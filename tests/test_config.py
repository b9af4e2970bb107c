from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import pytest

from modelaudit.config import fields, replace_from_text, require_range
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]  # resolves nowhere on purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One field of each kind."""

    steps: int = 3
    epsilon: float = 0.5
    limit: int | None = None
    share: float | None = 0.1
    is_fast: bool = False
    layers: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    label: str = "x"

    def __post_init__(self) -> None:
        require_range(self, "steps", low=1, high=10)
        require_range(self, "epsilon", low=0, is_low_open=True)
        require_range(self, "limit", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque:
    """Its annotation cannot be resolved at run time."""

    thing: Unknown = None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "7", 7),
        ("epsilon", "0.25", 0.25),
        ("epsilon", "1e-3", 1e-3),
        ("epsilon", "2", 2.0),
        ("limit", "5", 5),
        ("limit", "none", None),
        ("limit", "NULL", None),
        ("share", "0.3", 0.3),
        ("is_fast", "true", True),
        ("is_fast", "Yes", True),
        ("is_fast", "1", True),
        ("is_fast", "on", True),
        ("is_fast", "false", False),
        ("is_fast", "no", False),
        ("is_fast", "0", False),
        ("is_fast", "OFF", False),
        ("layers", "3, 4,5", (3, 4, 5)),
        ("layers", "3,", (3,)),
        ("layers", "", ()),
        ("names", "a, b", ("a", "b")),
        ("label", "none", "none"),
    ],
)
def test_text_becomes_the_fields_type(name: str, text: str, value: object) -> None:
    config = replace_from_text(Config(), {name: text}, owner="ban")
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps", "many", "ban.steps must be a whole number, got 'many'"),
        ("steps", "1.5", "ban.steps must be a whole number, got '1.5'"),
        ("steps", "none", "ban.steps must be a whole number, got 'none'"),
        ("epsilon", "half", "ban.epsilon must be a number, got 'half'"),
        ("limit", "some", "ban.limit must be a whole number, got 'some'"),
        ("is_fast", "maybe", "ban.is_fast must be true or false, got 'maybe'"),
        ("layers", "1,two", "ban.layers must be a whole number, got 'two'"),
    ],
)
def test_text_that_is_no_value_is_refused_by_name(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace_from_text(Config(), {name: text}, owner="ban")
    assert str(caught.value) == message


def test_an_unknown_field_is_refused_with_the_known_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        replace_from_text(Config(), {"stepz": "3"}, owner="ban")
    assert str(caught.value) == (
        "'ban' has no setting 'stepz', it has steps, epsilon, limit, share, is_fast, layers, "
        "names, label; did you mean 'steps'?"
    )


def test_an_unknown_field_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"label$"):
        replace_from_text(Config(), {"qqqq": "3"}, owner="ban")


def test_a_configuration_without_fields_says_so() -> None:
    @dataclass(frozen=True)
    class Empty:
        """Nothing to set."""

    with pytest.raises(ConfigError, match="has no setting 'x', it has none"):
        replace_from_text(Empty(), {"x": "1"}, owner="dde")


def test_fields_that_are_not_set_stay_and_the_original_too() -> None:
    config = Config(steps=4)
    changed = replace_from_text(config, {"epsilon": "0.1"}, owner="ban")
    assert changed == Config(steps=4, epsilon=0.1)
    assert config == Config(steps=4)


def test_annotations_matter_only_where_something_is_set() -> None:
    config = Opaque()
    assert replace_from_text(config, {}, owner="x") is config


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("steps", "0", r"Config.steps must be in \[1, 10\], got 0"),
        ("steps", "11", r"Config.steps must be in \[1, 10\], got 11"),
        ("epsilon", "0", r"Config.epsilon must be in \(0, inf\), got 0.0"),
        ("epsilon", "nan", r"Config.epsilon must be in \(0, inf\), got nan"),
        ("epsilon", "inf", r"Config.epsilon must be in \(0, inf\), got inf"),
        ("limit", "-1", r"Config.limit must be in \[0, inf\), got -1"),
    ],
)
def test_values_out_of_range_are_refused_with_field_value_and_range(
    name: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace_from_text(Config(), {name: text}, owner="ban")


@pytest.mark.parametrize("steps", [1, 10])
def test_closed_ends_belong_to_the_range(steps: int) -> None:
    assert Config(steps=steps).steps == steps


@dataclass(frozen=True)
class Bounded:
    """A value without limits of its own."""

    value: float | None


def test_a_missing_end_is_no_limit_but_infinity_is_no_number() -> None:
    require_range(Bounded(-1e300), "value", high=1)
    require_range(Bounded(10**400), "value", low=0)
    require_range(Bounded(None), "value", low=0, high=1)
    with pytest.raises(ConfigError, match=r"Bounded.value must be in \(-inf, 1\], got -inf"):
        require_range(Bounded(float("-inf")), "value", high=1)
    with pytest.raises(ConfigError, match=r"must be in \(-inf, 1\], got 2"):
        require_range(Bounded(2), "value", high=1)


def test_fields_are_plain_json_values_in_their_order() -> None:
    found = fields(Config())
    assert list(found)[:2] == ["steps", "epsilon"]
    assert found["layers"] == [1, 2]
    assert found["limit"] is None


def _configurations() -> list[tuple[str, object]]:
    found = []
    for entry, cls in Registry("scanners").load_all():
        for variant, kind in {"": cls, **cls.variants}.items():  # type: ignore[attr-defined]  # a scanner
            found.append((f"{entry.id}@{variant}".removesuffix("@"), kind.config_type()))
    return found


@pytest.mark.parametrize(
    ("owner", "config"), _configurations(), ids=[name for name, _ in _configurations()]
)
def test_every_scanners_defaults_survive_being_written_and_read(owner: str, config: object) -> None:
    defaults = fields(config)
    text = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in defaults.items()
    }
    assert fields(replace_from_text(config, text, owner=owner)) == defaults
    # An enumeration would be read as its text and compare by identity as something else.
    assert not any(isinstance(value, Enum) for value in defaults.values())
