"""Files that would run code elsewhere are refused with the call and its place."""

from __future__ import annotations

import builtins
import contextlib
import pickle
import subprocess
import sys
import types
from typing import TYPE_CHECKING

import pytest
import torch

from modelaudit.checkpoint import Limits, read_checkpoint
from modelaudit.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.checkpoint import (
    Calls,
    legacy,
    members_of,
    net,
    packed,
    patched,
    saved,
    state_dict_pickle,
    system_call,
    tensor_instructions,
    text,
    with_pickle,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path


def refusal(folder: Path, content: bytes) -> str:
    path = write(folder, content)
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value).replace(f"{path}", "model.pt")


def damage(folder: Path, content: bytes, limits: Limits | None = None) -> str:
    path = write(folder, content)
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(path, limits=limits or Limits())
    return str(caught.value).replace(f"{path}", "model.pt")


def test_call_in_a_bare_pickle_is_named_with_its_place(tmp_path: Path) -> None:
    content = system_call()
    assert refusal(tmp_path, content) == (
        'REFUSED: loading model.pt would call os.system("echo owned") '
        f"(byte {content.index(b'R')}). Nothing was executed"
    )


def test_call_in_a_zip_is_named_with_its_place(tmp_path: Path) -> None:
    assert refusal(tmp_path, with_pickle(system_call())) == (
        'REFUSED: loading model.pt would call os.system("echo owned") (data.pkl, byte 38). '
        "Nothing was executed"
    )


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_call_is_found_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = system_call(protocol=protocol)
    for wrapped in (content, with_pickle(content)):
        assert 'would call os.system("echo owned")' in refusal(tmp_path, wrapped)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_call_in_a_legacy_file_is_found(tmp_path: Path, protocol: int) -> None:
    import os

    state = {"w": torch.ones(1), "evil": Calls(os.system, "echo owned")}
    sentence = refusal(tmp_path, legacy(state, protocol))
    assert 'would call os.system("echo owned") (byte ' in sentence
    assert "under evil" in sentence


def test_call_in_place_of_a_legacy_header_pickle_is_found(tmp_path: Path) -> None:
    content = legacy({"w": torch.ones(1)})
    for part in (b"\x80\x02M\xe9\x03.", b"\x80\x02]q\x00"):
        start = content.index(part)
        assert "would call os.system" in refusal(tmp_path, content[:start] + system_call())


def test_call_in_the_optimizer_is_named_with_its_key_path(tmp_path: Path) -> None:
    import os

    state = {
        "model": {"w": torch.ones(1)},
        "optimizer": {"state": {0: Calls(os.system, "x")}},
    }
    assert "under optimizer.state.0)" in refusal(tmp_path, saved(state))


def test_module_function_called_with_arguments_is_refused(tmp_path: Path) -> None:
    module = types.ModuleType("privnet")
    exec("def make(*args): return {}", module.__dict__)
    sys.modules["privnet"] = module
    try:
        content = saved({"model": Calls(module.make, "r18", 10, None, 4.0)})
    finally:
        del sys.modules["privnet"]
    assert 'would call privnet.make("r18", 10, None, ...)' in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (builtins.eval, 'builtins.eval("x")'),
        (builtins.exec, 'builtins.exec("x")'),
        (builtins.getattr, 'builtins.getattr("x")'),
        (builtins.bytearray, 'builtins.bytearray("x")'),
        (torch.load, 'torch.serialization.load("x")'),
        (torch.hub.load, 'torch.hub.load("x")'),
        (subprocess.Popen, 'subprocess.Popen("x")'),
        (torch.nn.Linear, 'torch.nn.modules.linear.Linear("x")'),
    ],
)
def test_callables_that_are_not_on_the_list_are_refused(
    tmp_path: Path, function: object, shown: str
) -> None:
    assert f"would call {shown}" in refusal(tmp_path, saved(Calls(function, "x")))


