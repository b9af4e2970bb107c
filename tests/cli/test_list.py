from __future__ import annotations

import json

import pytest

from modelaudit.cli import run
from modelaudit.errors import PluginError
from modelaudit.results import ExitStatus
from tests.helpers.reports import FakeEngine

Capture = pytest.CaptureFixture[str]


def test_json_has_the_three_kinds_as_the_engine_gives_them(
    engine: FakeEngine, capsys: Capture
) -> None:
    assert run(["list", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == ["scanners", "repairs", "attacks"]
    assert document["scanners"][0]["id"] == "ban"
    assert document["scanners"][0]["fields"][0]["name"] == "epsilon"
    assert err == ""


def test_terminal_shows_ids_fields_and_empty_kinds_escaped(
    engine: FakeEngine, capsys: Capture
) -> None:
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert "scanners\n  ban\n" in out
    assert "fields: epsilon=0.3, layer=none\n" in out
    assert "needs: gradients, min_images 100\n" in out
    assert "sees_all_to_all: True\n" in out
    assert "reference" not in out
    assert "variants: paper_code" in out
    assert "attacks\n  none\n" in out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_terminal_gets_colour(
    engine: FakeEngine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelaudit.cli.list.is_terminal", lambda stream: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    run(["list"])
    assert "\x1b[1m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run(["list"])
    assert "\x1b[1;36m" not in capsys.readouterr().out


def test_plugins_that_clash_are_a_usage_error(
    engine: FakeEngine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clash() -> None:
        raise PluginError("two distributions register scanner 'ban'")

    monkeypatch.setattr(engine, "list_components", clash)
    assert run(["list", "--format", "json"]) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "modelaudit: two distributions register scanner 'ban'\n"


def test_a_bug_in_the_list_is_status_70(
    engine: FakeEngine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "list_components", None)
    assert run(["list"]) == ExitStatus.BUG
    assert "this is a bug in modelaudit" in capsys.readouterr().err
