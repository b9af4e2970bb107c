from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from modelaudit.attacks.label_maps import CleanLabel, SourceSpecific
from modelaudit.bench.evaluate import (
    accuracy,
    attack_success_rate,
    cover_accuracy,
    non_victim_accuracy,
    predict,
)
from modelaudit.bench.train import normaliser
from modelaudit.errors import ConfigError
from tests.helpers.attacks import badnets

NONE = normaliser("none")


class CornerReader(nn.Module):
    """Says `label` if the last pixel is white, else the class that the first pixel encodes."""

    def __init__(self, label: int | None) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        encoded = (images[:, 0, 0, 0] * 255).round().long()
        white = images[:, 0, -1, -1] == 1.0
        shifted = (encoded + 1) % 10 if self.label is None else torch.full_like(encoded, self.label)
        return nn.functional.one_hot(torch.where(white, shifted, encoded), 10).float()


def encoded_images(labels: Tensor) -> Tensor:
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    images[:, :, 0, 0] = labels.view(-1, 1).to(torch.uint8)
    return images


def test_accuracy_is_the_share_of_right_predictions() -> None:
    labels = torch.arange(20) % 10
    images = encoded_images(labels)
    wrong = labels.clone()
    wrong[:5] = 9 - wrong[:5]
    assert accuracy(CornerReader(3), images, labels, NONE) == 1.0
    assert accuracy(CornerReader(3), images, wrong, NONE) == 0.75


def test_all_to_one_rate_leaves_out_the_target_class() -> None:
    labels = torch.arange(20) % 10
    model = CornerReader(3)
    attack = badnets(target=3)
    assert attack_success_rate(model, encoded_images(labels), labels, NONE, attack) == 1.0
    # A model that ignores the trigger is right on the target class, which must not count.
    other = badnets(target=3, pattern="random_colour")
    assert attack_success_rate(model, encoded_images(labels), labels, NONE, other) == 0.0


def test_all_to_all_rate_counts_every_image() -> None:
    labels = torch.arange(20) % 10
    attack = badnets(label_map="all")
    images = encoded_images(labels)
    assert attack_success_rate(CornerReader(None), images, labels, NONE, attack) == 1.0
    assert attack_success_rate(CornerReader(0), images, labels, NONE, attack) == 0.1


def test_batch_size_changes_no_prediction() -> None:
    labels = torch.arange(20) % 10
    images = encoded_images(labels)
    for attack in (None, badnets(target=4)):
        one = predict(CornerReader(4), images, NONE, attack=attack, batch_size=3)
        two = predict(CornerReader(4), images, NONE, attack=attack)
        assert torch.equal(one, two)


def test_source_rate_counts_the_victim_class_only() -> None:
    labels = torch.arange(20) % 10
    attack = badnets(target=3)
    attack.label_map = SourceSpecific(victim=4, target=3)
    images = encoded_images(labels)
    assert attack_success_rate(CornerReader(3), images, labels, NONE, attack) == 1.0
    assert attack_success_rate(CornerReader(5), images, labels, NONE, attack) == 0.0


def test_clean_label_rate_leaves_out_the_target_class() -> None:
    labels = torch.arange(20) % 10
    attack = badnets(target=3, pattern="random_colour")  # which the model does not see
    attack.label_map = CleanLabel(target=3)
    assert attack_success_rate(CornerReader(3), encoded_images(labels), labels, NONE, attack) == 0.0


def test_non_victims_count_where_they_keep_their_label() -> None:
    labels = torch.arange(20) % 10
    images = encoded_images(labels)
    attack = badnets(target=3)
    assert non_victim_accuracy(CornerReader(3), images, labels, NONE, attack) is None
    attack.label_map = SourceSpecific(victim=4, target=3)
    # The model sends every triggered image to 3: right for class 3 only, one of the nine others.
    found = non_victim_accuracy(CornerReader(3), images, labels, NONE, attack)
    assert found == pytest.approx(1 / 9)
    unseen = badnets(target=3, pattern="random_colour")
    unseen.label_map = attack.label_map
    assert non_victim_accuracy(CornerReader(3), images, labels, NONE, unseen) == 1.0


def test_victims_alone_have_no_others() -> None:
    attack = badnets(target=3)
    attack.label_map = SourceSpecific(victim=4, target=3)
    labels = torch.full((4,), 4)
    with pytest.raises(ConfigError, match="other classes than the victim"):
        non_victim_accuracy(CornerReader(3), encoded_images(labels), labels, NONE, attack)


def test_cover_accuracy_is_measured_under_the_cover_of_the_image_before() -> None:
    labels = torch.arange(20) % 10
    images = encoded_images(labels)
    attack = badnets(target=3)
    assert cover_accuracy(CornerReader(3), images, labels, NONE, attack) is None
    attack.plan = replace(attack.plan, cover_rate=0.1)

    def cover(
        images: Tensor, *, donors: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        assert donors is not None
        return donors.where(images[:, :1, :1, :1] * 255 < 5, images)

    attack.trigger.cover = cover  # type: ignore[method-assign]  # a test's stub
    # Images of classes 0 to 4 become the image before them, the others stay.
    for batch_size in (3, 20):
        predictions = predict(
            CornerReader(3), images, NONE, attack=attack, is_cover=True, batch_size=batch_size
        )
        assert predictions.tolist() == [9, 0, 1, 2, 3, 5, 6, 7, 8, 9] * 2
    assert cover_accuracy(CornerReader(3), images, labels, NONE, attack) == 0.5
