"""Cut a pickle stream into instructions; lengths are checked against the bytes left before use.

The standard library's readers are not used: they allocate what a length field claims. Instruction
set: CPython, *Lib/pickletools.py*, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modelaudit.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: Longest text line (protocol 0) and longest integer; longer ones only serve to exhaust the reader.
MAX_LINE_BYTES: Final = 1 << 16
MAX_INTEGER_BYTES: Final = 256
_MAX_DIGITS: Final = 600


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes that hold a pickle, and how to speak of a place in them.

    Attributes:
        data: the bytes.
        label: name of the stream in messages, such as ``"data.pkl"``; empty for the file itself.
        is_partial: whether `data` was cut at the limit on pickle size.
    """

    data: bytes
    label: str = ""
    is_partial: bool = False

    def place(self, offset: int) -> str:
        """Return words for a place in the stream, such as ``"data.pkl, byte 28"``."""
        return f"{self.label}, byte {offset}" if self.label else f"byte {offset}"

    def damaged(self, offset: int, what: str) -> CorruptCheckpointError:
        """Return the error that says what is wrong at `offset`."""
        return CorruptCheckpointError(
            f"{self.label or 'the pickle'} is damaged at byte {offset}: {what}"
        )

    def take(self, offset: int, position: int, length: int, what: str) -> bytes:
        """Return `length` bytes from `position` for the instruction at `offset`.

        Raises:
            CorruptCheckpointError: they are not there.
        """
        if length > len(self.data) - position:
            if self.is_partial:
                raise CorruptCheckpointError(
                    f"the pickle is longer than {len(self.data):,} bytes, which is the limit"
                )
            raise self.damaged(offset, f"{what} runs past the end")
        return self.data[position : position + length]

    def line(self, offset: int, position: int) -> bytes:
        """Return the text line from `position`, without its newline.

        Raises:
            CorruptCheckpointError: it does not end within the stream or within `MAX_LINE_BYTES`.
        """
        end = self.data.find(b"\n", position, position + MAX_LINE_BYTES)
        if end < 0:
            raise self.damaged(offset, "a text line does not end")
        return self.data[position:end]


#: What an instruction carries: the argument, and the position after it.
Argument = tuple[object, int]


def _fixed(layout: str) -> Callable[[Stream, int, int], Argument]:
    parser = struct.Struct(layout)

    def read(stream: Stream, offset: int, position: int) -> Argument:
        raw = stream.take(offset, position, parser.size, "a number")
        return parser.unpack(raw)[0], position + parser.size

    return read


def _counted(layout: str, what: str) -> Callable[[Stream, int, int], Argument]:
    parser = struct.Struct(layout)

    def read(stream: Stream, offset: int, position: int) -> Argument:
        length: int = parser.unpack(stream.take(offset, position, parser.size, what))[0]
        position += parser.size
        if length < 0:
            raise stream.damaged(offset, f"{what} has the length {length}")
        return stream.take(offset, position, length, what), position + length

    return read


def _text(
    read_raw: Callable[[Stream, int, int], Argument],
) -> Callable[[Stream, int, int], Argument]:
    def read(stream: Stream, offset: int, position: int) -> Argument:
        raw, end = read_raw(stream, offset, position)
        assert isinstance(raw, bytes)
        try:
            return raw.decode("utf-8", "surrogatepass"), end
        except UnicodeDecodeError as err:
            raise stream.damaged(offset, "a string is not UTF-8") from err

    return read


def _python2_text(
    read_raw: Callable[[Stream, int, int], Argument],
) -> Callable[[Stream, int, int], Argument]:
    # Python 2 wrote text and bytes alike; keys are text, and anything else is of no interest here.
    def read(stream: Stream, offset: int, position: int) -> Argument:
        raw, end = read_raw(stream, offset, position)
        assert isinstance(raw, bytes)
        try:
            return raw.decode("utf-8"), end
        except UnicodeDecodeError:
            return raw.decode("latin-1"), end

    return read


