from __future__ import annotations

import json
import logging
from types import MappingProxyType
from typing import Any

import pytest

from modelaudit.config import fields
from modelaudit.engine import list_components
from modelaudit.engine.components import build_scanners
from modelaudit.errors import ConfigError, PluginError
from modelaudit.registry import Registry
from modelaudit.scanners import Scanner
from tests.helpers.engine import FakeConfig, install, point, scanner_class

LITERAL = scanner_class("alpha", summary="the literal one")
ALPHA = scanner_class("alpha", variants=MappingProxyType({"paper_code": LITERAL}))
BETA = scanner_class("beta")


def registry(*classes: type) -> Registry:
    return Registry("scanners", [point(cls.__dict__["id"], cls) for cls in classes])


def build(ids: tuple[str, ...], *settings: tuple[str, str, str]) -> list[Scanner[Any]]:
    return build_scanners(ids, settings, registry=registry(ALPHA, BETA))


def test_no_ids_mean_every_registered_scanner_by_default() -> None:
    assert [(s.full_id, type(s)) for s in build(())] == [("alpha", ALPHA), ("beta", BETA)]


def test_ids_are_built_in_the_order_asked_for() -> None:
    assert [s.full_id for s in build(("beta", "alpha"))] == ["beta", "alpha"]


def test_a_variant_is_its_own_class_under_the_same_id() -> None:
    default, variant = build(("alpha", "alpha@paper_code"))
    assert (type(default), default.variant, default.full_id) == (ALPHA, None, "alpha")
    assert type(variant) is LITERAL
    assert (variant.variant, variant.full_id) == ("paper_code", "alpha@paper_code")


def test_a_setting_is_typed_and_noted() -> None:
    alpha, beta = build((), ("alpha", "steps", "7"), ("alpha", "amount", "0.25"))
    assert alpha.config == FakeConfig(steps=7, amount=0.25)
    assert alpha.config_set == ("steps", "amount")
    assert beta.config == FakeConfig()
    assert beta.config_set == ()


def test_a_setting_without_variant_applies_to_all_variants() -> None:
    both = build(("alpha", "alpha@paper_code"), ("alpha", "steps", "7"))
    assert [s.config.steps for s in both] == [7, 7]


def test_a_setting_with_variant_applies_to_it_alone() -> None:
    both = build(("alpha", "alpha@paper_code"), ("alpha@paper_code", "steps", "7"))
    assert [s.config.steps for s in both] == [3, 7]


def test_a_setting_reaches_a_variant_that_runs_alone() -> None:
    (only,) = build(("alpha@paper_code",), ("alpha", "steps", "7"))
    assert only.config.steps == 7


