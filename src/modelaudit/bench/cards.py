"""Model cards: what is known of each trained model, as one JSON file per model."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modelaudit import __version__
from modelaudit.bench.evaluate import (
    accuracy,
    attack_success_rate,
    cover_accuracy,
    non_victim_accuracy,
)
from modelaudit.bench.files import write_whole
from modelaudit.bench.train import normaliser
from modelaudit.bench.typed import build_config
from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelaudit.attacks.base import Attack
    from modelaudit.bench.data import ImageData
    from modelaudit.bench.plan import ModelPlan
    from modelaudit.bench.train import TrainingRun

#: version of the card's fields; in version 1 ``population`` was the plan's name
CARD_VERSION = 2

#: fields that card and plan share and that decide what the weights are, beside data and attack
SCHEDULE_FIELDS = (
    "architecture",
    "width",
    "seed",
    "epochs",
    "batch_size",
    "peak_learning_rate",
    "normaliser",
    "flip",
    "starts_from",
    "surrogate",
    "limit",
    "image_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One trained model.

    Attributes:
        id: the model's id in its plan.
        plan: name of the plan under which it was trained.
        checkpoint: file name of the weights.
        checkpoint_sha256: of that file.
        dataset: name of the data.
        classes: number of classes K.
        architecture: name as in the plan.
        width: channels of the first stage.
        seed: of the plan.
        epochs: of the plan.
        batch_size: of the plan.
        peak_learning_rate: of the plan.
        normaliser: id of the preset that the model expects.
        flip: whether training mirrored images.
        attacker_first: first training image that the attacker used.
        attacker_last: last one.
        held_out_first: first training image that the model never saw (the defender's).
        held_out_last: last one.
        acc: fraction of all clean test images that are classified correctly.
        final_loss: mean training loss of the last epoch; None without one.
        attack: id of the attack, or None for a clean model.
        attack_config: resolved fields of the attack's config.
        label_map: id of the label map.
        target: target label of an all-to-one attack.
        stage: trigger before or after augmentation.
        poison_count: images that are poisoned; where each batch is drawn anew, how many an epoch is
            expected to hold. Older cards have 0 there.
        poison_indices_sha256: of the sorted indices as decimal numbers joined by commas.
        cover_count: images that carry something like the trigger under their true label, counted
            likewise.
        trigger_sha256: hash of the trigger's state.
        twin: id of the clean twin.
        twin_acc: its accuracy.
        asr: attack success rate; eligible test images only.
        benign_asr: the twin's rate of predicting the attacker's label on triggered images.
        gate_passed: whether the model may be used under the label of its attack; None before it is
            judged.
        gate_reasons: why not.
        seconds: training time.
        threads: CPU threads.
        hardware: processor.
        versions: of Python, torch and this package.
        population: A or B; None on a card of version 1 until it is judged again.
        starts_from: of the plan.
        surrogate: of the plan.
        limit: of the plan.
        image_size: of the plan.
        image_shape: channels, height and width of the images; empty on older cards, whose images
            were in colour, and of 32 pixels unless `image_size` says otherwise.
        victim: source label of a source-specific attack.
        device: where it was trained.
        precision: of the convolutions in training; None on older cards, whose models were
            all trained in bfloat16.
        cover_acc: accuracy under something like the trigger that must not work: the noise accuracy
            of WaNet, cross of IAD and SSDT, negative of Bpp; None where the attack has no such.
        non_victim_acc: accuracy on triggered images of other classes than the victim.
        card_version: of these fields.
    """

    id: str
    plan: str
    checkpoint: str
    checkpoint_sha256: str
    dataset: str
    classes: int
    architecture: str
    width: int
    seed: int
    epochs: int
    batch_size: int
    peak_learning_rate: float
    normaliser: str
    flip: bool
    attacker_first: int
    attacker_last: int
    held_out_first: int
    held_out_last: int
    acc: float
    final_loss: float | None
    attack: str | None
    attack_config: Mapping[str, object]
    label_map: str | None
    target: int | None
    stage: str | None
    poison_count: int
    poison_indices_sha256: str | None
    cover_count: int
    trigger_sha256: str | None
    twin: str | None
    twin_acc: float | None
    asr: float | None
    benign_asr: float | None
    gate_passed: bool | None
    gate_reasons: tuple[str, ...]
    seconds: float
    threads: int
    hardware: str
    versions: Mapping[str, str]
    population: str | None = None
    starts_from: str | None = None
    surrogate: str | None = None
    limit: int | None = None
    image_size: int | None = None
    image_shape: tuple[int, ...] = ()
    victim: int | None = None
    device: str = "cpu"
    precision: str | None = None
    cover_acc: float | None = None
    non_victim_acc: float | None = None
    card_version: int = CARD_VERSION