def test_name_is_matched_whole_not_by_prefix(tmp_path: Path) -> None:
    for line in (b"cnumpy\n__builtins__\n", b"ccollections\nOrderedDict.fromkeys\n"):
        assert "would call" in refusal(tmp_path, with_pickle(b"\x80\x02" + line + b")R."))
    split = b"\x80\x04" + text("collections.OrderedDict") + text("") + b"\x93)R."
    assert "would call collections.OrderedDict.()" in refusal(tmp_path, with_pickle(split))


def test_python_2_names_are_the_same_names(tmp_path: Path) -> None:
    content = with_pickle(b"\x80\x02c__builtin__\neval\n" + text("1") + b"\x85R.")
    assert 'would call builtins.eval("1")' in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("instructions", "shown"),
    [
        (b"(" + text("x") + b"ios\nsystem\n", 'call os.system("x")'),
        (b"(cos\nsystem\n" + text("x") + b"o", 'call os.system("x")'),
        (b"cos\nsystem\n)}\x92", "call os.system()"),
        (b"\x82\x01", "use the private extension code 1"),
        (b"\x83\x01\x00", "use the private extension code 1"),
        (b"\x84\x01\x00\x00\x00", "use the private extension code 1"),
        (b"cos\nsystem\n}" + text("a") + b"NsR", "call os.system(...)"),
        (b"cos\nsystem\n]\x85R", "call os.system(<a list>)"),
        (b"cos\nsystem\ncos\nsystem\n\x85R", "call os.system(<os.system>)"),
        (b"cos\nsystem\nC\x03a\nb\x85R", "call os.system(b'a\\nb')"),
        (b"cprivnet\nNet\n)\x81)R", "call an object of privnet.Net()"),
        (b"cfunctools\npartial\ncos\nsystem\n\x85R)R", "call an object of functools.partial()"),
        (tensor_instructions() + b")R", "call an object of a tensor()"),
        (b"csys\nmodules\n" + text("a") + b"Ns", "set items of sys.modules"),
        (b"csys\npath\n" + text("a") + b"a", "append to sys.path"),
        (b"cprivnet\nNet\n}b", "set attributes of privnet.Net"),
        (tensor_instructions() + text("a") + b"Ns", "set items of a tensor"),
        (tensor_instructions() + text("a") + b"a", "append to a tensor"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nPathLike\n"
            + text("x")
            + b"\x85}tR",
            'call os.system("x")',
        ),
    ],
)
def test_every_way_to_act_is_refused(tmp_path: Path, instructions: bytes, shown: str) -> None:
    assert f"would {shown} (data.pkl" in refusal(
        tmp_path, with_pickle(b"\x80\x04" + instructions + b".")
    )


def test_call_inside_a_storage_within_a_bare_pickle_is_found(tmp_path: Path) -> None:
    inner = legacy(torch.ones(2).untyped_storage())
    at = inner.index(b"\x80\x02(X")
    hostile = inner[:at] + system_call()
    nested = b"ctorch.storage\n_load_from_bytes\nB" + len(hostile).to_bytes(4, "little") + hostile
    assert 'would call os.system("echo owned") (the file at byte' in refusal(
        tmp_path, b"\x80\x03" + nested + b"\x85R."
    )


def test_call_before_the_damage_is_reported_not_the_damage(tmp_path: Path) -> None:
    broken = system_call()[:-2] + b"\xff\xff"
    assert "would call os.system" in refusal(tmp_path, broken)
    content = with_pickle(system_call())
    # torch ignores checksums: with a wrong one the call would still run
    wrong = content.replace(system_call(), system_call("echo other"))
    assert "would call os.system" in refusal(tmp_path, wrong)


def test_text_of_a_call_is_escaped_and_short(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, system_call("\x1b[2J\n" + "x" * 10_000))
    assert "\\x1b[2J\\n" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300


