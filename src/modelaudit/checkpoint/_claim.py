"""What a file says of its own repair. Anybody can write that, and anybody can remove it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._types import RepairClaim
from modelaudit.results import Verdict

if TYPE_CHECKING:
    from modelaudit.checkpoint._values import Parsed

#: Key of the record that says what was done to the weights.
RECORD_KEY: Final = "modelaudit_repair"
_MAX_RECORD: Final = 1 << 20
_MAX_SCANNERS: Final = 16
_ID: Final = r"\w[\w.-]{0,60}(@[\w.-]{1,60})?"
#: Ids alone: what a stranger writes here is shown to a reader, and sentences would explain things.
_METHOD: Final = re.compile(rf"{_ID}(, then {_ID}){{0,15}}", re.ASCII)
_SCANNER: Final = re.compile(_ID, re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_VERDICT: Final = re.compile("|".join((Verdict.CLEAN, Verdict.BACKDOORED, Verdict.INCONCLUSIVE)))
_CODE: Final = re.compile(r"MA-V[0-9]{3}")


def read_claim(parsed: Parsed) -> RepairClaim | None:
    """Return what a file's record of a repair claims; None where it has none such as we write.

    It stands as JSON text in a safetensors header, in the outermost dict of a pickle, or, where
    that dict is the state dict itself, among what torch attaches to it (`write.encode_like`).
    """
    attached = [state for target, state in parsed.attached if target is parsed.value]
    records = (
        _from_json(parsed.metadata.get(RECORD_KEY)),
        _under(RECORD_KEY, parsed.value),
        *(_under(RECORD_KEY, _under("_metadata", state)) for state in attached),
    )
    return next((claim for record in records if (claim := _claim(record)) is not None), None)


def _claim(record: object) -> RepairClaim | None:
    method, sha256 = _under("method", record), _under("input_sha256", record)
    against, rescan = _under("trained_against", record), _under("rescan", record)
    if not _is(_METHOD, method) or not _is(_SHA256, sha256):
        return None
    against = [] if against is None else against
    if not isinstance(against, list) or len(against) > _MAX_SCANNERS:
        return None
    if not all(_is(_SCANNER, id_) for id_ in against):
        return None
    verdict, code = _under("verdict", rescan), _under("reason_code", rescan)
    if rescan is not None and not (_is(_VERDICT, verdict) and _is(_CODE, code)):
        return None
    return RepairClaim(
        method=str(method),
        input_sha256=str(sha256),
        verdict=None if rescan is None else Verdict(str(verdict)),
        reason_code="" if rescan is None else str(code),
        trained_against=tuple(map(str, against)),
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


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