def _integer(
    read_raw: Callable[[Stream, int, int], Argument],
) -> Callable[[Stream, int, int], Argument]:
    def read(stream: Stream, offset: int, position: int) -> Argument:
        raw, end = read_raw(stream, offset, position)
        assert isinstance(raw, bytes)
        if len(raw) > MAX_INTEGER_BYTES:
            raise stream.damaged(offset, f"an integer of {len(raw):,} bytes")
        return int.from_bytes(raw, "little", signed=True), end

    return read


def _line(stream: Stream, offset: int, position: int) -> Argument:
    raw = stream.line(offset, position)
    return raw, position + len(raw) + 1


def _two_lines(stream: Stream, offset: int, position: int) -> Argument:
    module = stream.line(offset, position)
    name = stream.line(offset, position + len(module) + 1)
    end = position + len(module) + len(name) + 2
    try:
        return (module.decode("utf-8"), name.decode("utf-8")), end
    except UnicodeDecodeError as err:
        raise stream.damaged(offset, "a name is not UTF-8") from err


def _decimal(stream: Stream, offset: int, position: int) -> Argument:
    raw = stream.line(offset, position)
    end = position + len(raw) + 1
    if raw in {b"00", b"01"}:
        return raw == b"01", end
    if len(raw) > _MAX_DIGITS:
        raise stream.damaged(offset, f"an integer of {len(raw):,} digits")
    try:
        return int(raw.rstrip(b"L").decode("ascii")), end
    except ValueError as err:
        raise stream.damaged(offset, "a line is not an integer") from err


def _decimal_float(stream: Stream, offset: int, position: int) -> Argument:
    raw = stream.line(offset, position)
    try:
        return float(raw), position + len(raw) + 1
    except ValueError as err:
        raise stream.damaged(offset, "a line is not a number") from err


def _quoted(stream: Stream, offset: int, position: int) -> Argument:
    raw = stream.line(offset, position)
    end = position + len(raw) + 1
    if len(raw) < 2 or raw[:1] not in {b"'", b'"'} or raw[-1:] != raw[:1]:
        raise stream.damaged(offset, "a string is not quoted")
    try:
        return codecs.escape_decode(raw[1:-1])[0].decode("latin-1"), end
    except ValueError as err:
        raise stream.damaged(offset, "a string has a bad escape") from err


def _raw_unicode(stream: Stream, offset: int, position: int) -> Argument:
    raw = stream.line(offset, position)
    try:
        return raw.decode("raw-unicode-escape"), position + len(raw) + 1
    except UnicodeDecodeError as err:
        raise stream.damaged(offset, "a string has a bad escape") from err


def _frame(stream: Stream, offset: int, position: int) -> Argument:
    length = struct.unpack("<Q", stream.take(offset, position, 8, "a frame"))[0]
    stream.take(offset, position + 8, min(length, len(stream.data) + 1), "a frame")
    return None, position + 8


_BYTES_1 = _counted("<B", "a byte string")
_BYTES_4 = _counted("<I", "a byte string")
_BYTES_8 = _counted("<Q", "a byte string")

