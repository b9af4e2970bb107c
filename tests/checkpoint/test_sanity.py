from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import net, saved, write

if TYPE_CHECKING:
    from pathlib import Path


def damage(folder: Path, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(write(folder, saved(state)))
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("value", "kind"), [("nan", "NaN"), ("inf", "infinities"), ("-inf", "infinities")]
)
def test_weights_that_are_not_finite_are_unreadable(
    tmp_path: Path, dtype: torch.dtype, value: str, kind: str
) -> None:
    state = dict(net().state_dict())
    for key in ("bn.weight", "body.1.bias"):
        state[key] = state[key].to(dtype)
        state[key][1] = float(value)
    assert damage(tmp_path, state) == (
        f"2 of {len(state)} tensors hold {kind} (first: bn.weight); a verdict would be meaningless"
    )


def test_negative_variance_is_unreadable(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["bn.running_var"][0] = -1e-6
    assert damage(tmp_path, state) == (
        "tensor 'bn.running_var' is a variance and holds negative values; "
        "a verdict would be meaningless"
    )
    assert "'running_var'" in damage(tmp_path, {"running_var": torch.tensor([-1.0])})


def test_zero_variance_and_negative_means_are_readable(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["bn.running_var"].zero_()
    state["bn.running_mean"].fill_(-3)
    assert len(read_checkpoint(write(tmp_path, saved(state))).weights.tensors) == len(state)
