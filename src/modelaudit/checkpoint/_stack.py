"""Stack, memo and containers of the symbolic pickle machine, and the errors it ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.checkpoint._allow import put, shown
from modelaudit.checkpoint._describe import describe, describe_arguments
from modelaudit.checkpoint._values import GlobalRef, SetValue, StandIn, TensorRecord
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._opcodes import Stream

_MAX_MEMO = 1 << 24


class Stack:
    """The part of the machine that moves values about.

    Args:
        stream: the bytes, for messages.
        name: the file, escaped, for messages.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self.stream = stream
        self.name = name
        #: offset of the current instruction
        self.offset = 0
        self.stack: list[object] = []
        #: the stacks below each open mark
        self.frames: list[list[object]] = []
        self.memo: dict[int, object] = {}

    # ---- errors
    # -------------------------------------------------------------------------------------

    def damaged(self, what: str) -> CorruptCheckpointError:
        return self.stream.damaged(self.offset, what)

    def refused(self, action: str) -> UnsafeCheckpointError:
        place = self.stream.place(self.offset)
        path = self.key_path()
        where = f"{place}, under {path}" if path else place
        return UnsafeCheckpointError(
            f"REFUSED: loading {self.name} would {action} ({where}). Nothing was executed"
        )

    def refused_call(self, target: object, arguments: object) -> UnsafeCheckpointError:
        if isinstance(target, GlobalRef):
            callee = escape_untrusted(shown(target), 120)
        else:
            callee = f"an object of {describe(target)}"
        return self.refused(f"call {callee}({describe_arguments(arguments)})")

    def key_path(self) -> str:
        """Return the dict keys around the current place, as far as the stack shows them."""
        keys: list[str] = []
        for frame in [*self.frames, self.stack]:
            index = (len(frame) - 1) // 2 * 2
            tail: list[str] = []
            while index >= 0 and isinstance(frame[index], (str, int)):
                tail.append(str(frame[index])[:60])
                opened = index >= 1 and isinstance(frame[index - 1], dict) and not frame[index - 1]
                if not opened:
                    break
                index -= 2
            keys.extend(reversed(tail))
        return escape_untrusted(".".join(keys), 120) if keys else ""

    # ---- stack
    # --------------------------------------------------------------------------------------

    def pop(self) -> object:
        if not self.stack:
            raise self.damaged("a value is missing")
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack:
            raise self.damaged("a value is missing")
        return self.stack[-1]

    def mark(self) -> None:
        self.frames.append(self.stack)
        self.stack = []

    def pop_or_mark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_mark(self) -> None:
        self.pop_mark()

    def pop_mark(self) -> list[object]:
        if not self.frames:
            raise self.damaged("a mark is missing")
        items, self.stack = self.stack, self.frames.pop()
        return items

    # ---- containers
    # ---------------------------------------------------------------------------------

    def extend(self, target: object, items: list[object]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, SetValue):
            target.items.extend(items)
        elif isinstance(target, StandIn):
            target.elements.extend(items)
        elif isinstance(target, (GlobalRef, TensorRecord)):
            raise self.refused(f"append to {describe(target)}")
        else:
            raise self.damaged("values are appended to something that is no list")

    def update(self, target: object, items: list[object]) -> None:
        if len(items) % 2:
            raise self.damaged("a key has no value")
        if isinstance(target, dict):
            entries = target
        elif isinstance(target, StandIn):
            entries = target.entries
        elif isinstance(target, (GlobalRef, TensorRecord)):
            raise self.refused(f"set items of {describe(target)}")
        else:
            raise self.damaged("keys are set on something that is no dict")
        for index in range(0, len(items), 2):
            put(entries, items[index], items[index + 1])

    def append(self) -> None:
        item = self.pop()
        self.extend(self.top(), [item])

    def append_all(self) -> None:
        items = self.pop_mark()
        self.extend(self.top(), items)

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self.update(self.top(), [key, value])

    def set_all(self) -> None:
        items = self.pop_mark()
        self.update(self.top(), items)

    def new_list(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def new_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.update(self.stack[-1], items)

    def new_frozen_set(self) -> None:
        items = self.pop_mark()
        self.stack.append(SetValue(items))

    def new_tuple_of_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def new_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise self.damaged("a value is missing")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # ---- memo
    # ---------------------------------------------------------------------------------------

    def put_memo(self, index: object) -> None:
        if not isinstance(index, int) or not 0 <= index < _MAX_MEMO:
            raise self.damaged("a memo index is out of range")
        self.memo[index] = self.top()

    def get_memo(self, index: object) -> None:
        if not isinstance(index, int) or index not in self.memo:
            raise self.damaged("a memo entry is missing")
        self.stack.append(self.memo[index])
