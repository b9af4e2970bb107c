from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.base import Batch
from modelaudit.attacks.plan import Granularity, PoisonPlan, Stage
from modelaudit.bench.batches import augment, draw_poison, prepare_batch
from tests.helpers.attacks import badnets, random_images


def test_crop_and_flip_equal_a_loop_over_the_images() -> None:
    images = random_images(12)
    got = augment(images, flip=True, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    top = torch.randint(9, (12, 1), generator=generator)
    left = torch.randint(9, (12, 1), generator=generator)
    mirrored = torch.rand(12, 1, generator=generator) < 0.5
    assert 0 < int(mirrored.sum()) < 12
    for i, image in enumerate(images):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crop = padded[:, top[i] : top[i] + 32, left[i] : left[i] + 32]
        assert torch.equal(got[i], crop.flip(-1) if mirrored[i] else crop)


def test_unflipped_images_are_only_shifted() -> None:
    ramp = torch.arange(32.0).expand(3, 32, 32)[None].repeat(20, 1, 1, 1)
    row = augment(ramp, flip=False, generator=torch.Generator().manual_seed(0))[:, 0, 16, 4:28]
    assert (row.diff(dim=1) == 1).all()


def batch_of(n: int) -> Batch:
    return Batch(
        images=torch.full((n, 3, 32, 32), 0.4),
        labels=torch.arange(n) % 4,
        indices=torch.arange(n),
        is_poison=torch.ones(n, dtype=torch.bool),
        is_cover=torch.zeros(n, dtype=torch.bool),
    )


@pytest.mark.parametrize("stage", ["pre", "post"])
def test_stage_decides_whether_augmentation_moves_the_trigger(stage: Stage) -> None:
    attack = badnets(classes=4, pattern="white", stage=stage, target=2)
    prepared = prepare_batch(
        batch_of(64),
        attack,
        flip=True,
        generator=torch.Generator().manual_seed(0),
        attack_generator=torch.Generator(),
    )
    in_corner = (prepared.images[:, :, 29:, 29:] == 1.0).flatten(1).all(1)
    assert prepared.labels.tolist() == [2] * 64
    assert in_corner.all() if stage == "post" else 0 < int(in_corner.sum()) < 40


@pytest.mark.parametrize(
    ("granularity", "low", "high"), [("per_batch", 16, 16), ("per_access", 5, 30)]
)
def test_dynamic_plans_draw_within_the_batch(granularity: Granularity, low: int, high: int) -> None:
    attack = badnets(classes=4, target=2)
    attack.plan = PoisonPlan(label_map=attack.label_map, rate=0.25, granularity=granularity)
    prepared = prepare_batch(
        draw_poison(batch_of(64), attack, generator=torch.Generator().manual_seed(0)),
        attack,
        flip=False,
        generator=torch.Generator().manual_seed(0),
        attack_generator=torch.Generator().manual_seed(0),
    )
    assert low <= int((prepared.labels != torch.arange(64) % 4).sum()) <= high


@pytest.mark.gpu
def test_batches_are_the_same_on_the_gpu() -> None:
    attack = badnets(classes=4, target=2)
    attack.plan = PoisonPlan(label_map=attack.label_map, rate=0.25, granularity="per_access")
    prepared = []
    for device in ("cpu", "cuda"):
        batch = batch_of(64)
        moved = Batch(**{name: getattr(batch, name).to(device) for name in batch.__slots__})
        prepared.append(
            prepare_batch(
                draw_poison(moved, attack, generator=torch.Generator().manual_seed(0)),
                attack,
                flip=True,
                generator=torch.Generator().manual_seed(0),
                attack_generator=torch.Generator().manual_seed(0),
            )
        )
    assert torch.equal(prepared[0].images, prepared[1].images.cpu())
    assert torch.equal(prepared[0].labels, prepared[1].labels.cpu())
