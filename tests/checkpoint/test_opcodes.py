from __future__ import annotations

import pickle
import pickletools
import struct
from typing import Any

import pytest

from modelaudit.checkpoint._opcodes import (
    _BARE,
    _WITH_ARGUMENT,
    MAX_LINE_BYTES,
    Stream,
    read_instructions,
)
from modelaudit.errors import CorruptCheckpointError


def instructions(content: bytes, limit: int = 1000) -> list[tuple[int, str, object, int]]:
    return list(read_instructions(Stream(content), 0, limit))


def damage(content: bytes) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        instructions(content)
    return str(caught.value)


def test_every_instruction_of_python_is_known_by_its_name() -> None:
    ours = {code: name for code, (name, _) in _WITH_ARGUMENT.items()} | _BARE
    theirs = {ord(op.code): op.name for op in pickletools.opcodes}
    assert ours == theirs


def test_instructions_that_take_an_argument_are_those_of_python() -> None:
    assert set(_WITH_ARGUMENT) == {ord(op.code) for op in pickletools.opcodes if op.arg is not None}


@pytest.mark.parametrize("protocol", range(6))
def test_arguments_and_places_equal_those_of_pickletools(protocol: int) -> None:
    value: dict[str, Any] = {
        "ints": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**100, -(2**100)],
        "floats": [0.5, -1e300],
        "text": ["", "a", "é\n\\", "x" * 300, "\ud800"],
        "bytes": [b"", b"\xff", b"x" * 300],
        "others": (None, True, False, (), [], {}, (1,), (1, 2), (1, 2, 3)),
    }
    content = pickle.dumps(value, protocol)
    ours = [(offset, name, argument) for offset, name, argument, _ in instructions(content)]
    theirs = [
        (position, op.name, argument) for op, argument, position in pickletools.genops(content)
    ]
    assert [item[:2] for item in ours] == [(position, name) for position, name, _ in theirs]
    for (_, name, mine), (_, _, other) in zip(ours, theirs, strict=True):
        if name == "GLOBAL":
            assert isinstance(mine, tuple)
            assert " ".join(mine) == other
        elif name != "FRAME":
            assert mine == other


def test_longer_forms_are_read() -> None:
    content = (
        b"\x8b"
        + struct.pack("<i", 2)
        + b"\x01\x02"
        + b"\x8d"
        + struct.pack("<Q", 1)
        + b"a"
        + b"\x8e"
        + struct.pack("<Q", 1)
        + b"b"
        + b"T"
        + struct.pack("<i", 2)
        + b"\xc3\xa9"
        + b"U\x01\xe9"
        + b"I01\nI00\nI7\nL8L\nF1.5\n"
        + b"S'a\\x41'\nVb\\u0041\nPid\n."
    )
    arguments = [argument for _, _, argument, _ in instructions(content)]
    assert arguments == [
        *(513, "a", b"b", "é", "é"),
        *(True, False, 7, 8, 1.5, "aA", "bA", b"id", None),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the pickle is damaged at byte 0: the pickle runs past the end"),
        (b"N", "the pickle is damaged at byte 1: the pickle runs past the end"),
        (b"\xff", "the pickle is damaged at byte 0: 0xff is no pickle instruction"),
        (b"NX\xff\xff\xff\xffab", "damaged at byte 1: a string runs past the end"),
        (b"X\xff", "damaged at byte 0: a string runs past the end"),
        (b"J\x00", "damaged at byte 0: a number runs past the end"),
        (b"T\xff\xff\xff\xff", "a string has the length -1"),
        (b"X\x01\x00\x00\x00\xff", "a string is not UTF-8"),
        (b"\x8b" + struct.pack("<i", 300) + bytes(300), "an integer of 300 bytes"),
        (b"\x95" + struct.pack("<Q", 1 << 60), "a frame runs past the end"),
        (b"cos\nsystem", "a text line does not end"),
        (b"cos", "a text line does not end"),
        (b"c" + b"x" * (MAX_LINE_BYTES + 1) + b"\n", "a text line does not end"),
        (b"c\xff\nx\n", "a name is not UTF-8"),
        (b"Ix\n", "a line is not an integer"),
        (b"I\xff\n", "a line is not an integer"),
        (b"I" + b"1" * 601 + b"\n", "an integer of 601 digits"),
        (b"Fx\n", "a line is not a number"),
        (b"Sx\n", "a string is not quoted"),
        (b"S'a\"\n", "a string is not quoted"),
        (b"S'\\x4'\n", "a string has a bad escape"),
        (b"V\\u00\n", "a string has a bad escape"),
    ],
)
def test_damage_is_told_with_its_place(content: bytes, sentence: str) -> None:
    assert sentence in damage(content)


def test_number_of_instructions_is_bounded() -> None:
    with pytest.raises(CorruptCheckpointError, match="more than 5 instructions"):
        instructions(b"N" * 6 + b".", 5)


def test_stream_that_was_cut_at_the_limit_says_so() -> None:
    with pytest.raises(CorruptCheckpointError, match="longer than 3 bytes, which is the limit"):
        list(read_instructions(Stream(b"NNN", is_partial=True), 0, 100))


def test_places_carry_the_streams_name() -> None:
    assert Stream(b"", "data.pkl").place(28) == "data.pkl, byte 28"
    assert Stream(b"").place(28) == "byte 28"
    assert str(Stream(b"", "data.pkl").damaged(5, "x")) == "data.pkl is damaged at byte 5: x"


def test_reading_stops_at_stop() -> None:
    assert [name for _, name, _, _ in instructions(b"N.NNN")] == ["NONE", "STOP"]
