"""Repairs that follow each other, and what a re-scan of a pruned model means."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open

from modelaudit.checkpoint.write import RECORD_KEY
from modelaudit.repair_results import RepairOutcome
from modelaudit.repairs import Change, RepairContext, RepairData, prune_mask
from modelaudit.results import Finding, Pattern, Verdict
from modelaudit.scanners import CleanImages, Observation, ScanContext
from modelaudit.suspect import Suspect
from tests.helpers.engine import install, nothing, scanner_class
from tests.helpers.fake_repairs import (
    CHANNEL,
    LAYER,
    accusing,
    cut,
    cut_another,
    leave,
    repair_class,
    run_repair,
    write_suspect,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder that it knows."""
    return write_suspect(tmp_path_factory.mktemp("chain"))


def trace(suspect: Suspect, _clean: CleanImages, _context: ScanContext) -> Observation:
    """Accuse for as long as the running statistics are as they are; name where it leads."""
    is_cut = float(suspect.module.get_submodule(LAYER).weight[CHANNEL].detach()) == 0.0
    other = LAYER, 0 if is_cut else CHANNEL
    return Observation(
        finding=Finding.STRONG,
        pattern=None if is_cut else Pattern.ALL_TO_ONE,
        target_labels=() if is_cut else (1,),
        score=60.0 if is_cut else 90.0,
        threshold=25.0,
        is_confirmed=not is_cut,
        evidence={
            "traced": 1,
            "push": [[*other, 0.0 if is_cut else 1e4]],
            "arrows": [2, 2, 3, 2],
        },
    )


def test_a_trace_that_leads_nowhere_ends_repaired_and_is_shown(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        monkeypatch,
        scanner_class("watch", trace, family="bn_statistics"),
        repair_class("cut", cut),
    )
    report = run_repair(paths, method="cut").report
    assert (report.outcome, report.exit_status) == (RepairOutcome.REPAIRED, 0)
    assert report.chosen is not None
    assert report.chosen.explained == ("watch",)
    assert report.chosen.after is not None
    # The re-scan itself is not touched.
    assert report.chosen.after.verdict.verdict is Verdict.INCONCLUSIVE
    assert report.chosen.after.scanners[0].finding is Finding.STRONG
    assert [e.is_of_rescan for e in report.chosen.effects] == [False, True]


def test_a_trace_that_was_trained_against_is_not_taken_for_idle(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def withstand(model: Suspect, data: RepairData) -> Change:
        return dataclasses.replace(cut(model, data), trained_against=("watch",))

    install(
        monkeypatch,
        scanner_class("watch", trace, family="bn_statistics"),
        repair_class("withstand", withstand),
    )
    report = run_repair(paths, method="withstand").report
    assert (report.outcome, report.exit_status) == (RepairOutcome.INCONCLUSIVE, 5)
    assert report.chosen is not None
    assert report.chosen.trained_against == ("watch",)
    assert report.chosen.explained == ()
    assert report.chosen.verdict is not None
    assert "has trained against the pushes of watch" in report.chosen.verdict.reason


def test_the_same_trace_in_another_family_stays_inconclusive(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("watch", trace), repair_class("cut", cut))
    report = run_repair(paths, method="cut").report
    assert (report.outcome, report.exit_status) == (RepairOutcome.INCONCLUSIVE, 5)


@pytest.mark.parametrize(
    ("verdict", "allowed", "told"),
    [
        (accusing(1), 0.03, 0.03),
        (nothing, 0.03, 0.015),
        (nothing, 0.0, 0.0),
    ],
)
def test_a_model_that_the_scan_calls_clean_may_lose_half_as_much(
    paths: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    verdict: Callable[[Suspect, CleanImages, ScanContext], Observation],
    allowed: float,
    told: float,
) -> None:
    given: list[RepairContext] = []

    def ask(_self: object, _model: Suspect, _data: RepairData, context: RepairContext) -> Change:
        given.append(context)
        return Change()

    install(
        monkeypatch,
        scanner_class("watch", verdict),
        repair_class("deaf", leave, _repair=ask),
        repair_class("asks", leave, _repair=ask, reads_findings=True),
    )
    for method in ("deaf", "asks"):
        report = run_repair(paths, method=method, max_accuracy_drop=allowed).report
        assert report.max_accuracy_drop == allowed
    assert [context.max_accuracy_drop for context in given] == [told, told]
    assert [len(context.findings) for context in given] == [0, 1]


def test_auto_trains_what_was_pruned_and_the_file_says_so(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[RepairContext] = []

    def tune(_self: object, model: Suspect, _data: RepairData, context: RepairContext) -> Change:
        given.append(context)
        with torch.no_grad():
            model.module.get_submodule(LAYER).get_parameter("weight")[CHANNEL] = 0
        return Change(history=(0.5,))

    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("part", cut_another),
        repair_class("tune", leave, _repair=tune, is_training=True),
    )
    monkeypatch.setattr(sys.modules["modelaudit.engine.repair"], "AUTO_TRAIN", ("part", "tune"))
    done = run_repair(paths)
    first, second = done.report.attempts
    assert (first.goes_on_from, second.goes_on_from) == ((), ("part",))
    assert second.is_chosen
    assert done.report.outcome is RepairOutcome.REPAIRED
    assert done.report.reason.startswith("part, then tune ")
    assert given[0].pruned is not None
    assert given[0].pruned.neurons == ((LAYER, CHANNEL + 1),)
    # Both are counted from the suspect.
    assert given[0].original is done.opened.suspect
    assert first.proof is not None
    assert second.proof is not None
    assert first.proof.accuracy_before == second.proof.accuracy_before
    assert done.tensors is not None
    weight = done.tensors[f"{LAYER}.weight"]
    assert weight[CHANNEL] == 0
    assert weight[CHANNEL + 1] == 0
    path = tmp_path / "chain.safetensors"
    path.write_bytes(done.encoded().data)
    with safe_open(path, "pt") as opened:
        record = json.loads(opened.metadata()[RECORD_KEY])
    assert record["method"] == "part, then tune"
    assert [step["method"] for step in record["steps"]] == ["part", "tune"]
    assert [step["pruned_neurons"] for step in record["steps"]] == [1, 0]
    assert record["steps"][0]["config"] == {"steps": 3, "amount": 0.5}


def test_auto_does_not_go_on_from_what_costs_too_much(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(model: Suspect, _data: RepairData) -> Change:
        mask = prune_mask(model, [("bn1", k) for k in range(4)])
        mask.apply(model.module)
        return Change(mask=mask)

    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("ruin", ruin),
        repair_class("cut", cut),
    )
    monkeypatch.setattr(sys.modules["modelaudit.engine.repair"], "AUTO_TRAIN", ("ruin", "cut"))
    report = run_repair(paths).report
    assert [a.goes_on_from for a in report.attempts] == [(), ()]
    assert [a.is_chosen for a in report.attempts] == [False, True]