def test_nothing_is_imported_or_called(tmp_path: Path) -> None:
    (tmp_path / "sentinel_module.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    hostile = (
        b"\x80\x02csentinel_module\nNet\n)\x81}b0csentinel_module\nrun\n0"
        + state_dict_pickle(w=tensor_instructions())[2:]
    )
    path = write(tmp_path, with_pickle(hostile, {"0": bytes(16)}))
    calling = write(tmp_path, with_pickle(b"\x80\x02csentinel_module\nrun\n)R."), "calling.pt")
    shell = write(tmp_path, with_pickle(system_call(f"touch {tmp_path}/owned")), "shell.pt")
    read_checkpoint(path)  # whatever reading itself imports is imported now
    events: list[str] = []
    is_watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if is_watching and event in {"import", "exec", "compile", "os.system", "subprocess.Popen"}:
            events.append(f"{event} {arguments!r}")

    sys.addaudithook(watch)
    before = set(sys.modules)
    try:
        result = read_checkpoint(path)
        for file in (calling, shell):
            with pytest.raises(UnsafeCheckpointError):
                read_checkpoint(file)
    finally:
        is_watching = False
        sys.path.remove(str(tmp_path))
    assert events == []
    assert set(sys.modules) == before
    assert not (tmp_path / "owned").exists()
    assert [finding.message for finding in result.findings] == [
        "needs class sentinel_module.Net, which was not imported",
        "mentions sentinel_module.run, which was not imported",
    ]


def test_object_created_with_arguments_is_a_stand_in_and_a_finding(tmp_path: Path) -> None:
    pickled = b"\x80\x02cnumpy\nmemmap\n" + text("/etc/passwd") + b"\x85\x810"
    pickled += state_dict_pickle(w=tensor_instructions())[2:]
    result = read_checkpoint(write(tmp_path, with_pickle(pickled, {"0": bytes(16)})))
    assert [finding.message for finding in result.findings] == [
        "needs class numpy.memmap and arguments for it, which was not imported"
    ]


# ---- exhaustion ----


def test_view_of_four_tebibytes_over_four_bytes_is_refused(tmp_path: Path) -> None:
    pickled = state_dict_pickle(
        w=tensor_instructions(numel=1, size=(1 << 20, 1 << 20), stride=(0, 0))
    )
    sentence = damage(tmp_path, with_pickle(pickled, {"0": bytes(4)}))
    assert sentence.startswith("tensor 'w' declares 1,099,511,627,776 elements that share memory")


def test_byte_array_that_claims_more_than_the_file_allocates_nothing(tmp_path: Path) -> None:
    content = b"\x80\x05\x96" + (12 << 30).to_bytes(8, "little") + b"xx"
    assert len(content) == 13
    assert damage(tmp_path, content) == (
        "the pickle is damaged at byte 2: a byte string runs past the end"
    )


def test_key_of_nested_tuples_is_never_hashed(tmp_path: Path) -> None:
    # each level holds the level below twice: hashing would take 2**200 steps
    doubling = b"".join(b"2\x86" for _ in range(200))
    pickled = b"\x80\x02}(K\x01\x85" + doubling + b"N" + text("w") + tensor_instructions() + b"u."
    result = read_checkpoint(write(tmp_path, with_pickle(pickled, {"0": bytes(16)})))
    assert list(result.weights.tensors) == ["w"]


def test_millionfold_nesting_is_read_without_recursion(tmp_path: Path) -> None:
    depth = 200_000
    pickled = b"\x80\x02}(" + text("deep") + b"]" * depth + b"a" * (depth - 1)
    pickled += text("w") + tensor_instructions() + b"u."
    result = read_checkpoint(write(tmp_path, with_pickle(pickled, {"0": bytes(16)})))
    assert result.ignored_keys == ("deep",)


