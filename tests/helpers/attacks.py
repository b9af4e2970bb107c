"""Small data sets, plans and attacks for the tests of `attacks` and `bench`."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from modelaudit.attacks.badnets import BadNetsAttack, BadNetsConfig
from modelaudit.attacks.blend import BlendAttack, BlendConfig
from modelaudit.bench.data import ImageData
from modelaudit.bench.plan import ModelPlan

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def random_images(n: int = 6, *, size: int = 32, seed: int = 0) -> Tensor:
    """Return ``(n, 3, size, size)`` float32 images in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 3, size, size), generator=generator)
    return pixels.float() / 255.0


def tiny_data(
    *, n_train: int = 60, n_test: int = 12, classes: int = 4, held_out: int = 8
) -> ImageData:
    """Return random images whose brightness tells the class."""

    def make(n: int, seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % classes
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(64, (n, 3, 32, 32), generator=generator)
        return (noise + 48 * labels.view(n, 1, 1, 1)).to(torch.uint8), labels

    train_images, train_labels = make(n_train, 1)
    test_images, test_labels = make(n_test, 2)
    return ImageData(
        name="tiny",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=tuple(f"class {i}" for i in range(classes)),
        attacker_count=n_train - held_out,
    )


def tiny_plan(id_: str = "tiny", **changes: object) -> ModelPlan:
    """Return the plan of a model that trains in a second."""
    values = {"seed": 3, "epochs": 2, "width": 4, "batch_size": 16, "peak_learning_rate": 0.05}
    return ModelPlan(id=id_, **{**values, **changes})  # type: ignore[arg-type]  # a test's shorthand


def badnets(*, size: int = 32, seed: int = 5, classes: int = 10, **config: object) -> BadNetsAttack:
    """Return BadNets with some options changed."""
    return BadNetsAttack(
        BadNetsConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=classes,
        seed=seed,
    )


def blend(*, size: int = 32, seed: int = 5, classes: int = 10, **config: object) -> BlendAttack:
    """Return Blend with some options changed."""
    return BlendAttack(
        BlendConfig(**config),  # type: ignore[arg-type]  # a test's shorthand
        shape=(3, size, size),
        num_classes=classes,
        seed=seed,
    )


def write_pack(
    path: Path, *, n_train: int = 40, n_test: int = 8, classes: int = 4, **extra: object
) -> None:
    """Write a pack of JPEG images, each of one colour."""
    arrays: dict[str, object] = {"classes": np.array([f"class {i}" for i in range(classes)])}
    for part, n in (("train", n_train), ("test", n_test)):
        labels = np.arange(n) % classes
        jpegs = [_jpeg(40 * int(label) + i % 3) for i, label in enumerate(labels)]
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(jpegs), dtype=np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, jpegs)]).astype(np.int64)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    np.savez(path, **{**arrays, **extra})  # type: ignore[arg-type]  # numpy wants arrays by name


def _jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(buffer, "JPEG")
    return buffer.getvalue()
