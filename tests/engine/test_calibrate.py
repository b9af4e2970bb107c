from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint.write import encode_safetensors
from modelaudit.engine import ScanRequest
from modelaudit.engine.calibrate import calibrate, checkpoints_in
from modelaudit.errors import ConfigError, DataError
from modelaudit.progress import NoProgress
from modelaudit.results import Finding
from modelaudit.scanners import CleanImages, Observation, ScanContext
from tests.helpers.engine import (
    HALF,
    SIDE,
    install,
    loud,
    scanner_class,
    trained,
    write_checkpoint,
    write_data,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.calibration import ScannedModel
    from modelaudit.engine.calibrate import Calibrated
    from modelaudit.suspect import Suspect

PER_FOLDER = 26
MODELS = 5


def logit_sum(suspect: Suspect, clean: CleanImages, _context: ScanContext) -> Observation:
    """Score a suspect by its own numbers."""
    with torch.no_grad():
        score = float(suspect.logits(clean.images[:4]).abs().sum())
    return Observation(finding=Finding.NONE, score=score)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ScanRequest:
    """A folder of five models that differ a little, and how to scan them."""
    root = tmp_path_factory.mktemp("calibrate")
    (root / "models").mkdir()
    module = trained(PER_FOLDER)
    for index in range(MODELS):
        with torch.no_grad():
            next(iter(module.parameters())).mul_(1.001)
        write_checkpoint(root / "models" / f"m{index}.pt", module)
    return ScanRequest(
        checkpoint=root / "models",
        data=write_data(root / "clean", PER_FOLDER),
        scanners=("sum",),
        preprocessing=HALF,
        input_size=SIDE,
        budget_seconds=None,
    )


def run(
    template: ScanRequest,
    *,
    folder: Path | None = None,
    known: Mapping[str, ScannedModel] | None = None,
    kept: list[ScannedModel] | None = None,
) -> Calibrated:
    return calibrate(
        folder or template.checkpoint,
        template,
        id_="mine",
        progress=NoProgress(),
        known=known,
        keep=(kept if kept is not None else []).append,
    )


def test_a_folder_becomes_a_population_and_what_was_scanned_is_not_scanned_again(
    template: ScanRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("sum", logit_sum))
    kept: list[ScannedModel] = []
    done = run(template, kept=kept)
    (population,) = done.populations
    assert [m.id for m in population.models] == [f"m{i}.pt" for i in range(MODELS)]
    assert all(m.attack is None for m in population.models)
    assert len({m.statistics["sum"] for m in population.models}) == MODELS
    assert population.bucket.classes == 2
    assert population.bucket.images == 100
    assert population.hardware[0].endswith(", cpu")
    assert (done.left_out, done.accused) == ((), ())
    again: list[ScannedModel] = []
    known = {m.checkpoint_sha256: m for m in kept[:4]}
    assert run(template, known=known, kept=again) == done
    assert [m.id for m in again] == ["m4.pt"]


def test_unusable_files_are_listed_and_passed_over(
    template: ScanRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("sum", logit_sum))
    kept: list[ScannedModel] = []
    run(template, kept=kept)
    for path in template.checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "copy.pt").write_bytes((tmp_path / "m0.pt").read_bytes())
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / ".hidden").write_text("not looked at")
    record = {"method": "cut", "input_sha256": "0" * 64}
    repaired = encode_safetensors(trained(PER_FOLDER).state_dict(), record=record)
    (tmp_path / "repaired.safetensors").write_bytes(repaired)
    (tmp_path / "folder").mkdir()
    done = run(template, folder=tmp_path, known={m.checkpoint_sha256: m for m in kept})
    assert [name for name, _ in done.left_out] == ["m0.pt", "notes.txt", "repaired.safetensors"]
    assert done.left_out[2][1].endswith("says that modelaudit repaired it; leave it out")
    assert done.left_out[0][1] == "the same file as copy.pt"
    assert len(done.populations[0].clean) == MODELS


def test_accused_models_are_kept_and_named(
    template: ScanRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("sum", loud))
    assert run(template).accused == tuple(f"m{i}.pt" for i in range(MODELS))


def test_too_few_usable_models_are_an_error_with_the_reasons(
    template: ScanRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("sum", logit_sum))
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"none of the 1 files .* is usable: a\.pt: .*empty"):
        run(template, folder=tmp_path)


def test_a_clean_set_that_cannot_be_used_ends_it_at_once(
    template: ScanRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, scanner_class("sum", logit_sum))
    with pytest.raises(DataError, match="nowhere"):
        run(replace(template, data=tmp_path / "nowhere"))


def test_a_folder_without_files_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it holds no file"):
        checkpoints_in(tmp_path)
    with pytest.raises(ConfigError, match="expected a folder of known-clean checkpoints"):
        checkpoints_in(tmp_path / "none")


def test_an_unknown_scanner_is_refused_before_any_model_is_read(
    template: ScanRequest, tmp_path: Path
) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="unknown scanner 'sum'"):
        run(template, folder=tmp_path)