def test_cyclic_containers_and_modules_end(tmp_path: Path) -> None:
    cyclic = b"\x80\x02}q\x00" + text("model") + b"h\x00s."
    assert "no state_dict found" in damage(tmp_path, with_pickle(cyclic))
    module = (
        b"\x80\x02cprivnet\nNet\n)\x81q\x00}" + text("_modules") + b"}" + text("a") + b"h\x00ssb."
    )
    assert "modules nest deeper than 64" in damage(tmp_path, with_pickle(module))


def test_modules_that_share_children_exponentially_are_bounded(tmp_path: Path) -> None:
    def module(children: bytes) -> bytes:
        return b"cprivnet\nNet\n)\x81}" + text("_modules") + b"}(" + children + b"usb"

    inner = module(b"")
    for level in range(40):
        inner = module(
            text("a")
            + inner
            + b"r"
            + level.to_bytes(4, "little")
            + text("b")
            + b"j"
            + level.to_bytes(4, "little")
        )
    content = with_pickle(b"\x80\x02" + inner + b".")
    limits = Limits(max_modules=1000)
    assert "are more than 1,000" in damage(tmp_path, content, limits)


def test_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    import zipfile

    size = 96 << 20
    content = packed(
        {"a/data.pkl": state_dict_pickle(w=tensor_instructions()), "a/data/0": bytes(size)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert len(content) < 200_000
    assert "no option raises that" in damage(tmp_path, content)


def test_deflated_member_that_lies_about_its_size_is_not_inflated_further(tmp_path: Path) -> None:
    import zipfile

    member = bytes(1 << 20)
    content = packed(
        {"a/data.pkl": state_dict_pickle(w=tensor_instructions()), "a/data/0": member},
        compression=zipfile.ZIP_DEFLATED,
    )
    lying = content.replace(len(member).to_bytes(4, "little"), (16).to_bytes(4, "little"))
    assert "the checksum of a/data/0 is wrong" in damage(tmp_path, lying)


# ---- no traceback but ours ----


@pytest.mark.parametrize("make", [saved, legacy])
def test_every_truncation_and_bit_flip_ends_in_our_errors(tmp_path: Path, make: object) -> None:
    assert callable(make)
    content = make({"module.w": torch.arange(6.0).t(), "n": 3, "x": {"y": [1, (2,), {3}]}})
    for at in range(0, len(content), 11):
        for broken in (content[:at], patched(content, at, bytes([content[at] ^ 0x41]))):
            path = write(tmp_path, broken)
            with contextlib.suppress(CheckpointError):
                read_checkpoint(path)


def test_data_after_the_end_of_the_pickle_is_refused(tmp_path: Path) -> None:
    good = state_dict_pickle(w=tensor_instructions())
    assert "5 bytes follow the end of data.pkl" in refusal(
        tmp_path, with_pickle(good + b"extra", {"0": bytes(16)})
    )
    bare = pickle.dumps({"a": 1}, 2)
    assert "5 bytes follow the end of the pickle" in refusal(tmp_path, bare + b"extra")
    assert "5 bytes follow the last tensor" in refusal(
        tmp_path, legacy(net().state_dict()) + b"extra"
    )


def test_code_carrying_archives_are_refused_with_advice(tmp_path: Path) -> None:
    good = members_of(saved({"w": torch.ones(1)}))
    prefix = next(iter(good)).partition("/")[0]
    for extra, kind in (
        ("constants.pkl", "TorchScript archive"),
        ("code/__torch__.py", "TorchScript archive"),
        ("archive_format", "torch.export archive"),
        ("models/model.json", "torch.export archive"),
        (".data/extern_modules", "torch.package archive"),
        ("net.py", "torch.package archive"),
    ):
        sentence = refusal(tmp_path, packed({**good, f"{prefix}/{extra}": b"x"}))
        assert kind in sentence
        assert "torch.save(model.state_dict(), ...)" in sentence
    mar = packed({"MAR-INF/MANIFEST.json": b"{}", "model.pt": b"x"})
    assert "TorchServe archive (.mar)" in refusal(tmp_path, mar)
