from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelaudit.calibration import (
    MeasuredRates,
    dumps,
    read_populations,
    shipped_populations,
)
from modelaudit.calibration.build import full_thresholds
from modelaudit.calibration.document import MAX_BYTES, loads
from modelaudit.calibration.population import config_sha256
from modelaudit.config import fields
from modelaudit.errors import ConfigError
from modelaudit.registry import Registry
from tests.helpers.calibration import population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelaudit.calibration import Population

RATES = MeasuredRates(
    source="population B", clean=30, false_alarms=0, undecided=1, attacked=40, detected=39
)


@pytest.fixture(scope="module")
def small() -> Population:
    return population()


@pytest.fixture(scope="module")
def text(small: Population) -> str:
    return dumps([small])


def changed(text: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(text)
    change(document)
    return json.dumps(document).encode()


def test_a_population_survives_its_file(small: Population, text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    (read,) = read_populations(path)
    assert replace(read, suspicious=0, strong=0) == replace(small, suspicious=0, strong=0)
    assert full_thresholds(read) == full_thresholds(small)
    assert dumps([read]) == text
    assert text.isascii()


def test_rates_survive_their_file(small: Population) -> None:
    (read,) = loads(dumps([replace(small, rates=RATES)]).encode(), name="x")
    assert read.rates == RATES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(extra=1), "expected no further fields, got 'extra'"),
        (lambda d: d.update(format="other"), "is no file of `modelaudit calibrate`"),
        (lambda d: d.update(version=2), "has version 2, this modelaudit reads version 1"),
        (lambda d: d.update(version=True), "version: expected a whole number, got True"),
        (lambda d: d.pop("populations"), "expected a field 'populations', there is none"),
        (lambda d: d.update(populations=[]), "holds no population"),
        (lambda d: d.update(populations={}), "populations: expected a list, got {}"),
        (lambda d: d["populations"].append(d["populations"][0]), "two populations of one id"),
        (lambda d: d["populations"].append(3), "populations[1]: expected an object, got 3"),
    ],
)
def test_a_wrong_file_is_refused_with_one_sentence(
    text: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(changed(text, change), name="f.json")
    assert said in str(caught.value)
    assert "f.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(unknown=1), "expected no further fields, got 'unknown'"),
        (lambda p: p.pop("id"), "expected a field 'id'"),
        (lambda p: p.update(id=3), "id: expected text, got 3"),
        (lambda p: p.update(id=""), "expected an id"),
        (lambda p: p.update(families=[]), "at least one architecture family"),
        (lambda p: p.update(families=[1]), "families: expected a list of texts"),
        (lambda p: p["bucket"].update(images=150), "images: expected one of 100, 200, 500"),
        (lambda p: p["bucket"].update(input_size=32), "input_size: expected one of 40, 96, 0"),
        (lambda p: p["bucket"].update(classes=10), "classes: expected one of 2, 5, 21, 100"),
        (lambda p: p["bucket"].update(has_batchnorm=1), "has_batchnorm: expected true or false"),
        (lambda p: p["bucket"].update(more=1), "bucket: expected no further fields"),
        (lambda p: p["scanners"][0].update(transform="cube"), "expected one of identity, log"),
        (lambda p: p["scanners"].append(p["scanners"][0]), "names one of its scanners twice"),
        (lambda p: p["models"].append(p["models"][0]), "names one of its models twice"),
        (lambda p: p["models"][0].update(classes="10"), "classes: expected a whole number"),
        (lambda p: p["models"][0].update(attack=1), "attack: expected text or null, got 1"),
        (lambda p: p["models"][0]["statistics"].pop("ban"), "expected statistics of ban, mbns"),
        (lambda p: p["models"][0]["statistics"].update(ban="1"), "statistics.ban: expected a num"),
        (lambda p: p["models"][0]["statistics"].update(ban=True), "expected a number, got True"),
        (lambda p: p.update(suspicious_level=0), "suspicious_level must be in (0, 1], got 0"),
        (lambda p: p.update(strong_level=2), "strong_level must be in (0, 1], got 2"),
        (lambda p: p.update(suspicious=1.0), "suspicious is 1.0, but its own models give"),
        (lambda p: p.update(strong=99), "strong is 99.0, but its own models give"),
        (lambda p: p.update(models=p["models"][:3]), "at least 5 clean models"),
        (lambda p: p.update(versions={"torch": 2}), "versions.torch: expected text, got 2"),
        (lambda p: p.update(versions=[]), "versions: expected an object"),
        (lambda p: p.update(rates={"source": "B"}), "rates: expected a field 'clean'"),
        (
            lambda p: p.update(rates=dict.fromkeys(("clean", "attacked", "undecided"), 1)
            | {"source": "B", "false_alarms": 1, "detected": 1}),
            "expected at most as many verdicts as models, got 1 + 1 of 1",
        ),
    ],
)  # fmt: skip
def test_every_field_of_a_population_is_checked(
    text: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(changed(text, lambda d: change(d["populations"][0])), name="f.json")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"strong_level": 0.001', '"strong_level": NaN', "expected finite numbers, got NaN"),
        ('"strong_level": 0.001', '"strong_level": Infinity', "got Infinity"),
        ('"strong_level": 0.001', '"strong_level": 1e999', "expected a finite number, got inf"),
        ('"version": 1', '"version": 1, "version": 1', "a key appears twice"),
        ('"version": 1', '"version": 1,', "is no valid JSON"),
    ],
)
def test_numbers_that_are_none_and_broken_json_are_refused(
    text: str, old: str, new: str, said: str
) -> None:
    assert text.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        loads(text.replace(old, new).encode(), name="f.json")
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"f\.json"):
        loads(data, name="f.json")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 10)
    with pytest.raises(ConfigError, match="is larger than 50,000,000 bytes"):
        read_populations(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_populations(tmp_path / "none.json")


def test_the_shipped_populations_are_of_the_scanners_as_they_are() -> None:
    shipped = shipped_populations()
    assert shipped
    registry = Registry("scanners")
    for each in shipped:
        for scanner in each.scanners:
            cls = registry.load(scanner.id)
            assert scanner.version == cls.version
            assert scanner.family == cls.family
            assert scanner.config_sha256 == config_sha256(fields(cls.config_type()))


def test_shipped_populations_claim_no_rate_without_models() -> None:
    for each in shipped_populations():
        assert each.notes
        assert each.hardware
        assert each.versions
        # As many as a population needs itself; the interval says how little five are.
        assert each.rates is None or each.rates.clean >= 5
