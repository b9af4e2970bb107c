from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from modelaudit.checkpoint.write import RECORD_KEY, encode_safetensors
from modelaudit.engine import repair
from modelaudit.errors import ConfigError, OutputError, RepairError, TooFewImagesError
from modelaudit.progress import NoProgress
from modelaudit.repair_results import PriorScan, RepairOutcome, ScanSummary
from modelaudit.results import Verdict, VerdictRecord
from tests.helpers.engine import (
    FOLDERS,
    SIDE,
    install,
    nothing,
    scanner_class,
    trained,
    write_checkpoint,
)
from tests.helpers.fake_repairs import (
    CHANNEL,
    LAYER,
    PER_FOLDER,
    accusing,
    cut,
    leave,
    nudge,
    repair_class,
    repair_request,
    run_repair,
    wreck,
    write_suspect,
)

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.engine import Repaired
    from modelaudit.repairs import Change, RepairData
    from modelaudit.suspect import Suspect


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and a folder that it knows."""
    return write_suspect(tmp_path_factory.mktemp("repair"))


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("cut", cut),
        repair_class("wreck", wreck),
        repair_class("leave", nudge),
        repair_class("idle", leave),
        repair_class("picky", leave, min_images=10**6),
    )


@pytest.fixture(scope="module")
def finished() -> dict[str, Repaired]:
    """What was repaired already, by method."""
    return {}


@pytest.fixture
def by_cut(paths: tuple[Path, Path], finished: dict[str, Repaired]) -> Repaired:
    """The repair that works."""
    if "cut" not in finished:
        finished["cut"] = run_repair(paths, method="cut")
    return finished["cut"]


def test_a_named_repair_changes_only_what_it_says(
    paths: tuple[Path, Path], by_cut: Repaired
) -> None:
    done, report = by_cut, by_cut.report
    assert (report.outcome, report.exit_status) == (RepairOutcome.REPAIRED, 0)
    assert report.suspect.sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert report.chosen is not None
    assert report.chosen.pruned == ((LAYER, (CHANNEL,)),)
    assert done.tensors is not None
    old = torch.load(paths[0], weights_only=True)["state_dict"]
    differing = {n for n, tensor in done.tensors.items() if not torch.equal(tensor, old[n])}
    assert differing == {f"layer4.0.{name}" for name in ("bn1.weight", "bn1.bias", "conv1.weight")}


def test_the_proof_is_on_images_that_the_repair_did_not_get(by_cut: Repaired) -> None:
    report = by_cut.report
    assert report.repair_images + report.proof_images == PER_FOLDER * len(FOLDERS)
    assert report.proof_images == 48
    assert report.chosen is not None
    assert report.chosen.proof is not None
    assert report.chosen.proof.images == 48
    assert report.chosen.proof.accuracy_before == pytest.approx(44 / 48)
    assert report.chosen.proof.agreement == pytest.approx(46 / 48)


def test_a_larger_folder_gives_repairs_more_images(paths: tuple[Path, Path]) -> None:
    small = run_repair(paths, method="cut", max_images=100, max_repair_images=100).report
    large = run_repair(paths, method="cut", max_images=100, max_repair_images=110).report
    assert small.repair_images + small.proof_images == 100
    assert large.repair_images + large.proof_images == 110
    assert large.repair_images > small.repair_images


def test_a_repair_over_its_budget_gives_no_model(paths: tuple[Path, Path]) -> None:
    done = run_repair(paths, method="wreck")
    assert (done.report.outcome, done.report.exit_status) == (RepairOutcome.NOT_WRITTEN, 5)
    assert done.tensors is None
    assert "are allowed" in done.report.reason
    with pytest.raises(ConfigError, match="there is no repaired model"):
        done.module()


def test_force_gives_it_all_the_same(paths: tuple[Path, Path]) -> None:
    done = run_repair(paths, method="wreck", is_forced=True)
    assert done.tensors is not None
    assert done.report.exit_status == 1
    assert "(--force)" in done.report.reason


def test_a_repair_without_effect_ends_still_backdoored(paths: tuple[Path, Path]) -> None:
    done = run_repair(paths, method="leave")
    assert (done.report.outcome, done.report.exit_status) == (RepairOutcome.STILL_BACKDOORED, 1)


def test_a_repair_that_changes_nothing_writes_nothing(paths: tuple[Path, Path]) -> None:
    done = run_repair(paths, method="idle")
    assert (done.report.outcome, done.report.exit_status) == (RepairOutcome.NOT_WRITTEN, 5)
    assert done.report.reason_code == "MA-R506"
    assert "idle changed nothing" in done.report.reason
    assert done.tensors is None
    assert done.report.attempts[0].proof is None


def test_what_changes_nothing_is_neither_chosen_nor_lucky(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["modelaudit.engine.repair"]
    monkeypatch.setattr(module, "AUTO_TRAIN", ("leave", "idle"))
    report = run_repair(paths).report
    assert [(a.id, a.is_chosen) for a in report.attempts] == [("leave", True), ("idle", False)]
    assert report.chosen is not None
    assert report.chosen.budget is not None
    assert report.chosen.budget.models == 1


def test_what_a_rescan_pushes_is_compared_with_what_carried_a_trace_before(
    paths: tuple[Path, Path], by_cut: Repaired, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["modelaudit.engine.attempt"]
    real = module.effects
    asked: list[tuple[bool, Any]] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append((options.get("is_of_rescan", False), options.get("earlier")))
        return real(*arguments, **options)

    monkeypatch.setattr(module, "effects", watched)
    report = run_repair(paths, method="cut").report
    assert report.before is not None
    assert asked == [(False, None), (True, report.before.scanners)]
    assert by_cut.report.outcome is report.outcome


def test_an_artefact_that_still_works_outweighs_a_clean_rescan(
    paths: tuple[Path, Path], by_cut: Repaired, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["modelaudit.engine.attempt"]
    assert by_cut.report.chosen is not None
    assert by_cut.report.chosen.effects[0].share_after < 0.5
    real = module.effects

    def stubborn(*arguments: Any, **options: Any) -> Any:
        return tuple(
            replace(effect, share_after=1.0, interval_after=(0.9, 1.0))
            for effect in real(*arguments, **options)
        )

    monkeypatch.setattr(module, "effects", stubborn)
    done = run_repair(paths, method="cut")
    assert done.report.chosen is not None
    assert done.report.chosen.after is not None
    assert done.report.chosen.after.verdict.verdict is Verdict.CLEAN
    assert done.report.outcome is RepairOutcome.STILL_BACKDOORED


def test_auto_leaves_a_clean_model_alone(paths: tuple[Path, Path], tmp_path: Path) -> None:
    net = trained(PER_FOLDER)
    with torch.no_grad():
        net.get_submodule(LAYER).weight[CHANNEL] = 0
    path = write_checkpoint(tmp_path / "clean.pt", net)
    done = run_repair((path, paths[1]))
    assert (done.report.outcome, done.report.exit_status) == (RepairOutcome.NOT_NEEDED, 0)
    assert done.report.attempts == ()
    assert done.tensors is None


def test_auto_goes_on_until_a_rescan_is_clean(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The function of this name hides its module.
    module = sys.modules["modelaudit.engine.repair"]
    monkeypatch.setattr(module, "AUTO_TRAIN", ("picky", "wreck", "cut", "leave"))
    report = run_repair(paths).report
    assert [a.id for a in report.attempts] == ["picky", "wreck", "cut"]
    assert [a.is_chosen for a in report.attempts] == [False, False, True]
    assert "needs 1000000 clean images" in report.attempts[0].failure
    assert report.outcome is RepairOutcome.REPAIRED


def cut_and_nudge(model: Suspect, data: RepairData) -> Change:
    """Prune the channel, and say that it is not what `cut` makes."""
    nudge(model, data)
    return cut(model, data)


@pytest.mark.parametrize(
    ("unsettled", "chosen"),
    [({"cut"}, "cut_too"), ({"cut", "cut_too"}, "cut"), (set(), "cut")],
)
def test_auto_goes_on_from_what_leaves_more_than_a_twentieth_and_comes_back_to_it(
    paths: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    unsettled: set[str],
    chosen: str,
) -> None:
    module = sys.modules["modelaudit.engine.repair"]
    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("cut", cut),
        repair_class("cut_too", cut_and_nudge),
    )
    monkeypatch.setattr(module, "AUTO_TRAIN", ("cut", "cut_too"))
    monkeypatch.setattr(
        module,
        "_may_end",
        lambda attempt, _: attempt.is_clean and attempt.record.id not in unsettled,
    )
    report = run_repair(paths).report
    assert [a.id for a in report.attempts if a.is_chosen] == [chosen]
    assert len(report.attempts) == (2 if unsettled else 1)
    assert report.outcome is RepairOutcome.REPAIRED


def test_auto_without_anything_to_go_by_writes_nothing(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = scanner_class("watch2", nothing, sees_all_to_all=False)
    install(monkeypatch, blind)
    wanted = repair_request(paths)
    wanted = replace(wanted, scan=replace(wanted.scan, scanners=("watch2",)))
    report = repair(wanted, progress=NoProgress()).report
    assert (report.outcome, report.exit_status) == (RepairOutcome.NOT_WRITTEN, 5)
    assert report.reason_code == "MA-R502"


def test_a_dry_run_measures_and_keeps_nothing(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["modelaudit.engine.repair"]
    real = module.find_witnesses
    searches: list[int] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        searches.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "find_witnesses", watched)
    done = run_repair(paths, method="cut", is_dry_run=True)
    # What stand-ins still lead is all that it can say of the backdoor.
    assert searches == [1]
    assert done.report.before is not None
    assert (done.report.outcome, done.report.exit_status) == (RepairOutcome.PLANNED, 0)
    assert done.tensors is None
    assert done.report.chosen is not None
    assert done.report.chosen.pruned_neurons == 1
    assert done.report.chosen.effects
    assert done.report.chosen.after is None


def test_a_prior_scan_is_taken_only_for_the_same_file_and_images(
    paths: tuple[Path, Path], by_cut: Repaired
) -> None:
    first = by_cut.report
    assert first.before is not None
    prior = PriorScan(
        checkpoint_sha256=first.suspect.sha256,
        clean_set_sha256=first.clean_set.sha256,
        state_dict_key="state_dict",
        summary=first.before,
    )
    again = run_repair(paths, method="cut", prior=prior).report
    assert again.is_before_reused
    assert again.cost.forward < first.cost.forward + 1
    for changed in (
        replace(prior, checkpoint_sha256="0" * 64),
        replace(prior, clean_set_sha256="0" * 64),
    ):
        with pytest.raises(ConfigError, match="--report is of another"):
            run_repair(paths, method="cut", prior=changed)
    with pytest.raises(ConfigError, match="under 'ema', these are under 'state_dict'; give the"):
        run_repair(paths, method="cut", prior=replace(prior, state_dict_key="ema"))


def test_an_unmet_need_is_said_and_nothing_is_done(
    paths: tuple[Path, Path], by_cut: Repaired, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scans(*_arguments: Any, **_options: Any) -> Any:
        raise AssertionError("a scan was paid for")

    monkeypatch.setattr(sys.modules["modelaudit.engine.repair"], "audit", scans)
    done = run_repair(paths, method="picky")
    report = done.report
    assert (report.outcome, report.exit_status) == (RepairOutcome.NOT_WRITTEN, 5)
    assert (report.reason_code, done.tensors) == ("MA-R504", None)
    assert "picky needs 1000000 clean images" in report.reason
    assert report.before is None
    assert "nothing was scanned" in report.notes[-1]
    assert report.cost.forward == 0
    # A scan that somebody has is shown all the same.
    assert by_cut.report.before is not None
    prior = PriorScan(
        checkpoint_sha256=report.suspect.sha256,
        clean_set_sha256=report.clean_set.sha256,
        state_dict_key="state_dict",
        summary=by_cut.report.before,
    )
    again = run_repair(paths, method="picky", prior=prior).report
    assert (again.reason_code, again.before) == ("MA-R504", prior.summary)
    assert again.notes == by_cut.report.notes[: len(again.notes)]


def test_a_scan_that_accuses_nothing_says_what_would_settle_it(
    paths: tuple[Path, Path], by_cut: Repaired
) -> None:
    said = [
        VerdictRecord(
            verdict=Verdict.INCONCLUSIVE,
            reason_code="MA-V501",
            reason="ran out of time",
            next_step=step,
        )
        for step in ("raise --budget", "")
    ]
    steps = []
    for verdict in said:
        prior = PriorScan(
            checkpoint_sha256=by_cut.report.suspect.sha256,
            clean_set_sha256=by_cut.report.clean_set.sha256,
            state_dict_key="state_dict",
            summary=ScanSummary(verdict=verdict),
        )
        report = run_repair(paths, prior=prior).report
        assert (report.reason_code, report.exit_status) == ("MA-R502", 5)
        steps.append(report.next_step)
    assert steps == [
        "settle the scan first (raise --budget), or name a method",
        "settle the scan first, or name a method",
    ]


def test_too_few_images_are_an_error(paths: tuple[Path, Path]) -> None:
    with pytest.raises(TooFewImagesError, match="at least 100 clean images, got 10"):
        run_repair(paths, method="cut", max_images=10)


def test_the_file_gives_the_logits_of_the_model(
    paths: tuple[Path, Path], by_cut: Repaired, tmp_path: Path
) -> None:
    done = by_cut
    file = done.encoded()
    path = tmp_path / "repaired.safetensors"
    path.write_bytes(file.data)
    done.check(path)
    net = trained(PER_FOLDER)
    with safe_open(path, "pt") as opened:
        net.load_state_dict({k: opened.get_tensor(k) for k in opened.keys()}, strict=True)  # noqa: SIM118
        record = json.loads(opened.metadata()[RECORD_KEY])
    x = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(net.eval()(x), done.module()(x))
    assert record["method"] == "cut"
    assert record["input_sha256"] == done.report.suspect.sha256
    assert record["trained_against"] == []
    assert record["earlier"] is None
    chosen = next(a for a in done.report.attempts if a.is_chosen)
    assert chosen.verdict is not None
    assert record["rescan"] == {
        "verdict": chosen.verdict.verdict,
        "reason_code": chosen.verdict.reason_code,
    }
    other = tmp_path / "other.safetensors"
    other.write_bytes(run_repair(paths, method="leave").encoded().data)
    with pytest.raises(OutputError, match="does not give the repaired model's logits"):
        done.check(other)


@pytest.mark.parametrize("verdict", ["clean", "inconclusive"])
def test_a_model_that_was_repaired_before_is_judged_like_any_other_and_says_so(
    paths: tuple[Path, Path], by_cut: Repaired, tmp_path: Path, verdict: str
) -> None:
    before = {
        "method": "leave",
        "input_sha256": "0" * 64,
        "rescan": {"verdict": verdict, "reason_code": "MA-V512"},
        "trained_against": ["another"],
    }
    path = tmp_path / "once.safetensors"
    path.write_bytes(encode_safetensors(trained(PER_FOLDER).state_dict(), record=before))
    twice = run_repair((path, paths[1]), method="cut")
    assert twice.record["earlier"] == before
    assert twice.record["trained_against"] == ["another"]
    assert twice.record["rescan"] == by_cut.record["rescan"]


def test_the_container_of_the_input_can_be_kept(paths: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_repair(paths, method="cut", keeps_format=True)
    file = done.encoded()
    path = tmp_path / "repaired.pt"
    path.write_bytes(file.data)
    done.check(path)
    document = torch.load(path, weights_only=True)
    assert document["epoch"] == 3
    assert document[RECORD_KEY]["pruned_neurons"] == 1
    assert file.format == "torch-zip"


def test_a_pickled_module_is_refused_before_any_work(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "whole.pt"
    torch.save(trained(PER_FOLDER), path)
    with pytest.raises(ConfigError, match="--keep-format"):
        run_repair((path, paths[1]), method="cut", keeps_format=True)


def test_the_same_seed_gives_the_same_file(paths: tuple[Path, Path], by_cut: Repaired) -> None:
    assert run_repair(paths, method="cut").encoded() == by_cut.encoded()


def test_a_later_repair_that_fails_takes_nothing_from_an_earlier_one(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(_model: Suspect, _data: RepairData) -> Change:
        raise RepairError("its loss is not finite")

    install(
        monkeypatch,
        scanner_class("watch", accusing(1)),
        repair_class("nudge", nudge),
        repair_class("diverges", diverges),
    )
    module = sys.modules["modelaudit.engine.repair"]
    monkeypatch.setattr(module, "AUTO_TRAIN", ("nudge", "diverges"))
    done = run_repair(paths)
    assert [a.id for a in done.report.attempts] == ["nudge", "diverges"]
    assert done.report.attempts[1].failure == "its loss is not finite"
    assert done.tensors is not None
    # Of a method that was named, nothing is left to be written.
    with pytest.raises(RepairError, match="not finite"):
        run_repair(paths, method="diverges")