def test_the_last_of_two_settings_of_one_field_holds() -> None:
    (only,) = build(("beta",), ("beta", "steps", "7"), ("beta", "steps", "8"))
    assert only.config.steps == 8
    assert only.config_set == ("steps",)


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        (("gamma",), (), "unknown scanner 'gamma', registered are alpha, beta"),
        (("alpah",), (), "did you mean 'alpha'"),
        (("alpha@other",), (), "scanner 'alpha' has no variant 'other', it has paper_code"),
        (("beta@other",), (), "scanner 'beta' has no variant 'other', it has none"),
        (("alpha@",), (), "scanner 'alpha' has no variant '', it has paper_code"),
        (("alpha", "beta", "alpha"), (), "scanner 'alpha' is asked for twice; name it once"),
        (("alpha",), (("beta", "steps", "7"),), "--set beta.steps: no scanner 'beta' runs"),
        (
            ("alpha",),
            (("alpha@paper_code", "steps", "7"),),
            "no scanner 'alpha@paper_code' runs, these do: alpha",
        ),
        (("alpha",), (("alpha", "stps", "7"),), "did you mean 'steps'"),
        (("alpha",), (("alpha", "steps", "x"),), "alpha.steps must be a whole number, got 'x'"),
        (("alpha",), (("alpha", "steps", "0"),), r"FakeConfig.steps must be in \[1, inf\), got 0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(
    ids: tuple[str, ...], settings: tuple[tuple[str, str, str], ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(ids, *settings)


class NoScan(Scanner[FakeConfig]):
    """Declares everything and does nothing."""

    id, version, family, summary, reference = "no_scan", "1", "f", "s", "r"
    config_type = FakeConfig


class NotDeclared(Scanner[FakeConfig]):
    """Says nothing of itself."""

    id = "not_declared"
    _scan = LITERAL._scan


class NotAScanner:
    """Something else under a scanner's entry point."""

    id = "not_a_scanner"


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NotAScanner, "it must subclass modelaudit.scanners.Scanner"),
        (NotDeclared, "it must declare version, family, summary, reference, config_type"),
        (NoScan, "it must write _scan"),
    ],
)
def test_a_plugin_that_breaks_the_contract_is_refused_by_name_and_left_out_otherwise(
    cls: type, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = registry(BETA, cls)
    with pytest.raises(PluginError, match=message):
        build_scanners((cls.__dict__["id"],), (), registry=found)
    with caplog.at_level(logging.WARNING):
        assert [s.full_id for s in build_scanners((), (), registry=found)] == ["beta"]
    assert message in caplog.text


def test_the_installed_scanners_are_the_default() -> None:
    found = [scanner.full_id for scanner in build_scanners((), ())]
    assert found == list(Registry("scanners").ids())
    assert {"ban", "dde", "mbns", "mm_bd"} <= set(found)


def test_a_plugins_scanner_is_built_beside_the_built_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, BETA)
    assert [s.full_id for s in build_scanners(("beta", "mbns"), ())] == ["beta", "mbns"]


def test_the_listing_is_json_in_three_groups() -> None:
    listing = list_components()
    assert list(listing) == ["scanners", "repairs", "attacks"]
    assert json.loads(json.dumps(listing)) == listing


def test_every_record_says_what_it_is_what_it_needs_and_what_can_be_set() -> None:
    listing = list_components()
    for group, records in listing.items():
        assert [record["id"] for record in records] == sorted(Registry(group).ids())
    for record in (*listing["scanners"], *listing["repairs"], *listing["attacks"]):
        assert record["summary"]
        assert record["reference"]
        assert record["distribution"] == "modelaudit"
        assert isinstance(record["fields"], list)
        for field in record["fields"]:
            assert isinstance(field, dict)
            assert set(field) == {"name", "type", "default"}


def test_a_scanners_record_states_needs_variants_and_defaults() -> None:
    ban = next(r for r in list_components()["scanners"] if r["id"] == "ban")
    assert ban["family"] == "parameter_noise"
    assert ban["sees_all_to_all"] is False
    assert ban["variants"] == ["paper_code"]
    assert isinstance(ban["needs"], dict)
    assert set(ban["needs"]) == {
        "gradients",
        "batchnorm",
        "labels",
        "split",
        "min_images",
        "min_classes",
    }
    assert isinstance(ban["fields"], list)
    defaults = {f["name"]: f["default"] for f in ban["fields"] if isinstance(f, dict)}
    assert defaults == fields(Registry("scanners").load("ban").config_type())  # type: ignore[attr-defined]  # a scanner


def test_the_listing_shows_plugins_and_leaves_out_broken_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, BETA, NoScan)
    with caplog.at_level(logging.WARNING):
        records = {r["id"]: r for r in list_components()["scanners"]}
    assert records["beta"]["summary"] == "what beta does"
    assert records["beta"]["fields"] == [
        {"name": "steps", "type": "int", "default": 3},
        {"name": "amount", "type": "float", "default": 0.5},
    ]
    assert "no_scan" not in records
    assert "it must write _scan" in caplog.text


def test_a_component_without_configuration_has_no_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelaudit import registry as module

    bare = point("bare", NotAScanner, "attacks")
    monkeypatch.setattr(
        module, "entry_points", lambda *, group: [bare] if group.endswith("attacks") else []
    )
    assert list_components()["attacks"] == [
        {
            "id": "bare",
            "summary": "",
            "reference": "",
            "distribution": "unknown",
            "needs": {},
            "fields": [],
        }
    ]
