"""A reference population from a folder of models that the user knows to be clean."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelaudit import calibration
from modelaudit.engine.components import build_scanners
from modelaudit.engine.intake import Stopwatch, open_suspect
from modelaudit.engine.scan import audit, circumstances
from modelaudit.engine.versions import versions
from modelaudit.errors import CheckpointError, ConfigError, DataError, ModelAuditError
from modelaudit.results import Verdict
from modelaudit.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelaudit.engine.request import ScanRequest
    from modelaudit.progress import Progress

_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What became of a folder of models.

    Attributes:
        populations: what was built, the one with the most clean models first.
        left_out: name and reason of every file that is in no population.
        accused: models that the scanners alone would call backdoored; they were kept, because the
            user vouches for them, and deserve a look.
    """

    populations: tuple[calibration.Population, ...]
    left_out: tuple[tuple[str, str], ...]
    accused: tuple[str, ...]


def calibrate(
    folder: Path,
    template: ScanRequest,
    *,
    id_: str,
    progress: Progress,
    known: Mapping[str, calibration.ScannedModel] | None = None,
    keep: Callable[[calibration.ScannedModel], None] = lambda _: None,
) -> Calibrated:
    """Scan every file of a folder and build populations from what could be scanned.

    Args:
        folder: known-clean checkpoints; its own files in the order of their names, no subfolders.
        template: how each is scanned; its checkpoint is replaced.
        id_: name of the population.
        progress: where models and scanners report.
        known: models scanned before under the same template, by the digest of their file.
        keep: called with each newly scanned model, so that the work survives an interruption.

    Raises:
        ConfigError: the folder or an option cannot be used, or too few models could be scanned.
        DataError: the clean set cannot be used.
    """
    paths = checkpoints_in(folder)
    build_scanners(template.scanners, template.settings)
    known = known or {}
    models: dict[str, calibration.ScannedModel] = {}
    unreadable: list[tuple[str, str]] = []
    with progress.task("models", len(paths)) as task:
        for path in paths:
            try:
                digest = _sha256(path)
            except OSError as err:
                unreadable.append((path.name, f"cannot be read: {err.strerror}"))
                task.advance()
                continue
            if digest in models:
                unreadable.append((path.name, f"the same file as {models[digest].id}"))
            elif digest in known:
                models[digest] = replace(known[digest], id=path.name)
            else:
                try:
                    models[digest] = scan_clean_model(path, template, progress=progress)
                except (ConfigError, DataError):
                    # Of the options and the clean set, which are every model's.
                    raise
                except ModelAuditError as err:
                    unreadable.append((path.name, str(err)))
                else:
                    keep(models[digest])
            task.advance()
    if not models:
        shown = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise ConfigError(f"none of the {len(paths)} files in {str(folder)!r} is usable: {shown}")
    built = calibration.build(tuple(models.values()), id_=id_)
    return Calibrated(
        populations=built.populations,
        left_out=tuple(sorted([*unreadable, *built.left_out])),
        accused=tuple(m.id for m in models.values() if _is_accused(m)),
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their names, hidden ones left out.

    Raises:
        ConfigError: it is no folder, or holds no file.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError as err:
        raise ConfigError(
            f"expected a folder of known-clean checkpoints, {str(folder)!r} is none: {err.strerror}"
        ) from err
    if not paths:
        raise ConfigError(f"expected known-clean checkpoints in {str(folder)!r}, it holds no file")
    return paths


def scan_clean_model(
    path: Path, template: ScanRequest, *, progress: Progress
) -> calibration.ScannedModel:
    """Scan one model as `modelaudit scan` would, and keep what a population needs.

    Raises:
        CheckpointError: the file says that it was repaired.
        ModelAuditError: as `modelaudit.engine.scan`.
    """
    request = replace(template, checkpoint=path)
    stopwatch = Stopwatch()
    scanners = build_scanners(request.scanners, request.settings)
    opened = open_suspect(request, progress=progress, stopwatch=stopwatch)
    if opened.read.repair is not None:
        raise CheckpointError(
            "expected a model that never was backdoored, found a file that says that modelaudit "
            "repaired it; leave it out"
        )
    report = audit(opened, scanners, request, progress=progress, stopwatch=stopwatch)
    return calibration.ScannedModel(
        id=path.name,
        circumstances=circumstances(opened),
        outcomes=(*report.scanners, *report.skipped, *report.failed),
        obstacles=opened.obstacles,
        obstacles_to_clean=opened.obstacles_to_clean,
        clean_set=report.clean_set.path,
        checkpoint_sha256=report.suspect.sha256,
        clean_set_sha256=report.clean_set.sha256,
        seed=report.seed,
        hardware=f"{platform.processor() or platform.machine()}, {report.device}",
        versions=versions(),
    )


def _is_accused(model: calibration.ScannedModel) -> bool:
    return decide(model.outcomes).verdict is Verdict.BACKDOORED


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