#: Instructions with an argument: name and reader.
_WITH_ARGUMENT: dict[int, tuple[str, Callable[[Stream, int, int], Argument]]] = {
    0x80: ("PROTO", _fixed("<B")),
    0x95: ("FRAME", _frame),
    ord("I"): ("INT", _decimal),
    ord("L"): ("LONG", _decimal),
    ord("F"): ("FLOAT", _decimal_float),
    ord("S"): ("STRING", _quoted),
    ord("V"): ("UNICODE", _raw_unicode),
    ord("J"): ("BININT", _fixed("<i")),
    ord("K"): ("BININT1", _fixed("<B")),
    ord("M"): ("BININT2", _fixed("<H")),
    0x8A: ("LONG1", _integer(_BYTES_1)),
    0x8B: ("LONG4", _integer(_counted("<i", "an integer"))),
    ord("G"): ("BINFLOAT", _fixed(">d")),
    ord("T"): ("BINSTRING", _python2_text(_counted("<i", "a string"))),
    ord("U"): ("SHORT_BINSTRING", _python2_text(_counted("<B", "a string"))),
    ord("B"): ("BINBYTES", _BYTES_4),
    ord("C"): ("SHORT_BINBYTES", _BYTES_1),
    0x8E: ("BINBYTES8", _BYTES_8),
    0x96: ("BYTEARRAY8", _BYTES_8),
    ord("X"): ("BINUNICODE", _text(_counted("<I", "a string"))),
    0x8C: ("SHORT_BINUNICODE", _text(_counted("<B", "a string"))),
    0x8D: ("BINUNICODE8", _text(_counted("<Q", "a string"))),
    ord("g"): ("GET", _decimal),
    ord("h"): ("BINGET", _fixed("<B")),
    ord("j"): ("LONG_BINGET", _fixed("<I")),
    ord("p"): ("PUT", _decimal),
    ord("q"): ("BINPUT", _fixed("<B")),
    ord("r"): ("LONG_BINPUT", _fixed("<I")),
    ord("c"): ("GLOBAL", _two_lines),
    ord("i"): ("INST", _two_lines),
    ord("P"): ("PERSID", _line),
    0x82: ("EXT1", _fixed("<B")),
    0x83: ("EXT2", _fixed("<H")),
    0x84: ("EXT4", _fixed("<i")),
}

#: Instructions without one.
_BARE: dict[int, str] = {
    ord("."): "STOP",
    ord("("): "MARK",
    ord("0"): "POP",
    ord("1"): "POP_MARK",
    ord("2"): "DUP",
    ord("N"): "NONE",
    0x88: "NEWTRUE",
    0x89: "NEWFALSE",
    ord("]"): "EMPTY_LIST",
    ord("}"): "EMPTY_DICT",
    ord(")"): "EMPTY_TUPLE",
    0x8F: "EMPTY_SET",
    ord("a"): "APPEND",
    ord("e"): "APPENDS",
    ord("s"): "SETITEM",
    ord("u"): "SETITEMS",
    0x90: "ADDITEMS",
    0x91: "FROZENSET",
    ord("l"): "LIST",
    ord("d"): "DICT",
    ord("t"): "TUPLE",
    0x85: "TUPLE1",
    0x86: "TUPLE2",
    0x87: "TUPLE3",
    0x93: "STACK_GLOBAL",
    ord("R"): "REDUCE",
    ord("b"): "BUILD",
    ord("o"): "OBJ",
    0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX",
    ord("Q"): "BINPERSID",
    0x94: "MEMOIZE",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}


def read_instructions(
    stream: Stream, position: int, max_opcodes: int
) -> Generator[tuple[int, str, object, int]]:
    """Yield the instructions of one pickle up to and including its STOP.

    Args:
        stream: the bytes.
        position: first byte of the pickle.
        max_opcodes: number of instructions after which the stream is given up.

    Yields:
        Offset of the instruction, its name, its argument (None without one), offset after it.

    Raises:
        CorruptCheckpointError: an unknown instruction, an argument that runs past the end, no
            STOP, or too many instructions.
    """
    data = stream.data
    name = ""
    for _ in range(max_opcodes):
        offset = position
        code = stream.take(offset, position, 1, "the pickle")[0]
        reader = _WITH_ARGUMENT.get(code)
        argument: object = None
        if reader is not None:
            name = reader[0]
            argument, position = reader[1](stream, offset, offset + 1)
        elif code in _BARE:
            name = _BARE[code]
            position = offset + 1
        else:
            raise stream.damaged(offset, f"0x{data[offset]:02x} is no pickle instruction")
        yield offset, name, argument, position
        if name == "STOP":
            return
    raise CorruptCheckpointError(f"the pickle has more than {max_opcodes:,} instructions")
