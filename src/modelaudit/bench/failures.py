"""Records of models whose training raised: ``failed/<id>.json`` in the population's folder."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING

from modelaudit.bench.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.bench.plan import ModelPlan


def record_failure(folder: Path, model: ModelPlan, run: str, err: Exception) -> str:
    """Write what happened and return it as one line.

    Args:
        folder: of the population.
        model: what was trained.
        run: name of the run in which it failed.
        err: what was raised.
    """
    text = f"{type(err).__name__}: {err}"
    record = {
        "id": model.id,
        "attack": model.attack,
        "fingerprint": model.fingerprint(),
        "run": run,
        "error": text,
        "traceback": traceback.format_exception(err),
    }
    content = json.dumps(record, indent=2) + "\n"
    write_whole(_path(folder, model), content.encode("utf-8"))
    return text


def has_failed(folder: Path, model: ModelPlan, run: str) -> bool:
    """Return whether this very model failed in the run of that name; never without a name."""
    try:
        record = json.loads(_path(folder, model).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return bool(run) and (record["run"], record["fingerprint"]) == (run, model.fingerprint())


def forget_failure(folder: Path, model: ModelPlan) -> None:
    """Remove the record of a model that is trained now."""
    _path(folder, model).unlink(missing_ok=True)


def _path(folder: Path, model: ModelPlan) -> Path:
    return folder / "failed" / f"{model.id}.json"
