from __future__ import annotations

import pytest
import torch

from modelaudit.attacks.label_maps import AllToAll, AllToOne, CleanLabel, SourceSpecific
from modelaudit.errors import ConfigError

LABELS = torch.arange(10)


def test_all_to_all_is_a_bijection_without_fixed_points() -> None:
    mapped = AllToAll(num_classes=10).poisoned_label(LABELS)
    assert sorted(mapped.tolist()) == LABELS.tolist()
    assert not (mapped == LABELS).any()


def test_all_to_all_counts_every_image() -> None:
    label_map = AllToAll(num_classes=10)
    assert label_map.train_eligible(LABELS).all()
    assert label_map.test_eligible(LABELS).all()


def test_all_to_all_that_moves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="shift"):
        AllToAll(num_classes=10, shift=20)


def test_all_to_one_excludes_the_target_class() -> None:
    label_map = AllToOne(target=3)
    assert label_map.poisoned_label(LABELS).tolist() == [3] * 10
    assert (~label_map.test_eligible(LABELS)).nonzero().flatten().tolist() == [3]
    assert (~label_map.train_eligible(LABELS)).nonzero().flatten().tolist() == [3]


def test_source_specific_leaves_the_other_classes() -> None:
    label_map = SourceSpecific(victim=2, target=7)
    expected = LABELS.tolist()
    expected[2] = 7
    assert label_map.poisoned_label(LABELS).tolist() == expected
    assert label_map.test_eligible(LABELS).nonzero().flatten().tolist() == [2]
    assert label_map.train_eligible(LABELS).nonzero().flatten().tolist() == [2]


def test_source_specific_needs_two_classes() -> None:
    with pytest.raises(ConfigError, match="differ"):
        SourceSpecific(victim=2, target=2)


def test_clean_label_poisons_only_the_target_class() -> None:
    label_map = CleanLabel(target=4)
    assert label_map.train_eligible(LABELS).nonzero().flatten().tolist() == [4]
    assert (~label_map.test_eligible(LABELS)).nonzero().flatten().tolist() == [4]
    assert label_map.poisoned_label(LABELS).tolist() == [4] * 10


def test_success_is_the_attackers_label() -> None:
    predictions = torch.tensor([1, 1, 3])
    labels = torch.tensor([0, 1, 2])
    assert AllToAll(num_classes=4).success(predictions, labels).tolist() == [True, False, True]
