from __future__ import annotations

import pickle

import pytest

from modelaudit.checkpoint import Limits
from modelaudit.checkpoint._opcodes import Stream
from modelaudit.checkpoint._unpickle import Walk, walk
from modelaudit.checkpoint._values import GlobalRef, SetValue, StandIn, StorageRef, TensorRecord
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import number, storage_instructions, tensor_instructions, text


def walked(content: bytes) -> Walk:
    return walk(Stream(content, "data.pkl"), 0, name="model.pt", limits=Limits())


def value(content: bytes) -> object:
    return walked(content).value


def damage(content: bytes) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        walked(content)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_equal_those_of_python(protocol: int) -> None:
    plain = {
        "a": [1, -2, 2**70, 1.5, None, True, False],
        "b": ("x", ("y",), (1, 2), (1, 2, 3), (1, 2, 3, 4), ()),
        3: {"nested": [{}, []]},
        "shared": [["s"]] * 3,
        "bytes": "é",
    }
    assert value(pickle.dumps(plain, protocol)) == plain


@pytest.mark.parametrize("protocol", range(2, 6))
def test_sets_become_lists_of_their_items(protocol: int) -> None:
    found = value(pickle.dumps([{1}, frozenset({2}), b"\xff"], protocol))
    assert isinstance(found, list)
    assert isinstance(found[0], SetValue)
    assert found[0].items == [1]
    assert isinstance(found[1], SetValue)
    assert found[1].items == [2]
    assert found[2:] == [b"\xff"]


def test_byte_array_instruction_is_plain_bytes() -> None:
    assert value(pickle.dumps(bytearray(b"a"), 5)) == b"a"


def test_self_containing_list_keeps_its_identity() -> None:
    nest: list[object] = []
    nest.append(nest)
    found = value(pickle.dumps(nest, 2))
    assert isinstance(found, list)
    assert found[0] is found


def test_stack_instructions_do_what_python_does() -> None:
    assert value(b"NK\x010.") is None
    assert value(b"K\x01(K\x02K\x031.") == 1
    assert value(b"K\x01(0.") == 1
    assert value(b"K\x012\x86.") == (1, 1)
    assert value(b"(K\x01K\x02l.") == [1, 2]
    assert value(b"(K\x01K\x02d.") == {1: 2}
    assert value(b"](K\x01K\x02e.") == [1, 2]
    assert value(b"K\x07p5\n0g5\n.") == 7
    assert value(b"K\x07r\x05\x00\x00\x000j\x05\x00\x00\x00.") == 7
    assert value(b"K\x07\x940h\x00.") == 7


def test_unknown_object_is_a_stand_in_with_its_state() -> None:
    found = value(b"cprivnet\nNet\nK\x05\x85\x81}(U\x01aK\x01ubU\x01kK\x02sK\x03a.")
    assert isinstance(found, StandIn)
    assert found.class_name == "privnet.Net"
    assert found.arguments == (5,)
    assert found.state == {"a": 1}
    assert found.entries == {"k": 2}
    assert found.elements == [3]


def test_state_of_a_plain_value_is_dropped() -> None:
    assert value(b"ccollections\nOrderedDict\n)R}U\x01aK\x01sb.") == {}
    assert value(b"ccollections\nOrderedDict\n)\x81.") == {}


def test_tensor_stays_a_record() -> None:
    result = walked(tensor_instructions(size=(2, 2), stride=(2, 1), offset=0) + b".")
    assert isinstance(result.value, TensorRecord)
    assert result.value.size == (2, 2)
    assert result.value.storage == StorageRef("0", "float32", 4)
    assert result.storages == {"0": StorageRef("0", "float32", 4)}


def test_module_class_of_a_legacy_file_is_a_name() -> None:
    found = value(b"(" + text("module") + b"cprivnet\nNet\n" + text("f.py") + text("src") + b"tQ.")
    assert isinstance(found, GlobalRef)
    assert found.qualified == "privnet.Net"


def test_findings_are_one_per_name_in_order_and_bounded() -> None:
    mentions = b"".join(f"cm{i}\nx\n0".encode() for i in range(300))
    findings = walked(b"cb\ny\n0cb\ny\n0" + mentions + b"N.").findings
    assert [f.message for f in findings[:2]] == [
        "mentions b.y, which was not imported",
        "mentions m0.x, which was not imported",
    ]
    assert findings[0].location == "data.pkl, byte 0"
    assert len(findings) == 100


def test_hostile_names_are_escaped_in_findings() -> None:
    finding = walked(b"ca\x1b[31m\nb\xe2\x80\xae\n0N.").findings[0]
    assert finding.message.isprintable()


TENSOR_AS_STORAGE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage_instructions("0", 4) + b"K\x00NNNNtR."
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b".", "a value is missing"),
        (b"2.", "a value is missing"),
        (b"0.", "a mark is missing"),
        (b"t.", "a mark is missing"),
        (b"(o.", "a value is missing"),
        (b"\x85.", "a value is missing"),
        (b"h\x01.", "a memo entry is missing"),
        (b"gx\n.", "a line is not an integer"),
        (b"Nr\xff\xff\xff\xff.", "a memo index is out of range"),
        (b"Np-1\n.", "a memo index is out of range"),
        (b"\x80\x06.", "pickle protocol 6 is unknown"),
        (b"NNa.", "appended to something that is no list"),
        (b"NNNs.", "keys are set on something that is no dict"),
        (b"}(Nu.", "a key has no value"),
        (b"}]Ns.", "a dict key is a list, a dict or a set"),
        (b"NN\x93.", "a name is not text"),
        (b"N)R.", "something is called that cannot be"),
        (b"ccollections\nOrderedDict\nNR.", "the arguments of a call are no tuple"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "made of something that holds no pairs"),
        (b"N)\x81.", "made of something that is no class"),
        (b"ca\nB\nN\x81.", "the arguments of an object are no tuple"),
        (b"\x97.", "buffers from outside the file"),
        (b"N\x98.", "buffers from outside the file"),
        (b"Pid\n.", "a persistent id is not one that torch writes"),
        (b"NQ.", "a persistent id is not one that torch writes"),
        (b")Q.", "a persistent id is not one that torch writes"),
        (b"(NNNNNtQ.", "a persistent id is not one that torch writes"),
        (b"(U\x07storageNNtQ.", "a persistent id is not one that torch writes"),
        (b"(U\x06moduleNNNtQ.", "a module class is no class"),
        (b"(U\x07storageNU\x010U\x03cpuK\x01tQ.", "is no storage type"),
        (b"(U\x07storagectorch\nEvil\nU\x010U\x03cpuK\x01tQ.", "torch.Evil is no storage type"),
        (b"(U\x07storagectorch\nFloatStorage\nNU\x03cpuK\x01tQ.", "a storage key is none"),
        (b"(U\x07storagectorch\nFloatStorage\nU\x03../U\x03cpuK\x01tQ.", "a storage key is none"),
        (b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\xfftQ.", "no sensible"),
        (b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuNtQ.", "no sensible length"),
        (b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01K\x01tQ.", "views of storages"),
        (storage_instructions("0", 4) + storage_instructions("0", 5) + b".", "described twice"),
        (TENSOR_AS_STORAGE, "a tensor's shape is not a tuple"),
        (b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R.", "a file within the file holds another"),
        (number(1), "the pickle runs past the end"),
    ],
)
def test_damage_is_told_with_its_place(content: bytes, sentence: str) -> None:
    assert sentence in damage(content)
    assert damage(content).startswith("data.pkl is damaged at byte ")
