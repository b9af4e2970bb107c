"""Written files load with plain torch and safetensors, and keep what the container held."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from modelaudit.checkpoint import read_checkpoint
from modelaudit.checkpoint.write import (
    RECORD_KEY,
    check_can_keep_format,
    encode_like,
    encode_safetensors,
)
from modelaudit.errors import ConfigError, CorruptCheckpointError
from tests.helpers.checkpoint import Net, net

if TYPE_CHECKING:
    from pathlib import Path

RECORD = {"method": "prune_mbns", "seed": 0, "config": {"u": 3.0}}


def changed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() + 1 for name, tensor in tensors.items()}


def rewrite(path: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], tuple[str, ...]]:
    read = read_checkpoint(path)
    new = changed(dict(read.weights.tensors))
    rewritten = encode_like(path, new, sha256=read.sha256, record=RECORD)
    out = tmp_path / "out.bin"
    out.write_bytes(rewritten.data)
    return out, new, rewritten.dropped


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_safetensors_hold_tensors_and_the_record() -> None:
    state = net().state_dict()
    data = encode_safetensors(state, record=RECORD)
    assert_same(dict(sorted(load_safetensors(data).items())), dict(sorted(state.items())))


def test_safetensors_bytes_are_the_same_twice() -> None:
    state = net().state_dict()
    assert encode_safetensors(state, record=RECORD) == encode_safetensors(state, record=RECORD)


def test_one_tensor_under_two_names_is_written_twice() -> None:
    tensor = torch.arange(4.0)
    loaded = load_safetensors(encode_safetensors({"a": tensor, "b": tensor}, record=RECORD))
    assert torch.equal(loaded["a"], tensor)
    assert torch.equal(loaded["b"], tensor)


def test_a_bare_state_dict_loads_strictly_and_carries_the_record(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(net().state_dict(), path)
    out, new, dropped = rewrite(path, tmp_path)
    state = torch.load(out, weights_only=True)
    assert_same(dict(state), new)
    assert isinstance(state, OrderedDict)
    assert state._metadata[RECORD_KEY] == RECORD
    assert dropped == ()
    Net().load_state_dict(state, strict=True)
    assert_same(dict(read_checkpoint(out).weights.tensors), new)


def test_nesting_prefix_dtype_and_plain_entries_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    state = {
        f"module.{name}": t.half() if t.is_floating_point() else t
        for name, t in net().state_dict().items()
    }
    momentum = torch.ones(3)
    document = {
        "epoch": 7,
        "history": [0.5, (1, None)],
        "inner": {"state_dict": state, "note": "n"},
        "optimizer": {"state": {0: {"momentum_buffer": momentum}}},
    }
    torch.save(document, path)
    out, new, dropped = rewrite(path, tmp_path)
    loaded = torch.load(out, weights_only=True)
    assert_same(
        loaded["inner"]["state_dict"], {f"module.{name}": tensor for name, tensor in new.items()}
    )
    assert loaded["inner"]["state_dict"]["module.bn.weight"].dtype == torch.float16
    assert (loaded["epoch"], loaded["history"]) == (7, [0.5, (1, None)])
    assert loaded["inner"]["note"] == "n"
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert loaded[RECORD_KEY] == RECORD
    assert dropped == ()


def test_objects_that_are_no_plain_data_are_dropped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    circle: list[object] = []
    circle.append(circle)
    document = {"state_dict": net().state_dict(), "device": torch.device("cpu"), "loop": circle}
    torch.save(document, path)
    out, _, dropped = rewrite(path, tmp_path)
    assert "device" in dropped
    loaded = torch.load(out, weights_only=True)
    assert set(loaded) == {"state_dict", "loop", RECORD_KEY}
    assert loaded["loop"] == []


def test_shared_containers_do_not_multiply(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    shared: list[object] = []
    for _ in range(60):
        shared = [shared, shared]
    torch.save({"state_dict": net().state_dict(), "tree": shared}, path)
    out, _, _ = rewrite(path, tmp_path)
    assert out.stat().st_size < 100_000


def test_the_legacy_container_stays_legacy(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save({"state_dict": net().state_dict()}, path, _use_new_zipfile_serialization=False)
    out, new, _ = rewrite(path, tmp_path)
    assert read_checkpoint(out).format == "torch-legacy"
    assert_same(torch.load(out, weights_only=True)["state_dict"], new)


def test_safetensors_keep_their_own_metadata(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file(net().state_dict(), path, metadata={"format": "pt", "arch": "net"})
    out, new, _ = rewrite(path, tmp_path)
    with safe_open(out, "pt") as file:
        assert file.metadata()["arch"] == "net"
        assert "prune_mbns" in file.metadata()[RECORD_KEY]
    assert_same(
        dict(sorted(read_checkpoint(out).weights.tensors.items())), dict(sorted(new.items()))
    )


def test_safetensors_keep_their_prefix_and_what_is_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    state = {f"module.{name}": tensor for name, tensor in net().state_dict().items()}
    save_file({**state, "n_averaged": torch.tensor(3)}, path)
    out, new, dropped = rewrite(path, tmp_path)
    expected = {f"module.{name}": tensor for name, tensor in new.items()}
    expected["n_averaged"] = torch.tensor(3)
    assert_same(
        dict(sorted(load_safetensors(out.read_bytes()).items())), dict(sorted(expected.items()))
    )
    assert dropped == ()


def test_other_weights_of_the_network_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    document = {"state_dict": net().state_dict(), "state_dict_ema": changed(net().state_dict())}
    torch.save(document, path)
    out, new, dropped = rewrite(path, tmp_path)
    loaded = torch.load(out, weights_only=True)
    assert set(loaded) == {"state_dict", RECORD_KEY}
    assert_same(loaded["state_dict"], new)
    assert dropped == ("state_dict_ema",)


def test_one_state_dict_under_two_keys_is_rewritten_under_both(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    state = net().state_dict()
    torch.save({"best": state, "view": dict(state), "state_dict": state}, path)
    out, new, dropped = rewrite(path, tmp_path)
    loaded = torch.load(out, weights_only=True)
    for key in ("best", "view", "state_dict"):
        assert_same(loaded[key], new)
    assert dropped == ()


def test_other_weights_in_two_places_are_left_out_of_both(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    average = changed(net().state_dict())
    again = {name: tensor.clone() for name, tensor in net().state_dict().items()}
    torch.save(
        {"state_dict": net().state_dict(), "ema": average, "best": average, "model": again}, path
    )
    out, new, dropped = rewrite(path, tmp_path)
    loaded = torch.load(out, weights_only=True)
    # "model" beats nothing here: "state_dict" is read, and this has its values.
    assert set(loaded) == {"state_dict", "model", RECORD_KEY}
    assert_same(loaded["model"], new)
    assert dropped == ("ema", "best")


@pytest.mark.parametrize("outer", [None, "model"])
def test_other_weights_around_those_that_were_repaired_go_one_by_one(
    tmp_path: Path, outer: str | None
) -> None:
    path = tmp_path / "in.pt"
    value = {**changed(net().state_dict()), "state_dict": net().state_dict(), "epoch": 3}
    torch.save(value if outer is None else {outer: value}, path)
    out, new, dropped = rewrite(path, tmp_path)
    loaded = torch.load(out, weights_only=True)
    found = loaded if outer is None else loaded[outer]
    assert_same(found["state_dict"], new)
    assert set(found) - {RECORD_KEY} == {"state_dict", "epoch"}
    assert len(dropped) == len(net().state_dict())


def test_the_weights_that_were_chosen_are_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save({"state_dict": net().state_dict(), "ema": changed(net().state_dict())}, path)
    read = read_checkpoint(path, key="ema")
    new = changed(dict(read.weights.tensors))
    done = encode_like(path, new, sha256=read.sha256, record=RECORD, key="ema")
    out = tmp_path / "out.pt"
    out.write_bytes(done.data)
    loaded = torch.load(out, weights_only=True)
    assert_same(loaded["ema"], new)
    assert (set(loaded), done.dropped) == ({"ema", RECORD_KEY}, ("state_dict",))


def test_a_pickled_module_cannot_keep_its_format(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(net(), path)
    read = read_checkpoint(path)
    with pytest.raises(ConfigError, match="--keep-format expects a state dict in plain dicts"):
        check_can_keep_format(path, sha256=read.sha256)


def test_a_file_that_changed_meanwhile_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(net().state_dict(), path)
    read = read_checkpoint(path)
    torch.save({"state_dict": net().state_dict()}, path)
    with pytest.raises(CorruptCheckpointError, match="changed while it was repaired"):
        check_can_keep_format(path, sha256=read.sha256)


def test_a_tensor_of_another_shape_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(net().state_dict(), path)
    read = read_checkpoint(path)
    tensors = {**read.weights.tensors, "bn.weight": torch.ones(5)}
    with pytest.raises(CorruptCheckpointError, match=r"shape \(4,\), got \(5,\)"):
        encode_like(path, tensors, sha256=read.sha256, record=RECORD)
