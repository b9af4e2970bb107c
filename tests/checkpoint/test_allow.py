from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

import pytest
from torch._weights_only_unpickler import _get_allowed_globals

from modelaudit.checkpoint._allow import (
    ALLOWED,
    ArgumentError,
    NotAllowedError,
    apply,
    as_key,
    global_ref,
    is_unremarkable,
    shown,
    storage_dtype,
)
from modelaudit.checkpoint._values import GlobalRef, OddKey, SetValue, StandIn, StorageRef


def qualified() -> set[str]:
    return {f"{module}.{name}" for module, name in ALLOWED}


def test_list_differs_from_torchs_exactly_as_stated() -> None:
    theirs = {
        name
        for name in _get_allowed_globals()
        if not name.startswith("torch.") or "_rebuild" in name or "_get_layout" in name
    } | {"torch.Size", "torch.device", "torch.nn.parameter.Parameter"}
    # torch's own list had nested tensors up to 2.14
    assert theirs - qualified() - {"torch._utils._rebuild_nested_tensor"} == {
        "builtins.bytearray",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_wrapper_subclass",
    }
    ours = {name for name in qualified() - theirs if not name.startswith(("pathlib", "numpy"))}
    assert ours == {
        "argparse.Namespace",
        "builtins.frozenset",
        "collections.defaultdict",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "datetime.tzinfo",
        "functools.partial",
        "torch.storage._load_from_bytes",
    }


def test_no_old_spelling_leads_from_the_list_to_something_else() -> None:
    for module, name in ALLOWED:
        assert (module, name) not in NAME_MAPPING
        assert module not in IMPORT_MAPPING


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "bytearray", "__import__", "open"])
def test_builtins_that_act_are_not_on_the_list(name: str) -> None:
    assert ("builtins", name) not in ALLOWED


def test_names_are_shown_as_people_know_them() -> None:
    assert shown(global_ref("posix", "system")) == "os.system"
    assert shown(global_ref("__builtin__", "eval")) == "builtins.eval"


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("torch.nn.modules.conv", "Conv2d", True),
        ("torch.nn.functional", "relu", True),
        ("torch", "float16", True),
        ("torch", "HalfStorage", True),
        ("builtins", "int", True),
        ("torch.hub", "load", False),
        ("torch.nn.modules", "evil", False),
        ("builtins", "eval", False),
    ],
)
def test_only_layers_types_and_data_go_unmentioned(module: str, name: str, expected: bool) -> None:
    assert is_unremarkable(GlobalRef(module, name)) is expected


def test_storage_classes_are_known_by_module_and_name() -> None:
    assert storage_dtype(GlobalRef("torch.cuda", "HalfStorage")) == "float16"
    assert storage_dtype(GlobalRef("evil", "HalfStorage")) is None
    assert storage_dtype("torch.HalfStorage") is None


def test_keys_that_are_costly_to_hash_become_descriptions() -> None:
    nested: tuple[object, ...] = ()
    for _ in range(100):
        nested = (nested, nested)
    for key in (nested, 2**64, GlobalRef("a", "b"), StandIn("a.B")):
        assert isinstance(as_key(key), OddKey)
    assert as_key((1, "a")) != as_key((1, "b"))
    assert as_key((1, "a")) == as_key((1, "a"))
    for plain in ("a", 1, 1.5, b"x", None, True):
        assert as_key(plain) is plain
    unhashables: tuple[object, ...] = ([], {}, SetValue([]))
    for unhashable in unhashables:
        with pytest.raises(ArgumentError):
            as_key(unhashable)


STORAGE = StorageRef("0", "float32", 4)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0), "made of 2 arguments"),
        ("torch._utils._rebuild_tensor_v3", (STORAGE, 0, (), ()), "made of 4 arguments"),
        ("torch._utils._rebuild_tensor_v2", ("x", 0, (), ()), "no storage"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, -1, (), ()), "offset"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, "0", (), ()), "offset"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, [4], (1,)), "not a tuple"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (4,) * 65, (1,) * 65), "not a tuple"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (-4,), (1,)), "whole number"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (True,), (1,)), "whole number"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (2.0,), (1,)), "whole number"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (1 << 63,), (1,)), "whole number"),
        ("torch._utils._rebuild_tensor_v2", (STORAGE, 0, (4,), (1, 1)), "1 dimensions and 2"),
        ("torch._utils._rebuild_tensor_v3", (STORAGE, 0, (), (), 0, {}, "f"), "unknown dtype"),
        ("torch._utils._rebuild_parameter", (), "missing"),
        ("torch._tensor._rebuild_from_type_v2", (1, 2, 3, 4), "other arguments"),
        ("collections.OrderedDict", (3,), "holds no pairs"),
        ("collections.OrderedDict", ([(1, 2, 3)],), "other than pairs"),
        ("collections.OrderedDict", ([([], 2)],), "a dict key is"),
        ("builtins.set", (3,), "no list"),
        ("_codecs.encode", (3,), "no string"),
        ("_codecs.encode", ("x", "rot13"), "another encoding"),
        ("_codecs.encode", ("\u0400", "latin1"), "does not fit"),
    ],
)
def test_arguments_that_nobody_writes_are_errors(
    name: str, arguments: tuple[object, ...], problem: str
) -> None:
    module, _, function = name.rpartition(".")
    with pytest.raises(ArgumentError, match=problem):
        apply(GlobalRef(module, function), arguments)


def test_plain_values_are_made_without_calling() -> None:
    def make(name: str, *arguments: object) -> object:
        module, _, function = name.rpartition(".")
        return apply(GlobalRef(module, function), arguments)

    assert make("collections.OrderedDict") == {}
    assert make("collections.OrderedDict", [["a", 1]]) == {"a": 1}
    assert make("collections.Counter", {"a": 1}) == {"a": 1}
    assert make("collections.defaultdict", GlobalRef("os", "system")) == {}
    assert make("torch.Size", (1, 2)) == (1, 2)
    assert make("torch.Size") == ()
    assert make("_codecs.encode", "é", "latin1") == b"\xe9"
    assert make("_codecs.encode", "é") == b"\xc3\xa9"
    empty = make("builtins.set")
    full = make("builtins.frozenset", [1])
    assert isinstance(empty, SetValue)
    assert empty.items == []
    assert isinstance(full, SetValue)
    assert full.items == [1]
    inert = make("functools.partial", GlobalRef("os", "system"))
    assert isinstance(inert, StandIn)
    assert inert.class_name == "functools.partial"


def test_call_within_an_allowed_call_is_held_to_the_list() -> None:
    with pytest.raises(NotAllowedError) as caught:
        apply(
            GlobalRef("torch._tensor", "_rebuild_from_type_v2"),
            (GlobalRef("os", "system"), GlobalRef("a", "B"), ("x",), {}),
        )
    assert caught.value.reference.name == "system"
    assert caught.value.arguments == ("x",)
