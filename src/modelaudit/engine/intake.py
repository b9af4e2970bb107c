"""Opens a checkpoint and a clean set and makes a suspect of them; nothing is judged here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from modelaudit import architectures, checkpoint, cleanset
from modelaudit import fit as fitting
from modelaudit.engine.provenance import (
    other_weights_notes,
    other_weights_obstacles,
    repair_notes,
    repair_obstacles,
)
from modelaudit.errors import DataError, FitError, TooFewImagesError
from modelaudit.registry import Registry
from modelaudit.results import CleanSetRecord, LoadRecord, Obstacle, SuspectRecord
from modelaudit.scanners.base import CleanImages
from modelaudit.suspect import Suspect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from modelaudit.architectures import ArchitectureFamily, Candidate
    from modelaudit.engine.request import ScanRequest
    from modelaudit.progress import Progress
    from modelaudit.results import Choice, StaticFinding
    from modelaudit.weights import Weights

#: Fewest pictures, and pictures of a class, that a verdict may rest on (methods/intake.md, exit
#: status 5).
MIN_IMAGES = 100
MIN_PER_CLASS = 5

#: Largest difference between the channels of a grey pixel, two steps and half of one for rounding;
#: a grey picture that was stored as a colour one comes back a little off.
_GREY = 2.5 / 255

_OPEN_PREPROCESSING = Obstacle(
    reason_code="MA-V507",
    reason="this model's preprocessing cannot be told from unlabelled images",
    next_step="give --preprocess, or --mean and --std, then scan again",
)


@dataclass(slots=True)
class Stopwatch:
    """Wall seconds of each named stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap on `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A suspect ready to be scanned.

    Attributes:
        suspect: the model under audit.
        clean: the clean images at its input size.
        read: the checkpoint as it was read.
        clean_set: the clean images as they were read.
        fit: how the model is run.
        suspect_record: for the report.
        clean_record: for the report.
        load_record: for the report.
        static_findings: what the file contains beside weights.
        obstacles: reasons why no verdict may rest on this clean set.
        obstacles_to_clean: reasons why the verdict must not be ``clean``.
        is_fit: whether the clean accuracy reaches the gate; without it no detector's output has a
            meaning.
        notes: sentences for the reader.
    """

    suspect: Suspect
    clean: CleanImages
    read: checkpoint.Checkpoint
    clean_set: cleanset.CleanSet
    fit: fitting.Fit
    suspect_record: SuspectRecord
    clean_record: CleanSetRecord
    load_record: LoadRecord
    static_findings: tuple[StaticFinding, ...]
    obstacles: tuple[str, ...]
    obstacles_to_clean: tuple[Obstacle, ...]
    is_fit: bool
    notes: tuple[str, ...]


def open_suspect(request: ScanRequest, *, progress: Progress, stopwatch: Stopwatch) -> Opened:
    """Read, recognise and fit.

    Raises:
        CheckpointError: the file is refused, unreadable, or of no known architecture.
        DataError: the clean set is unusable.
        FitError: it stays open how the model is to be run.
        ConfigError: an option does not fit.
    """
    read = checkpoint.read_checkpoint(request.checkpoint, key=request.weights)
    stopwatch.lap("read checkpoint")
    candidates = _candidates(request.arch, read.weights)
    stopwatch.lap("recognise architecture")
    clean = cleanset.read_clean_set(request.data, max_images=request.max_images, seed=request.seed)
    split = clean.split(request.seed)
    classes = None if request.classes is None else _read_classes(request)
    mixture = (
        None
        if request.mixture is None
        else cleanset.read_clean_set(request.mixture, max_images=None, seed=request.seed)
    )
    stopwatch.lap("read clean set")
    too_few = _too_few(clean)
    device = torch.device(request.device)
    try:
        fit = fitting.fit(
            candidates,
            lambda candidate: architectures.load(candidate, read.weights),
            clean,
            split,
            preprocessing=request.preprocessing,
            input_size=request.input_size,
            classes=classes,
            device=device,
            progress=progress,
        )
    except FitError as err:
        if too_few:
            raise TooFewImagesError("; ".join(too_few)) from err
        raise
    suspect = Suspect(
        fit.module,
        preprocessing=fit.preprocessing,
        input_size=fit.input_size,
        input_channels=fit.input_channels,
        num_classes=fit.num_classes,
        device=device,
    )
    images = clean.tensor(fit.input_size, fit.input_channels)
    labels = fit.predictions if fit.labels is None else fit.labels
    stopwatch.lap("fit")
    return Opened(
        suspect=suspect,
        clean=CleanImages(
            images=images,
            labels=labels,
            has_labels=fit.labels is not None,
            predictions=fit.predictions,
            as_trained=fitting.training_crops(
                images, fit.training_crop, mean=fit.preprocessing.mean
            ),
            search=torch.from_numpy(split.search),
            judge=torch.from_numpy(split.judge),
            mixture=None if mixture is None else mixture.tensor(fit.input_size, fit.input_channels),
        ),
        read=read,
        clean_set=clean,
        fit=fit,
        suspect_record=SuspectRecord(
            path=str(request.checkpoint),
            sha256=read.sha256,
            size=read.size_bytes,
            format=read.format,
            architecture=_describe(fit.candidate),
            hints=tuple(sorted({h.class_name for h in read.weights.hints.values()})),
        ),
        clean_record=_clean_record(clean, fit),
        load_record=LoadRecord(
            method="weights read by the symbolic unpickler"
            if read.format != "safetensors"
            else "safetensors",
            sandbox="none: nothing of the file is executed",
            state_dict_key=read.state_dict_key,
            stripped_prefix=read.stripped_prefix,
            ignored_keys=read.ignored_keys,
        ),
        static_findings=read.findings,
        obstacles=_obstacles(too_few, fit),
        obstacles_to_clean=(
            *(() if fit.preprocessing_is_certain else (_OPEN_PREPROCESSING,)),
            *repair_obstacles(read.repair),
            *other_weights_obstacles(read, is_chosen=request.weights is not None),
        ),
        is_fit=fit.passes_gate,
        notes=(
            *fit.candidate.notes,
            *fit.notes,
            *_colourless(images),
            *repair_notes(read.repair),
            *other_weights_notes(read, is_chosen=request.weights is not None),
        ),
    )


def _colourless(images: Tensor) -> tuple[str, ...]:
    """Return what is to be said of grey images for a model that takes colours.

    Clean models show strong findings with such images if they were trained on coloured ones
    (docs/scanners/mbns.md); a model that was trained on grey ones takes three channels as often.
    """
    if images.shape[1] != 3 or bool((images.amax(1) - images.amin(1) > _GREY).any()):
        return ()
    note = (
        "every clean image is grey and the model takes three channels: if it was trained on "
        "images with colours, these are not of their kind, and any finding may come from that"
    )
    return (note,)


def _families() -> list[ArchitectureFamily]:
    return [cls() for _, cls in Registry("architectures").load_all()]


def _candidates(arch: str | None, weights: Weights) -> Sequence[Candidate]:
    if arch is not None and (".py:" in arch or arch.endswith(".py")):
        return [architectures.from_file(arch)(weights)]
    return architectures.identify(weights, families=_families(), name=arch)


def _read_classes(request: ScanRequest) -> tuple[str, ...]:
    assert request.classes is not None
    try:
        text = request.classes.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(
            f"{request.classes}: expected a text file with one class folder per line, in the "
            f"order of the model's outputs ({type(err).__name__})"
        ) from err
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _describe(candidate: Candidate) -> str:
    arguments = ", ".join(f"{k} {v}" for k, v in candidate.arguments.items())
    return f"{candidate.name} ({arguments})" if arguments else candidate.name


def _clean_record(clean: cleanset.CleanSet, fit: fitting.Fit) -> CleanSetRecord:
    choices: list[Choice] = list(fit.choices)
    classes = None if fit.labels is None else int(torch.unique(fit.labels).numel())
    return CleanSetRecord(
        path=clean.path,
        sha256=clean.sha256,
        images=len(clean),
        available=clean.available,
        classes=classes,
        class_names=fit.class_names,
        skipped_files=clean.skipped_files,
        accuracy=fit.accuracy,
        accuracy_interval=fit.accuracy_interval,
        preprocessing={
            "id": fit.preprocessing.id,
            "mean": list(fit.preprocessing.mean),
            "std": list(fit.preprocessing.std),
        },
        choices=tuple(choices),
    )


def _too_few(clean: cleanset.CleanSet) -> list[str]:
    found = []
    if len(clean) < MIN_IMAGES:
        found.append(f"a verdict needs at least {MIN_IMAGES} clean images, got {len(clean)}")
    if clean.labels is not None:
        fewest = min(count for count in clean.class_counts if count)
        if fewest < MIN_PER_CLASS:
            found.append(
                f"a verdict needs at least {MIN_PER_CLASS} clean images of each class, "
                f"one has {fewest}"
            )
    return found


def _obstacles(too_few: list[str], fit: fitting.Fit) -> tuple[str, ...]:
    if fit.passes_gate:
        return tuple(too_few)
    shown = "unknown" if fit.accuracy is None else f"{fit.accuracy:.1%}"
    misfit = (
        f"clean accuracy is {shown}, its lower bound has to reach {fit.gate:.1%} for a test to "
        "mean anything: preprocessing or labels do not fit (--preprocess, --classes)"
    )
    return (*too_few, misfit)