def describe(
    plan: ModelPlan,
    plan_name: str,
    data: ImageData,
    attack: Attack[object] | None,
    run: TrainingRun,
    checkpoint: Path,
    *,
    device: torch.device,
) -> ModelCard:
    """Measure a trained model on the test images and write its card, all but what needs the twin.

    Args:
        plan: what was trained.
        plan_name: name of the plan it belongs to.
        data: the data that it was trained on, whole.
        attack: the attack that it was trained under, or None; on the CPU.
        run: the finished training.
        checkpoint: file of the weights.
        device: where to measure.
    """
    preprocessing = normaliser(plan.normaliser)
    seen = data.attacker_count if plan.limit is None else min(plan.limit, data.attacker_count)
    poison_count = cover_count = 0
    poison: list[int] = []
    if attack is not None:
        labels = data.train_labels[:seen]
        if attack.plan.granularity == "static":
            drawn, cover = attack.plan.draw(labels)
            poison, poison_count, cover_count = drawn.tolist(), len(drawn), len(cover)
        else:
            poison_count, cover_count = attack.counts_per_epoch(labels, batch_size=plan.batch_size)
    model = run.model.to(device)
    images, labels = data.test_images.to(device), data.test_labels.to(device)
    asr = cover_acc = non_victim_acc = config = None
    if attack is not None:
        attack.to(device)
        asr = attack_success_rate(model, images, labels, preprocessing, attack)
        cover_acc = cover_accuracy(model, images, labels, preprocessing, attack)
        non_victim_acc = non_victim_accuracy(model, images, labels, preprocessing, attack)
        attack.to(torch.device("cpu"))
        config = {f.name: getattr(attack.config, f.name) for f in fields(attack.config_type)}
    acc = accuracy(model, images, labels, preprocessing)
    model.to("cpu")
    return ModelCard(
        id=plan.id,
        plan=plan_name,
        checkpoint=checkpoint.name,
        checkpoint_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        dataset=plan.dataset,
        classes=len(data.classes),
        **{name: getattr(plan, name) for name in SCHEDULE_FIELDS},
        image_shape=data.shape,
        attacker_first=0,
        attacker_last=seen - 1,
        held_out_first=data.attacker_count,
        held_out_last=len(data.train_images) - 1,
        acc=acc,
        final_loss=run.final_loss,
        attack=plan.attack,
        attack_config=config or {},
        label_map=None if attack is None else attack.label_map.id,
        target=None if attack is None else getattr(attack.label_map, "target", None),
        victim=None if attack is None else getattr(attack.label_map, "victim", None),
        stage=None if attack is None else attack.plan.stage,
        poison_count=poison_count,
        poison_indices_sha256=_hash_of(poison) if poison else None,
        cover_count=cover_count,
        trigger_sha256=None if attack is None else attack.trigger.state_hash(),
        twin=None,
        twin_acc=None,
        asr=asr,
        benign_asr=None,
        gate_passed=None,
        gate_reasons=(),
        seconds=round(run.seconds, 1),
        threads=torch.get_num_threads(),
        hardware=processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        versions={
            "modelaudit": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        population=plan.population,
        device=device.type,
        precision=run.precision,
        cover_acc=cover_acc,
        non_victim_acc=non_victim_acc,
    )


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card atomically, with the fields in their order."""
    record = {
        **{name: getattr(card, name) for name in ModelCard.__dataclass_fields__},
        "attack_config": dict(card.attack_config),
        "versions": dict(card.versions),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode("utf-8"))


def read_card(path: Path) -> ModelCard:
    """Read a card, of any version.

    Raises:
        ConfigError: the file is missing, no JSON, or has other fields than a card.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"expected a model card at {str(path)!r}, found {err}") from err
    if not isinstance(record, dict):
        raise ConfigError(f"expected a JSON object in {str(path)!r}, found {type(record).__name__}")
    if record.get("card_version") == 1:
        record |= {"plan": record.get("population"), "population": None}
    return build_config(ModelCard, record | {"card_version": CARD_VERSION})


def checkpoint_of(card: ModelCard, folder: Path) -> Path:
    """Return the file of a model's weights.

    Args:
        card: the model's.
        folder: of its population.

    Raises:
        ConfigError: the file cannot be read, or is not the one that the card names.
    """
    path = folder / "models" / card.checkpoint
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as err:
        raise ConfigError(
            f"expected the weights that the card of {card.id!r} names at {str(path)!r}, found {err}"
        ) from err
    if digest != card.checkpoint_sha256:
        raise ConfigError(
            f"expected the weights that the card of {card.id!r} names at {str(path)!r}, SHA-256 "
            f"{card.checkpoint_sha256}, found {digest}; put back the file that it was written for"
        )
    return path


def _hash_of(indices: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
