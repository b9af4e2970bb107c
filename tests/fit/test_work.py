from __future__ import annotations

import pytest
import torch
from torch import nn

from modelaudit.fit.hypotheses import probes_of
from modelaudit.fit.trial import Hypothesis
from modelaudit.fit.work import multiply_adds
from modelaudit.preprocessing import PRESETS
from tests.helpers.fit import Broken
from tests.helpers.models import initialised, suspect_of, tiny_bn
from tests.helpers.planted import every_parameter_is_free


def tier(sizes: tuple[int, ...], names: tuple[str, ...]) -> list[Hypothesis]:
    presets = [p for p in PRESETS if p.id in names]
    return [
        Hypothesis(candidate=0, input_size=size, preprocessing=preset)
        for size in sizes
        for preset in presets
    ]


def test_convolutions_and_linear_layers_are_counted() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 6, 1, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()
    # 8x8 places of 4 filters of 27 weights; 4x4 places of 6 filters of 2; 5 rows of 6.
    assert multiply_adds(net, 3, 8) == 64 * 4 * 27 + 16 * 6 * 2 + 5 * 6


def test_work_grows_with_the_input() -> None:
    net = nn.Conv2d(1, 2, 3, padding=1)
    assert multiply_adds(net, 1, 32) == 4 * multiply_adds(net, 1, 16)


def test_counting_leaves_the_module_as_it_is() -> None:
    net = initialised(tiny_bn(), 1)
    suspect = suspect_of(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert multiply_adds(net, 3, 8) > 0
    assert every_parameter_is_free(suspect)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(not value.is_meta for value in net.state_dict().values())


@pytest.mark.parametrize("error", [RuntimeError, ValueError, AssertionError, AttributeError])
def test_a_module_that_cannot_run_without_numbers_counts_nothing(error: type[Exception]) -> None:
    def act(_x: torch.Tensor) -> object:
        raise error("no")

    assert multiply_adds(Broken(act), 3, 8) == 0
    assert multiply_adds(nn.Linear(10, 2), 3, 8) == 0


def test_three_normalisations_stand_for_all() -> None:
    names = tuple(p.id for p in PRESETS)
    probes = probes_of(tier((32, 224), names), lambda _h: 1, images=32)
    assert [(h.input_size, h.preprocessing.id) for h in probes] == [
        (size, name) for size in (32, 224) for name in ("none", "cifar10_0.2023", "half")
    ]


def test_a_costly_pair_is_probed_once_and_small_inputs_are_not_asked() -> None:
    asked: list[int] = []

    def work(hypothesis: Hypothesis) -> int:
        asked.append(hypothesis.input_size)
        return {96: 2 * 10**9, 224: 3 * 10**9}[hypothesis.input_size]

    probes = probes_of(tier((64, 96, 224), ("none", "cifar10_0.2023", "half")), work, images=32)
    assert [h.input_size for h in probes] == [64, 64, 64, 96, 96, 96, 224]
    assert probes[-1].preprocessing.id == "cifar10_0.2023"
    assert set(asked) == {96, 224}


def test_a_given_normalisation_is_its_own_probe() -> None:
    only = tier((32, 64), ("gtsrb",))
    assert probes_of(only, lambda _h: 10**12, images=32) == only
