"""Other weights of the same network beside those that are read."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import ConfigError, CorruptCheckpointError
from tests.helpers.checkpoint import net, saved, write

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

State = dict[str, "Tensor"]


class Point(NamedTuple):
    """Pickles as a call of its class."""

    x: object
    y: int


class Odd:
    """Has attributes."""


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
    "key",
    ["optimizer", "optimiser", "optim", "optimizer_states", "optimizer_state_dict", "exp_avg_sq"],
)
def test_what_an_optimiser_keeps_is_no_other_weights(tmp_path: Path, key: str) -> None:
    value = {"state_dict": state(), key: state(0.1), "opt": {"momentum_buffer": state(0.2)}}
    assert others(tmp_path, value) == ()
    # The same container under another key counts there, in whatever order they come.
    hidden = state(0.1)
    for value in ({key: hidden, "best": hidden}, {"best": hidden, key: hidden}):
        assert others(tmp_path, {"state_dict": state(), **value}) == ("best",)
    assert others(tmp_path, {"state_dict": state(), "optimal_model": hidden}) == ("optimal_model",)


@pytest.mark.parametrize(
    "beside",
    [
        {"scales": {name: torch.ones(()) for name in state()}},
        {"metrics": {"confusion": torch.ones(2, 2), "costs": torch.ones(2, 2)}},
        {"head": {"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(2)}},
        {"curve": [torch.ones(1), torch.ones(2)]},
    ],
)
def test_other_tensors_are_no_other_weights(tmp_path: Path, beside: dict[str, object]) -> None:
    assert others(tmp_path, {"state_dict": state(), **beside}) == ()


def test_another_network_is_told_whatever_its_shapes(tmp_path: Path) -> None:
    wide = {"conv.weight": torch.ones(8, 3, 3, 3), "body.1.weight": torch.ones(2, 8)}
    assert others(tmp_path, {"state_dict": state(), "state_dict_ema": wide}) == ("state_dict_ema",)


def test_one_tensor_that_differs_makes_other_weights(tmp_path: Path) -> None:
    own = state()
    # Everything else is the very tensors of the weights that are read.
    average = {**own, "body.1.weight": own["body.1.weight"] + 1}
    assert others(tmp_path, {"state_dict": own, "ema": average}) == ("ema",)


def test_prefixes_do_not_count_key_by_key(tmp_path: Path) -> None:
    mixed = {f"module.{name}": t for name, t in state(0.1).items()}
    mixed["conv.weight"] = mixed.pop("module.conv.weight")
    mixed["loss.scale"] = torch.ones(1)
    value = {"state_dict": {f"model.{name}": t for name, t in state().items()}, "ema": mixed}
    assert others(tmp_path, value) == ("ema",)


def test_what_is_in_or_around_weights_is_looked_at_too(tmp_path: Path) -> None:
    copy = {name: t.clone() for name, t in state().items()}
    inner = {"state_dict": state(), "model_ema": {**copy, "inner": state(0.1)}}
    assert others(tmp_path, inner) == ("model_ema.inner",)
    around = {**state(0.1), "state_dict": state()}
    assert others(tmp_path, around) == (".",)
    deep: object = {"ema": state(0.1)}
    for _ in range(100):
        deep = [deep]
    value = {"state_dict": state(), "args": deep, "state_dict_ema": state(0.2)}
    assert len(others(tmp_path, value)) == 2


def test_attributes_arguments_and_pairs_are_looked_at(tmp_path: Path) -> None:
    value = {
        "state_dict": state(),
        "args": argparse.Namespace(**{name.replace(".", "_"): t for name, t in state(1).items()}),
        "point": Point(state(0.1), 2),
        "pairs": list(state(0.3).items()),
    }
    assert others(tmp_path, value) == ("args", "pairs", "point.arguments.0")


def test_the_same_storage_under_other_objects_is_no_other_weights(tmp_path: Path) -> None:
    model = net()
    value = {
        "state_dict": model.state_dict(),
        "params": list(model.parameters()),
        "again": model.state_dict(),
        "part": {name: t for name, t in model.state_dict().items() if name.startswith("b")},
    }
    assert others(tmp_path, value) == ()


def test_a_circle_ends(tmp_path: Path) -> None:
    circle: list[object] = [1]
    circle.append({"again": circle, "ema": state(0.1)})
    assert others(tmp_path, {"state_dict": state(), "loop": circle}) == ("loop.1.ema",)


def test_an_object_whose_state_is_itself_ends(tmp_path: Path) -> None:
    # Protocol 2: an object that is memoised, pushed again as its own state, and built.
    odd = Odd()
    odd.__dict__["self"] = odd
    assert others(tmp_path, {"state_dict": state(), "odd": odd, "ema": state(0.1)}) == ("ema",)


def test_the_search_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelaudit.checkpoint._others._MAX_CONTAINERS", 50)
    path = write(tmp_path, saved({"state_dict": state(), "log": [[i] for i in range(60)]}))
    with pytest.raises(CorruptCheckpointError, match="more than 50 containers, which is the limit"):
        read_checkpoint(path)
    monkeypatch.undo()
    # More copies than anybody keeps are not compared, and count as others.
    monkeypatch.setattr("modelaudit.checkpoint._others._MAX_COMPARED", 2)
    value = {"state_dict": state(), **{f"copy{i}": state() for i in range(4)}}
    assert others(tmp_path, value) == ("copy0", "copy1")
    monkeypatch.undo()
    monkeypatch.setattr("modelaudit.checkpoint._others._MAX_NAMED", 2)
    value = {"state_dict": state(), **{f"epoch{i}": state(0.1) for i in range(5)}}
    *named, more = others(tmp_path, value)
    assert (len(named), more) == (2, "… and 3 more")
    path = write(tmp_path, saved({"state_dict": state(), "odd": {"module." * 200: torch.ones(2)}}))
    assert read_checkpoint(path).other_weights == ()


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


def test_the_keys_that_are_told_can_be_given(tmp_path: Path) -> None:
    value = {
        **state(0.1),
        "state_dict": state(),
        "history": [{"best": state(0.2)}],
        "epochs": {3: state(0.3)},
    }
    path = write(tmp_path, saved(value))
    told = read_checkpoint(path).other_weights
    assert told == (".", "epochs.3", "history.0.best")
    for key, shift in zip(told, (0.1, 0.3, 0.2), strict=True):
        read = read_checkpoint(path, key=key)
        assert torch.equal(read.weights.tensors["conv.weight"], state(shift)["conv.weight"])
        assert "state_dict" in read.other_weights


def test_a_key_without_anything_is_a_usage_error(tmp_path: Path) -> None:
    path = write(tmp_path, saved({"state_dict": state(), "epoch": 3}))
    with pytest.raises(ConfigError, match=r"nothing under 'a\\x1b\[31m'; top"):
        read_checkpoint(path, key="a\x1b[31m")
    with pytest.raises(
        ConfigError,
        match=r"--weights expects a key of the file, there is nothing under 'ema'; "
        r"top-level keys: state_dict, epoch",
    ):
        read_checkpoint(path, key="ema")
