from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelaudit.checkpoint import Limits, read_checkpoint
from modelaudit.checkpoint._state_dict import USUAL_KEYS
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import net, saved, with_pickle, write

if TYPE_CHECKING:
    from pathlib import Path

    from modelaudit.checkpoint import Checkpoint

STATE = {"w": torch.ones(2), "b": torch.zeros(1)}
OTHER = {"w": torch.zeros(2), "b": torch.zeros(1)}


def read(folder: Path, value: object) -> Checkpoint:
    return read_checkpoint(write(folder, saved(value)))


def damage(folder: Path, value: object) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        read(folder, value)
    return str(caught.value)


@pytest.mark.parametrize("key", [*USUAL_KEYS, "teacher_ema", "my_own_name"])
def test_weights_are_found_under_the_usual_keys(tmp_path: Path, key: str) -> None:
    result = read(
        tmp_path, {"epoch": 3, key: STATE, "optimizer": {"state": {0: {"m": STATE["w"]}}}}
    )
    assert result.state_dict_key == key
    assert result.ignored_keys == ("epoch", "optimizer")
    assert result.weights.tensors["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"ema": OTHER, "model": STATE}, "model"),
        ({"netG": OTHER, "netC": STATE}, "netC"),
        ({"state_dict_ema": OTHER, "state_dict": STATE}, "state_dict"),
        ({"model": {"state_dict": STATE}, "epoch": 1}, "model.state_dict"),
        ({"model": None, "ema": STATE}, "ema"),
        ({"model": "resnet18", "net": STATE}, "net"),
        ({"step": torch.tensor(1), "state_dict": STATE}, "state_dict"),
        ({"a": {"optimizer": 1}, "other": {"model": STATE}}, "other.model"),
    ],
)
def test_usual_key_beats_what_lies_beside_it(
    tmp_path: Path, value: dict[str, Any], key: str
) -> None:
    result = read(tmp_path, value)
    assert result.state_dict_key == key
    assert result.weights.tensors["w"].tolist() == [1, 1]


def test_containers_are_entered_to_a_bounded_depth(tmp_path: Path) -> None:
    path = write(tmp_path, saved({"model": {"net": STATE}}))
    assert read_checkpoint(path).state_dict_key == "model.net"
    with pytest.raises(CorruptCheckpointError, match="no state_dict found under model; top-level"):
        read_checkpoint(path, limits=Limits(max_depth=1))


def test_whole_module_is_found_under_a_key(tmp_path: Path) -> None:
    result = read(tmp_path, {"model": net(), "acc": 0.9})
    assert result.state_dict_key == "model"
    assert "conv.weight" in result.weights.tensors
    assert result.weights.hints["conv"].class_name.endswith("Conv2d")


def test_tensors_beside_an_odd_container_are_the_state_dict(tmp_path: Path) -> None:
    result = read(tmp_path, {"w": torch.ones(1), "history": {"loss": torch.ones(3)}})
    assert list(result.weights.tensors) == ["w"]
    assert result.ignored_keys == ("history",)
    assert result.state_dict_key is None


def test_subclass_of_dict_is_a_container(tmp_path: Path) -> None:
    class Box(dict[str, Any]):
        pass

    Box.__qualname__ = "Box"
    globals()["Box"] = Box
    try:
        content = saved(Box(model=STATE))
    finally:
        del globals()["Box"]
    result = read_checkpoint(write(tmp_path, content))
    assert result.state_dict_key == "model"


def test_two_models_with_nothing_between_them_are_an_error(tmp_path: Path) -> None:
    assert damage(tmp_path, {"left": STATE, "right": OTHER}) == (
        "expected one model, found 2 (left, right); say with --weights which one"
    )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"optimizer": {"state": {0: 1}}, "epoch": 1},
            "no state_dict found; top-level keys: optimizer, epoch",
        ),
        ({}, "no state_dict found; the value is of type dict"),
        ([torch.ones(1)], "no state_dict found; the value is of type list"),
        (3, "no state_dict found; the value is of type int"),
        (torch.ones(1), "no state_dict found; the file holds a single tensor"),
        ({5: torch.ones(1)}, "no state_dict found; top-level keys: 5"),
        (torch.nn.ReLU(), "no state_dict found; the value is of type torch.nn.modules.activation"),
        (
            {str(i): i for i in range(20)},
            "no state_dict found; top-level keys: 0, 1, 2, 3, 4, 5, 6, 7 and 12 more",
        ),
        ({"a\n": 1}, "no state_dict found; top-level keys: a\\n"),
        ({"model": torch.nn.ReLU()}, "no state_dict found under model; the value is of type torch"),
    ],
)
def test_file_without_weights_says_what_it_holds(
    tmp_path: Path, value: object, sentence: str
) -> None:
    assert damage(tmp_path, value).startswith(sentence)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "without data (device meta)"),
    ],
)
def test_tensor_that_is_no_plain_weight_is_told(
    tmp_path: Path, tensor: torch.Tensor, kind: str
) -> None:
    sentence = damage(tmp_path, {"w": torch.ones(1), "odd": tensor})
    assert sentence == f"tensor 'odd' is {kind}; save plain weights"


def test_ignored_keys_are_bounded(tmp_path: Path) -> None:
    result = read(tmp_path, {"model": STATE, **{f"k{i}": i for i in range(300)}})
    assert len(result.ignored_keys) == 201
    assert result.ignored_keys[-1] == "… and 100 more"


def test_key_that_is_only_the_prefix_is_not_stripped(tmp_path: Path) -> None:
    result = read(tmp_path, {"module.": torch.ones(1), "module.w": torch.ones(1)})
    assert list(result.weights.tensors) == ["module.", "module.w"]


# ---- whole modules ----


def test_shared_submodule_is_listed_in_both_places_as_torch_does(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), layer)
    result = read(tmp_path, model)
    assert list(result.weights.tensors) == list(model.state_dict())


def test_absent_parameters_and_children_are_left_out(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    model.register_module("nothing", None)
    model.register_buffer("empty", None)
    result = read(tmp_path, model)
    assert list(result.weights.tensors) == list(model.state_dict())
    assert result.weights.hints[""].children == ("0",)


def test_attributes_that_are_not_plain_or_too_many_are_left_out(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    odd = {"nested": ((((1,),),),), "wide": [0] * 65, "text": "x" * 201, "call": len, "_private": 1}
    model.__dict__.update(odd)
    model.__dict__.update({f"extra{index}": index for index in range(70)})
    hint = read(tmp_path, model).weights.hints[""]
    assert len(hint.attributes) == 64
    assert hint.attributes["extra0"] == 0
    assert hint.attributes["in_features"] == 1
    assert not odd.keys() & hint.attributes.keys()


def test_module_with_slots_and_odd_registries_is_read(tmp_path: Path) -> None:
    from tests.helpers.checkpoint import tensor_instructions, text

    # state (attributes, slots); a registry that is no dict; names that are no text
    module = (
        b"\x80\x02cprivnet\nNet\n)\x81}("
        + text("_modules")
        + b"}"
        + text("_parameters")
        + b"}(K\x01"
        + tensor_instructions()
        + text("w")
        + tensor_instructions()
        + b"u"
        + text("_buffers")
        + b"Nu}\x86b."
    )
    result = read_checkpoint(write(tmp_path, with_pickle(module, {"0": bytes(16)})))
    assert list(result.weights.tensors) == ["w"]
