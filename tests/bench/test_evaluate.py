from __future__ import annotations

import torch
from torch import Tensor, nn

from modelaudit.bench.evaluate import accuracy, attack_success_rate, predict
from modelaudit.bench.train import normaliser
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
