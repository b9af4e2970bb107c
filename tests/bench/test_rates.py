from __future__ import annotations

import torch
from torch import Tensor, nn

from modelaudit.bench.evaluate import attack_success_rate
from modelaudit.bench.rates import Rates, measure_rates
from modelaudit.bench.train import normaliser
from tests.helpers.attacks import badnets, tiny_data

CPU = torch.device("cpu")
NORMAL = normaliser("cifar10_0.2023")


class Constant(nn.Module):
    """Says the same class to everything."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        return torch.eye(4)[self.label].expand(len(images), 4)


class Corner(nn.Module):
    """Looks at the lower right pixel alone: class 2 where it is dark, else class 3."""

    def forward(self, images: Tensor) -> Tensor:
        is_dark = images[:, 0, -1, -1] < 0
        return torch.stack([0.0 * is_dark, 0.0 * is_dark, 1.0 * is_dark, 0.5 + 0.0 * is_dark], 1)


def test_a_constant_answer_has_the_rates_of_its_class() -> None:
    data = tiny_data()
    attack = badnets(classes=4, target=2)
    # of twelve images three are of each class; nine are eligible, three of them of class 1
    assert measure_rates(Constant(2), data, NORMAL, attack, device=CPU) == Rates(
        acc=0.25, asr=1.0, ra=0.0
    )
    assert measure_rates(Constant(1), data, NORMAL, attack, device=CPU) == Rates(
        acc=0.25, asr=0.0, ra=3 / 9
    )


def test_without_an_attack_there_is_only_accuracy() -> None:
    assert measure_rates(Constant(0), tiny_data(), NORMAL, None, device=CPU) == Rates(acc=0.25)


def test_attack_success_is_that_of_the_cards() -> None:
    data, attack = tiny_data(), badnets(classes=4, target=2, label_map="all")
    rates = measure_rates(Corner(), data, NORMAL, attack, device=CPU)
    images, labels = data.test_images, data.test_labels
    assert rates.asr == attack_success_rate(Corner(), images, labels, NORMAL, attack)
    assert rates.ra is not None
    assert rates.ra + (rates.asr or 0.0) <= 1.0
