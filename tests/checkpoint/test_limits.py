from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import Limits, read_checkpoint
from modelaudit.errors import ConfigError, CorruptCheckpointError
from tests.helpers.checkpoint import net, saved, write

if TYPE_CHECKING:
    from pathlib import Path


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="limit max_tensors must be at least 1, got 0"):
        Limits(max_tensors=0)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (Limits(max_tensors=1), "has 7 tensors, the limit is 1"),
        (Limits(max_parameters=10), "more than 10 parameters"),
        (Limits(max_pickle_bytes=100), "data.pkl has"),
        (Limits(max_opcodes=10), "more than 10 instructions"),
        (Limits(max_file_bytes=100), "the limit is 100"),
        (Limits(max_key_length=3), "a tensor's name has 4 characters, the limit is 3"),
        (Limits(max_members=2), "members, the limit is 2"),
    ],
)
def test_each_limit_is_enforced(tmp_path: Path, limits: Limits, sentence: str) -> None:
    state = {key: value for key, value in net().state_dict().items() if "bn" not in key}
    state |= {"bn.weight": torch.ones(4), "bn.bias": torch.ones(4), "long.weight": torch.ones(2)}
    assert len(state) == 7
    path = write(tmp_path, saved(state))
    assert read_checkpoint(path).weights.tensors.keys() == state.keys()
    with pytest.raises(CorruptCheckpointError, match=sentence):
        read_checkpoint(path, limits=limits)


def test_many_views_of_one_storage_are_bounded_together(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    path = write(tmp_path, saved({str(i): base for i in range(100)}))
    limits = Limits(expansion_floor_bytes=1000)
    with pytest.raises(CorruptCheckpointError, match=r"would expand from .* to 400,000 bytes"):
        read_checkpoint(path, limits=limits)
    assert len(read_checkpoint(path).weights.tensors) == 100
