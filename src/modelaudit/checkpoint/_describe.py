"""Words for what a stranger's pickle names; all of it is escaped and short."""

from __future__ import annotations

from modelaudit.checkpoint._allow import shown
from modelaudit.checkpoint._values import GlobalRef, StandIn, StorageRef, TensorRecord
from modelaudit.results import StaticFinding
from modelaudit.text import escape_untrusted


def mention(qualified: str, place: str, had_arguments: bool | None) -> StaticFinding:
    label = escape_untrusted(qualified)
    if had_arguments is None:
        return StaticFinding(
            code="MA-F201", message=f"mentions {label}, which was not imported", location=place
        )
    arguments = " and arguments for it" if had_arguments else ""
    return StaticFinding(
        code="MA-F202",
        message=f"needs class {label}{arguments}, which was not imported",
        location=place,
    )


def describe(value: object) -> str:
    if isinstance(value, GlobalRef):
        return escape_untrusted(shown(value), 120)
    if isinstance(value, StandIn):
        return escape_untrusted(value.class_name, 120)
    return {TensorRecord: "a tensor", StorageRef: "a storage"}.get(
        type(value), f"a {type(value).__name__}"
    )


def describe_arguments(arguments: object) -> str:
    if not isinstance(arguments, tuple):
        return "..."
    shown_arguments = [_describe_argument(argument) for argument in arguments[:3]]
    return ", ".join(shown_arguments + ["..."] * (len(arguments) > 3))


def _describe_argument(argument: object) -> str:
    if isinstance(argument, str):
        return f'"{escape_untrusted(argument, 80)}"'
    if isinstance(argument, bytes):
        return f"{argument[:40]!r}"
    if argument is None or isinstance(argument, (int, float)):
        return escape_untrusted(f"{argument!r}", 40)
    return f"<{describe(argument)}>"
