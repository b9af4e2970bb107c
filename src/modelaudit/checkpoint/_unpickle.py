"""Walk a pickle symbolically: nothing it names is imported, called or built.

A machine of our own over our own instruction reader (methods/intake.md, "Bottom line" 4). An
object of an unknown class that is only created and given state becomes a `StandIn` and a finding;
a call of anything that is not on the exact list of `_allow` refuses the file, as do instructions
that no checkpoint needs (INST, OBJ, NEWOBJ_EX, EXT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelaudit.checkpoint._allow import (
    ALLOWED,
    ArgumentError,
    NotAllowedError,
    apply,
    global_ref,
    is_unremarkable,
    storage_dtype,
)
from modelaudit.checkpoint._describe import describe, mention
from modelaudit.checkpoint._opcodes import read_instructions
from modelaudit.checkpoint._stack import Stack
from modelaudit.checkpoint._values import (
    GlobalRef,
    SetValue,
    StandIn,
    StorageRef,
    TensorRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelaudit.checkpoint._opcodes import Stream
    from modelaudit.checkpoint._types import Limits
    from modelaudit.results import StaticFinding

_MAX_PROTOCOL = 5
_MAX_FINDINGS = 100
#: what torch writes: a running number, or an address
_STORAGE_KEY = re.compile(r"[0-9]{1,24}")

_CONSTANTS: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {
        *("INT", "LONG", "FLOAT", "STRING", "UNICODE", "BININT", "BININT1", "BININT2", "LONG1"),
        *("LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        *("BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)


@dataclass(slots=True)
class Walk:
    """What one pickle amounts to.

    Attributes:
        value: its value.
        end: offset after its STOP.
        storages: every storage it mentions, by key.
        findings: what it mentions that was not imported.
        attached: dicts, and what each would have got as attributes: torch's ``_metadata`` of a
            state dict.
    """

    value: object = None
    end: int = 0
    storages: dict[str, StorageRef] = field(default_factory=dict)
    findings: list[StaticFinding] = field(default_factory=list)
    attached: list[tuple[object, object]] = field(default_factory=list)


def walk(
    stream: Stream,
    start: int,
    *,
    name: str,
    limits: Limits,
    load_nested: Callable[[bytes, str], StorageRef] | None = None,
) -> Walk:
    """Walk the pickle that starts at `start`.

    Args:
        stream: the bytes.
        start: offset of the first instruction.
        name: the file, escaped, for messages.
        limits: `Limits.max_opcodes` applies.
        load_nested: reads a storage that was saved as a file within the pickle, given its bytes
            and its place; None where that is not allowed.

    Returns:
        The value with everything that was noticed.

    Raises:
        UnsafeCheckpointError: loading the file would call something, or change something by name.
        CorruptCheckpointError: the stream is damaged or over a limit.
    """
    machine = _Machine(stream, name, load_nested)
    for offset, op, argument, end in read_instructions(stream, start, limits.max_opcodes):
        machine.offset = offset
        if op == "STOP":
            machine.walk.value = machine.pop()
            machine.walk.end = end
        else:
            machine.step(op, argument)
    machine.walk.findings = machine.findings()
    return machine.walk


class _Machine(Stack):
    """One method per instruction."""

    def __init__(
        self,
        stream: Stream,
        name: str,
        load_nested: Callable[[bytes, str], StorageRef] | None,
    ) -> None:
        super().__init__(stream, name)
        self.load_nested = load_nested
        self.walk = Walk()
        #: names outside the list to the place of their first mention
        self.mentioned: dict[str, str] = {}
        #: classes of created objects to whether one was given arguments
        self.created: dict[str, bool] = {}

    def step(self, op: str, argument: object) -> None:
        """Carry out one instruction."""
        if op in _LITERALS:
            self.stack.append(argument)
        elif op in _CONSTANTS:
            self.stack.append(_CONSTANTS[op])
        else:
            try:
                _STEPS[op](self, argument)
            except ArgumentError as err:
                raise self.damaged(str(err)) from err

    def findings(self) -> list[StaticFinding]:
        """Return one finding per name that is not on the list, in the order of first mention."""
        return [
            mention(qualified, place, self.created.get(qualified))
            for qualified, place in self.mentioned.items()
        ]

    # ---- names and objects
    # --------------------------------------------------------------------------

    def protocol(self, version: object) -> None:
        if not isinstance(version, int) or version > _MAX_PROTOCOL:
            raise self.damaged(f"pickle protocol {version} is unknown")

    def push_global_lines(self, argument: object) -> None:
        assert isinstance(argument, tuple)
        self.push_global(argument[0], argument[1])

    def push_global_stack(self) -> None:
        name = self.pop()
        module = self.pop()
        self.push_global(module, name)

    def push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.damaged("a name is not text")
        reference = global_ref(module, name)
        if not is_unremarkable(reference) and len(self.mentioned) < _MAX_FINDINGS:
            self.mentioned.setdefault(reference.qualified, self.stream.place(self.offset))
        self.stack.append(reference)

    def reduce(self) -> None:
        arguments = self.pop()
        target = self.pop()
        if isinstance(target, (StandIn, TensorRecord)):
            raise self.refused_call(target, arguments)
        if not isinstance(target, GlobalRef):
            raise self.damaged("something is called that cannot be")
        if (target.module, target.name) not in ALLOWED:
            raise self.refused_call(target, arguments)
        if not isinstance(arguments, tuple):
            raise self.damaged("the arguments of a call are no tuple")
        self.stack.append(self.applied(target, arguments))

    def applied(self, target: GlobalRef, arguments: tuple[object, ...]) -> object:
        if target.name == "_load_from_bytes":
            if self.load_nested is None or len(arguments) != 1:
                raise self.damaged("a file within the file holds another file")
            if not isinstance(arguments[0], bytes):
                raise self.damaged("a file within the file is no bytes")
            return self.load_nested(arguments[0], self.stream.place(self.offset))
        try:
            return apply(target, arguments)
        except NotAllowedError as err:
            raise self.refused_call(err.reference, err.arguments) from err

    def new_object(self) -> None:
        arguments = self.pop()
        target = self.pop()
        if not isinstance(target, GlobalRef):
            raise self.damaged("an object is made of something that is no class")
        if not isinstance(arguments, tuple):
            raise self.damaged("the arguments of an object are no tuple")
        if (target.module, target.name) == ("collections", "OrderedDict"):
            self.stack.append({})
            return
        self.created[target.qualified] = self.created.get(target.qualified, False) or bool(
            arguments
        )
        self.stack.append(StandIn(target.qualified, arguments))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, GlobalRef):
            raise self.refused(f"set attributes of {describe(target)}")
        if isinstance(target, StandIn):
            target.state = state
        elif isinstance(target, dict):
            self.walk.attached.append((target, state))

    def refuse_call_of(self, reference: object, arguments: list[object]) -> None:
        raise self.refused_call(reference, tuple(arguments))

    def inst(self, argument: object) -> None:
        assert isinstance(argument, tuple)
        self.refuse_call_of(global_ref(argument[0], argument[1]), self.pop_mark())

    def obj(self) -> None:
        items = self.pop_mark()
        if not items:
            raise self.damaged("a value is missing")
        self.refuse_call_of(items[0], items[1:])

    def new_object_ex(self) -> None:
        self.pop()
        arguments = self.pop()
        raise self.refused_call(self.pop(), arguments)

    def extension(self, code: object) -> None:
        raise self.refused(f"use the private extension code {code}")

    def text_persistent(self) -> None:
        raise self.damaged("a persistent id is not one that torch writes")

    def out_of_band(self) -> None:
        raise self.damaged("it needs buffers from outside the file")

    # ---- storages
    # -----------------------------------------------------------------------------------

    def persistent(self) -> None:
        reference = self.pop()
        if not isinstance(reference, tuple) or not reference:
            raise self.damaged("a persistent id is not one that torch writes")
        kind = reference[0]
        if isinstance(kind, str) and kind == "module" and len(reference) == 4:
            if not isinstance(reference[1], GlobalRef):
                raise self.damaged("a module class is no class")
            self.stack.append(reference[1])
            return
        if not isinstance(kind, str) or kind != "storage" or len(reference) not in {5, 6}:
            raise self.damaged("a persistent id is not one that torch writes")
        if len(reference) == 6 and reference[5] is not None:
            raise self.damaged("views of storages (torch < 0.4) are not read; save it again")
        self.stack.append(self.storage(reference[1], reference[2], reference[4]))

    def storage(self, kind: object, key: object, numel: object) -> StorageRef:
        dtype = storage_dtype(kind)
        if dtype is None:
            raise self.damaged(f"{describe(kind)} is no storage type")
        if not isinstance(key, str) or not _STORAGE_KEY.fullmatch(key):
            raise self.damaged("a storage key is none that torch writes")
        if not isinstance(numel, int) or not 0 <= numel < 1 << 63:
            raise self.damaged("a storage has no sensible length")
        storage = StorageRef(key, dtype, numel)
        if self.walk.storages.setdefault(key, storage) != storage:
            raise self.damaged(f"storage {key!r} is described twice, differently")
        return storage


_STEPS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda _machine, _argument: None,
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop_or_mark(),
    "POP_MARK": lambda machine, _: machine.drop_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(SetValue([])),
    "APPEND": lambda machine, _: machine.append(),
    "APPENDS": lambda machine, _: machine.append_all(),
    "ADDITEMS": lambda machine, _: machine.append_all(),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_all(),
    "LIST": lambda machine, _: machine.new_list(),
    "DICT": lambda machine, _: machine.new_dict(),
    "TUPLE": lambda machine, _: machine.new_tuple_of_mark(),
    "TUPLE1": lambda machine, _: machine.new_tuple(1),
    "TUPLE2": lambda machine, _: machine.new_tuple(2),
    "TUPLE3": lambda machine, _: machine.new_tuple(3),
    "FROZENSET": lambda machine, _: machine.new_frozen_set(),
    "PUT": _Machine.put_memo,
    "BINPUT": _Machine.put_memo,
    "LONG_BINPUT": _Machine.put_memo,
    "MEMOIZE": lambda machine, _: machine.put_memo(len(machine.memo)),
    "GET": _Machine.get_memo,
    "BINGET": _Machine.get_memo,
    "LONG_BINGET": _Machine.get_memo,
    "GLOBAL": _Machine.push_global_lines,
    "STACK_GLOBAL": lambda machine, _: machine.push_global_stack(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new_object(),
    "NEWOBJ_EX": lambda machine, _: machine.new_object_ex(),
    "BUILD": lambda machine, _: machine.build(),
    "INST": _Machine.inst,
    "OBJ": lambda machine, _: machine.obj(),
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "BINPERSID": lambda machine, _: machine.persistent(),
    "PERSID": lambda machine, _: machine.text_persistent(),
    "NEXT_BUFFER": lambda machine, _: machine.out_of_band(),
    "READONLY_BUFFER": lambda machine, _: machine.out_of_band(),
}
