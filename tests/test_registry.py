from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import pytest

from modelaudit.errors import ConfigError, PluginError
from modelaudit.registry import GROUPS, Registry

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group="modelaudit.scanners")


FRACTION = point("fraction", "fractions:Fraction")
DECIMAL = point("decimal", "decimal:Decimal")
BROKEN = point("broken", "modelaudit_missing_plugin:Scanner")
FUNCTION = point("function", "math:sqrt")


def test_ids_are_sorted_whatever_the_order_of_installation() -> None:
    assert Registry("scanners", [FRACTION, DECIMAL]).ids() == ("decimal", "fraction")
    assert Registry("scanners", [DECIMAL, FRACTION]).ids() == ("decimal", "fraction")


def test_a_class_is_imported_by_its_entry_point() -> None:
    from fractions import Fraction

    assert Registry("scanners", [FRACTION]).load("fraction") is Fraction


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    registry = Registry("scanners", [BROKEN])
    assert registry.ids() == ("broken",)
    assert registry.entry("broken").id == "broken"


def test_a_plugin_that_cannot_be_imported_is_an_error_when_asked_for_by_name() -> None:
    with pytest.raises(PluginError) as caught:
        Registry("scanners", [BROKEN]).load("broken")
    assert str(caught.value).startswith(
        "'broken' of 'unknown' cannot be imported: ModuleNotFoundError: "
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_entry_point_that_is_no_class_is_an_error() -> None:
    with pytest.raises(PluginError, match="'function' of 'unknown' is not a class"):
        Registry("scanners", [FUNCTION]).load("function")


def test_loading_all_warns_about_what_cannot_be_used_and_keeps_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = Registry("scanners", [BROKEN, FRACTION, FUNCTION]).load_all()
    assert [entry.id for entry, _ in found] == ["fraction"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "plug-in left out: 'broken'" in caplog.messages[0]
    assert "plug-in left out: 'function'" in caplog.messages[1]


def test_an_unknown_id_is_refused_with_the_known_and_the_nearest() -> None:
    registry = Registry("scanners", [DECIMAL, FRACTION])
    with pytest.raises(ConfigError) as caught:
        registry.entry("decimel")
    assert str(caught.value) == (
        "unknown scanner 'decimel', registered are decimal, fraction; did you mean 'decimal'?"
    )


def test_an_unknown_id_in_an_empty_group_says_none() -> None:
    with pytest.raises(ConfigError, match=r"unknown repair 'x', registered are none$"):
        Registry("repairs", []).entry("x")


def distribution(root: Path, name: str, value: str) -> Iterable[EntryPoint]:
    folder = root / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[modelaudit.scanners]\nmine = {value}\n")
    from importlib.metadata import PathDistribution

    return PathDistribution(folder).entry_points


def test_two_distributions_with_one_id_are_an_error_that_names_both(tmp_path: Path) -> None:
    points = [
        *distribution(tmp_path, "alpha", "fractions:Fraction"),
        *distribution(tmp_path, "beta", "decimal:Decimal"),
    ]
    with pytest.raises(PluginError) as caught:
        Registry("scanners", points)
    assert str(caught.value) == (
        "two distributions register scanner 'mine': 'beta' and 'alpha'; uninstall one of them"
    )


def test_one_class_that_is_found_twice_is_one_entry(tmp_path: Path) -> None:
    points = [*distribution(tmp_path, "alpha", "fractions:Fraction")] * 2
    registry = Registry("scanners", points)
    assert registry.ids() == ("mine",)
    assert registry.entry("mine").distribution == "alpha"


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_installed_is_registered_and_can_be_imported(group: str) -> None:
    registry = Registry(group)
    installed = {p.name for p in entry_points(group=f"modelaudit.{group}")}
    assert set(registry.ids()) == installed
    assert [entry.id for entry, _ in registry.load_all()] == list(registry.ids())


def test_the_built_ins_register_as_a_third_party_does() -> None:
    assert {"ban", "mbns", "dde", "mm_bd"} <= set(Registry("scanners").ids())
    assert Registry("scanners").entry("ban").distribution == "modelaudit"
