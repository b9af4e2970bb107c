"""Other weights of the same network beside those that are read."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import ConfigError
from tests.helpers.checkpoint import net, saved, write

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

State = dict[str, "Tensor"]


def state(shift: float = 0.0) -> State:
    return {
        name: t + shift if t.is_floating_point() else t for name, t in net().state_dict().items()
    }


def others(folder: Path, value: object, *, key: str | None = None) -> tuple[str, ...]:
    return read_checkpoint(write(folder, saved(value)), key=key).other_weights


def test_a_running_average_and_the_best_epoch_are_told(tmp_path: Path) -> None:
    value = {
        "state_dict": state(),
        "state_dict_ema": {f"module.{name}": t for name, t in state(0.1).items()},
        "history": [{"best": OrderedDict(state(0.2)), "epoch": 3}],
    }
    assert others(tmp_path, value) == ("history.0.best", "state_dict_ema")


def test_a_pickled_module_and_a_list_of_parameters_are_told(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.conv.weight.add_(1)
    shadow = [t + 1 for t in net().parameters()]
    value = {"state_dict": state(), "teacher": model, "ema": {"shadow_params": shadow}}
    assert others(tmp_path, value) == ("ema.shadow_params", "teacher")


def test_half_of_the_tensors_are_enough_and_fewer_are_not(tmp_path: Path) -> None:
    names = list(state())
    half = {name: t + 1 for name, t in state().items() if name in names[: (len(names) + 1) // 2]}
    few = {name: t + 1 for name, t in state().items() if name in names[: len(names) // 2 - 1]}
    assert others(tmp_path, {"state_dict": state(), "half": half, "few": few}) == ("half",)


def test_the_same_weights_a_second_time_are_no_others(tmp_path: Path) -> None:
    own = state()
    value = {"state_dict": own, "best": own, "view": dict(own), "copy": state()}
    assert others(tmp_path, value) == ()


def test_another_dtype_is_other_weights(tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in state().items()}
    assert others(tmp_path, {"state_dict": state(), "half": half}) == ("half",)


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer": {"exp_avg": state(0.1)}},
        {"optimizer_states": [{"momentum": state(0.1)}]},
        {"optimizer": {"state": {0: {"momentum_buffer": torch.ones(4, 3, 3, 3)}}}},
        {"scales": {name: torch.ones(()) for name in state()}},
        {"metrics": [torch.ones(1), torch.ones(2)]},
    ],
)
def test_states_of_training_are_no_other_weights(tmp_path: Path, beside: dict[str, object]) -> None:
    assert others(tmp_path, {"state_dict": state(), **beside}) == ()


def test_a_circle_ends(tmp_path: Path) -> None:
    circle: list[object] = [1]
    circle.append({"again": circle, "ema": state(0.1)})
    assert others(tmp_path, {"state_dict": state(), "loop": circle}) == ("loop.1.ema",)


def test_a_key_says_which_weights_are_read(tmp_path: Path) -> None:
    value = {"state_dict": state(), "avg": {"v1.0": {"model": state(0.5)}}}
    path = write(tmp_path, saved(value))
    for key in ("avg.v1.0", "avg.v1.0.model"):
        read = read_checkpoint(path, key=key)
        assert read.state_dict_key == "avg.v1.0.model"
        assert torch.equal(read.weights.tensors["conv.weight"], state(0.5)["conv.weight"])
        assert read.other_weights == ("state_dict",)
        assert read.ignored_keys == ("state_dict",)
    # With a choice, two models of equal right are no error any more.
    assert others(tmp_path, {"left": state(), "right": state(1.0)}, key="left") == ("right",)


def test_a_key_without_anything_is_a_usage_error(tmp_path: Path) -> None:
    path = write(tmp_path, saved({"state_dict": state(), "epoch": 3}))
    with pytest.raises(
        ConfigError,
        match=r"--weights expects a key of the file, there is nothing under 'ema'; "
        r"top-level keys: state_dict, epoch",
    ):
        read_checkpoint(path, key="ema")
