"""What a file says of its own repair. Anybody can write that, and anybody can remove it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._types import RepairClaim

if TYPE_CHECKING:
    from modelaudit.checkpoint._values import Parsed

#: Key of the record that says what was done to the weights.
RECORD_KEY: Final = "modelaudit_repair"
_MAX_RECORD: Final = 1 << 20
_MAX_TEXT: Final = 200


def read_claim(parsed: Parsed) -> RepairClaim | None:
    """Return what a file's record of a repair claims; None where it has none that we write.

    It stands as JSON text in a safetensors header, in the outermost dict of a pickle, or, where
    that is the state dict itself, among what torch attaches to it (`write.encode_like`).
    """
    record = _from_json(parsed.metadata.get(RECORD_KEY)) or _under(RECORD_KEY, parsed.value)
    for state in parsed.attached:
        record = record or _under(RECORD_KEY, _under("_metadata", state))
    method = _text(_under("method", record))
    if not method:
        return None
    rescan = _under("rescan", record)
    return RepairClaim(
        method=method,
        input_sha256=_text(_under("input_sha256", record)),
        verdict=_text(_under("verdict", rescan)),
        reason_code=_text(_under("reason_code", rescan)),
    )


def _from_json(text: str | None) -> object:
    if text is None or len(text) > _MAX_RECORD:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _under(key: str, value: object) -> object:
    return value.get(key) if isinstance(value, Mapping) else None


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
