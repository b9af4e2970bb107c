from __future__ import annotations

import argparse
import collections
import datetime
import functools
import hashlib
import pathlib
import pickle
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from modelaudit.checkpoint import read_checkpoint
from tests.helpers.checkpoint import legacy, net, packed, saved, write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from modelaudit.checkpoint import Checkpoint

PROTOCOLS = (2, 3, 4, 5)


def read(folder: Path, content: bytes) -> Checkpoint:
    return read_checkpoint(write(folder, content))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].is_contiguous()
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_state_dict_comes_back_as_saved(tmp_path: Path, protocol: int, is_zip: bool) -> None:
    expected = net().state_dict()
    content = saved(expected, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    result = read(tmp_path, content)
    assert_same(result.weights.tensors, expected)
    assert result.format == ("torch-zip" if is_zip else "torch-legacy")
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.size_bytes == len(content)
    assert result.path == str((tmp_path / "model.pt").resolve())
    assert result.state_dict_key is None
    assert result.stripped_prefix is None
    assert result.ignored_keys == ()
    assert result.findings == ()
    assert not result.weights.hints


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_equal_those_of_torchs_own_loader(tmp_path: Path, is_zip: bool) -> None:
    path = write(tmp_path, saved(net().state_dict(), _use_new_zipfile_serialization=is_zip))
    theirs = torch.load(path, weights_only=True, map_location="cpu")
    assert_same(read_checkpoint(path).weights.tensors, theirs)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_whole_module_of_a_class_that_is_gone_gives_weights_and_hints(
    tmp_path: Path, protocol: int, is_zip: bool
) -> None:
    module = types.ModuleType("privnet")
    exec(  # a class whose module no longer exists when the file is read
        "from torch import nn\n"
        "class PrivateNet(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(2, 3)\n",
        module.__dict__,
    )
    sys.modules["privnet"] = module
    try:
        model = module.PrivateNet()
        with warnings.catch_warnings():
            # torch's legacy writer regrets that it has no source code to put into the file
            warnings.simplefilter("ignore")
            content = saved(model, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    finally:
        del sys.modules["privnet"]
    result = read(tmp_path, content)
    assert_same(result.weights.tensors, model.state_dict())
    assert [f.message for f in result.findings] == [
        "needs class privnet.PrivateNet, which was not imported"
    ]
    assert result.findings[0].code == "MA-F202"
    assert result.findings[0].location
    assert "privnet" not in sys.modules
    assert result.weights.hints[""].class_name == "privnet.PrivateNet"
    assert result.weights.hints[""].children == ("fc",)
    assert result.weights.hints["fc"].class_name == "torch.nn.modules.linear.Linear"


def test_module_of_main_gives_attributes_as_hints(tmp_path: Path) -> None:
    model = net()
    model.__class__.__module__, module = "__main__", model.__class__.__module__
    main = sys.modules["__main__"]
    main.Net = type(model)  # type: ignore[attr-defined]  # a name that only this process knows
    try:
        content = saved(model)
    finally:
        model.__class__.__module__ = module
        del main.Net
    result = read(tmp_path, content)
    assert_same(result.weights.tensors, model.state_dict())
    assert "scratch" not in result.weights.tensors
    hints = result.weights.hints
    assert list(hints) == ["", "conv", "bn", "body", "body.0", "body.1"]
    assert hints[""].class_name == "__main__.Net"
    assert hints[""].children == ("conv", "bn", "body")
    assert hints[""].attributes["label"] == "net"
    assert hints[""].attributes["sizes"] == (1, (2, 3))
    assert "unusual" not in hints[""].attributes
    assert hints["conv"].attributes["stride"] == (2, 2)
    assert hints["conv"].attributes["padding"] == (1, 1)
    assert hints["bn"].attributes["eps"] == 1e-5


@pytest.mark.parametrize(
    ("prefix", "stripped"),
    [
        ("module.", "module."),
        ("_orig_mod.", "_orig_mod."),
        ("module.module.", "module.module."),
        ("module._orig_mod.", "module._orig_mod."),
        ("_orig_mod.module.", "_orig_mod.module."),
        ("model.", "model."),
        ("net.", "net."),
        ("model._orig_mod.", "model._orig_mod."),
        ("module.net.model.", "module.net.model."),
    ],
)
def test_wrapper_prefixes_are_removed(tmp_path: Path, prefix: str, stripped: str) -> None:
    expected = net().state_dict()
    result = read(tmp_path, saved({prefix + key: value for key, value in expected.items()}))
    assert_same(result.weights.tensors, expected)
    assert result.stripped_prefix == stripped


def test_prefix_of_some_keys_only_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    result = read(tmp_path, saved(state))
    assert list(result.weights.tensors) == ["module.a", "b"]
    assert result.stripped_prefix is None


@pytest.mark.parametrize("name", ["model", "net"])
def test_a_pickled_module_keeps_the_names_of_its_parts(tmp_path: Path, name: str) -> None:
    inner = nn.Conv2d(3, 2, 1)
    result = read(tmp_path, saved(nn.Sequential(collections.OrderedDict([(name, inner)]))))
    assert list(result.weights.tensors) == [f"{name}.weight", f"{name}.bias"]
    assert result.stripped_prefix is None


def test_a_lightning_checkpoint_is_read_as_the_network_inside(tmp_path: Path) -> None:
    expected = net().state_dict()
    file = {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": {f"model.{key}": value for key, value in expected.items()},
        "hyper_parameters": {"lr": 0.1},
    }
    result = read(tmp_path, saved(file))
    assert_same(result.weights.tensors, expected)
    assert result.state_dict_key == "state_dict"
    assert result.stripped_prefix == "model."


def test_data_parallel_module_is_unwrapped_with_its_hints(tmp_path: Path) -> None:
    model = net()
    result = read(tmp_path, saved(nn.DataParallel(model)))
    assert_same(result.weights.tensors, model.state_dict())
    assert result.stripped_prefix == "module."
    assert list(result.weights.hints)[:2] == ["", "conv"]
    assert result.weights.hints[""].class_name.endswith(".Net")


def test_averaged_model_is_unwrapped_and_its_counter_ignored(tmp_path: Path) -> None:
    model = net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    result = read(tmp_path, saved(averaged.state_dict()))
    assert_same(result.weights.tensors, model.state_dict())
    assert result.ignored_keys == ("n_averaged",)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_every_weight_dtype_keeps_its_values(
    tmp_path: Path, dtype: torch.dtype, is_zip: bool
) -> None:
    values = torch.tensor([[0, 1, 2], [3, 1, 0]]).to(dtype)
    content = saved({"w": values}, _use_new_zipfile_serialization=is_zip)
    assert_same(read(tmp_path, content).weights.tensors, {"w": values})


def test_views_of_one_storage_come_back_dense(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": base,
        "transposed": base.t(),
        "column": base[:, 2],
        "steps": base[::2, 1::2],
        "scalar": base[1, 1],
        "empty": base[:0],
        "last": base[3:],
        "channels_last": torch.arange(16.0)
        .reshape(1, 4, 2, 2)
        .to(memory_format=torch.channels_last),
    }
    for content in (saved(state), legacy(state)):
        found = read(tmp_path, content).weights.tensors
        assert_same(found, state)
        assert len({t.data_ptr() for t in found.values() if t.numel()}) == 7


def test_parameters_and_tensor_subclasses_are_weights(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    noted = nn.Parameter(torch.ones(3))
    noted.__dict__["note"] = "kept by torch, ignored here"
    buffer = nn.Buffer(torch.ones(4))
    result = read(tmp_path, saved({"p": parameter, "n": noted, "b": buffer}))
    assert {key: tuple(t.shape) for key, t in result.weights.tensors.items()} == {
        "p": (2,),
        "n": (3,),
        "b": (4,),
    }
    assert not any(t.requires_grad for t in result.weights.tensors.values())


def test_metadata_beside_the_weights_never_fails_the_read(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(
            lr=0.1, out=pathlib.PurePosixPath("/a/b"), path=pathlib.Path("x")
        ),
        "history": collections.defaultdict(list, {"acc": [np.float64(0.5), 0.25]}),
        "counts": collections.Counter("aab"),
        "curve": np.arange(3),
        "names": np.array(["a", None], dtype=object),
        "when": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(1),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.Size((1, 2)),
        "partial": functools.partial(print, 1),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "complex": 1 + 2j,
        "tuple keys": {(1, "a"): 1, print: 2, None: 3, 1.5: 4, b"raw": 5, 2**80: 6},
        "bytes": b"\xff\x00",
        "arch": "resnet18",
        "long": "x" * 1000,
        "sparse": torch.eye(2).to_sparse(),
        "deep": functools.reduce(lambda inner, _: [inner], range(200), []),  # type: ignore[arg-type, return-value]  # a nest of lists
    }
    expected = net().state_dict()
    for protocol in PROTOCOLS:
        content = saved({**beside, "model": expected}, pickle_protocol=protocol)
        result = read(tmp_path, content)
        assert_same(result.weights.tensors, expected)
        assert result.state_dict_key == "model"
        assert result.ignored_keys == tuple(beside)
        assert result.weights.metadata == {"arch": "resnet18"}
        mentioned = [finding.message for finding in result.findings]
        assert mentioned == ["mentions builtins.print, which was not imported"]


def test_entries_of_a_state_dict_that_are_no_tensors_are_ignored(tmp_path: Path) -> None:
    result = read(tmp_path, saved({"w": torch.ones(1), "_extra_state": 3, 5: "x"}))
    assert list(result.weights.tensors) == ["w"]
    assert result.ignored_keys == ("_extra_state", "5")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bare_pickle_of_tensors_is_read_without_calling_anything(
    tmp_path: Path, protocol: int
) -> None:
    expected = net().state_dict()
    result = read(tmp_path, pickle.dumps({"net": expected, "epoch": 1}, protocol))
    assert_same(result.weights.tensors, expected)
    assert result.format == "pickle"
    assert result.state_dict_key == "net"


def test_repacked_and_deflated_zip_is_read(tmp_path: Path) -> None:
    import zipfile

    from tests.helpers.checkpoint import members_of

    expected = net().state_dict()
    members = members_of(saved(expected))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = packed(members, compression=method)
        assert_same(read(tmp_path, content).weights.tensors, expected)


def test_big_endian_elements_are_swapped(tmp_path: Path) -> None:
    from tests.helpers.checkpoint import members_of, state_dict_pickle, tensor_instructions

    pickled = state_dict_pickle(
        w=tensor_instructions(numel=2, size=(2,)),
        b=tensor_instructions(key="1", numel=2, size=(2,), kind="torch ByteStorage"),
    )
    content = packed(
        {
            "a/data.pkl": pickled,
            "a/byteorder": b"big",
            "a/data/0": np.array([1.5, -2.0], dtype=">f4").tobytes(),
            "a/data/1": b"\x01\x02",
        }
    )
    found = read(tmp_path, content).weights.tensors
    assert found["w"].tolist() == [1.5, -2.0]
    assert found["b"].tolist() == [1, 2]
    assert len(members_of(content)) == 4


def test_booleans_other_than_zero_and_one_are_true(tmp_path: Path) -> None:
    from tests.helpers.checkpoint import one_tensor

    content = one_tensor(b"\x00\x01\x02\xff", kind="torch BoolStorage")
    assert read(tmp_path, content).weights.tensors["w"].tolist() == [False, True, True, True]


def test_storage_that_no_tensor_uses_is_a_finding(tmp_path: Path) -> None:
    from tests.helpers.checkpoint import state_dict_pickle, tensor_instructions, with_pickle

    pickled = state_dict_pickle(w=tensor_instructions())
    result = read(tmp_path, with_pickle(pickled, {"0": bytes(16), "7": b"hidden"}))
    assert [(f.code, f.location) for f in result.findings] == [("MA-F203", "archive/data/7")]


def test_extension_of_the_name_decides_nothing(tmp_path: Path) -> None:
    from safetensors.torch import save

    state = {"w": torch.ones(2)}
    for name in ("a.pt", "a.safetensors", "a.txt", "a"):
        assert read_checkpoint(write(tmp_path, saved(state), name)).format == "torch-zip"
        assert read_checkpoint(write(tmp_path, save(state), name)).format == "safetensors"


def test_hostile_names_load_untouched(tmp_path: Path) -> None:
    name = "a\n\x1b[31m\u202eb"
    result = read(tmp_path, saved({name: torch.ones(1), "c": torch.ones(1)}))
    assert list(result.weights.tensors) == [name, "c"]


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    content = saved(net())
    path = write(tmp_path, content)
    read_checkpoint(path)
    assert path.read_bytes() == content


def test_result_owns_its_memory(tmp_path: Path) -> None:
    result = read(tmp_path, saved({"w": torch.ones(3)}))
    result.weights.tensors["w"].add_(1)
    assert result.weights.tensors["w"].tolist() == [2, 2, 2]


def test_parsers_do_not_import_torch() -> None:
    import subprocess

    code = "import sys, modelaudit.checkpoint; print('torch' in sys.modules)"
    environment: dict[str, Any] = {"PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
