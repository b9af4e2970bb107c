"""Read a torch zip checkpoint (torch >= 1.6): the members that torch writes and no others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from modelaudit.checkpoint._formats import SUPPORTED
from modelaudit.checkpoint._opcodes import Stream
from modelaudit.checkpoint._unpickle import walk
from modelaudit.checkpoint._values import Parsed
from modelaudit.checkpoint._zip import Archive
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from modelaudit.results import StaticFinding
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._source import Source
    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._unpickle import Walk

_MEMBER: Final = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id"
)
_EXPORT: Final = "Export the weights: torch.save(model.state_dict(), ...)"


def read_torch_zip(source: Source, limits: Limits) -> Parsed:
    """Parse a zip checkpoint.

    Args:
        source: a file that starts as a zip archive.
        limits: all but those on safetensors headers apply.

    Returns:
        The walked pickle and the storages, still in the file's bytes.

    Raises:
        UnsafeCheckpointError: code-carrying archive, ambiguous archive, or a call in the pickle.
        CorruptCheckpointError: some other zip, damage, or a limit.
    """
    archive = Archive(source.data, source.name, limits)
    _refuse_other_zips(archive, source.name)
    archive.check_layout()
    prefix = _prefix(archive, source.name)
    pickle = archive.read(f"{prefix}/data.pkl")
    if len(pickle) > limits.max_pickle_bytes:
        raise CorruptCheckpointError(
            f"data.pkl has {len(pickle):,} bytes, the limit is {limits.max_pickle_bytes:,}"
        )
    # The pickle is walked before any checksum is compared: torch ignores checksums, so a call in a
    # damaged file is still a call.
    stream = Stream(bytes(pickle), "data.pkl")
    walked = walk(stream, 0, name=source.name, limits=limits)
    if walked.end != len(pickle):
        raise UnsafeCheckpointError(
            f"REFUSED: {len(pickle) - walked.end:,} bytes follow the end of data.pkl in "
            f"{source.name}. Nothing was executed"
        )
    archive.check_sum(f"{prefix}/data.pkl", pickle)
    storages, findings = _storages(archive, prefix, walked)
    return Parsed(
        format="torch-zip",
        value=walked.value,
        storages=storages,
        is_big_endian=_is_big_endian(archive, prefix),
        findings=(*walked.findings, *findings),
        attached=tuple(walked.attached),
    )


def _refuse_other_zips(archive: Archive, name: str) -> None:
    names = list(archive.members)
    inner = {member.partition("/")[2] or member for member in names}
    if any(n == "constants.pkl" or n.startswith("code/") for n in inner):
        raise UnsafeCheckpointError(
            f"REFUSED: {name} is a TorchScript archive: contains program code. {_EXPORT}"
        )
    if any(n == "archive_format" or re.fullmatch(r"models/.*\.json", n) for n in inner):
        raise UnsafeCheckpointError(
            f"REFUSED: {name} is a torch.export archive (.pt2), which runs code when "
            f"loaded. {_EXPORT}"
        )
    if "MAR-INF/MANIFEST.json" in archive.members:
        raise UnsafeCheckpointError(
            f"REFUSED: {name} is a TorchServe archive (.mar): contains program code. {_EXPORT}"
        )
    if ".data/extern_modules" in inner or any(n.endswith((".py", ".pyc")) for n in names):
        raise UnsafeCheckpointError(
            f"REFUSED: {name} is a torch.package archive: contains program code. {_EXPORT}"
        )
    if "data.pkl" not in inner:
        raise CorruptCheckpointError(f"{name} is {_other_zip(names)}; {SUPPORTED}")


def _other_zip(names: list[str]) -> str:
    if names and all(n.endswith(".npy") for n in names):
        return "a numpy .npz archive"
    if "model.weights.h5" in names:
        return "a Keras model"
    if "[Content_Types].xml" in names:
        return "an Office document"
    return "a zip archive without data.pkl"


def _prefix(archive: Archive, name: str) -> str:
    pickles = [m for m in archive.members if m.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise UnsafeCheckpointError(
            f"REFUSED: ambiguous archive: {len(pickles)} members named data.pkl in {name}. "
            "Nothing was executed"
        )
    prefix = pickles[0].partition("/")[0]
    for member in archive.members:
        folder, _, rest = member.partition("/")
        if folder != prefix or not _MEMBER.fullmatch(rest):
            raise UnsafeCheckpointError(
                f"REFUSED: {name} holds {escape_untrusted(member)}, which torch does not write. "
                "Nothing was executed"
            )
    return prefix


def _is_big_endian(archive: Archive, prefix: str) -> bool:
    member = f"{prefix}/byteorder"
    if member not in archive.members:
        return False
    content = archive.read(member)
    archive.check_sum(member, content)
    order = bytes(content)
    if order not in {b"little", b"big"}:
        raise CorruptCheckpointError(f"byteorder is {order[:20]!r}, expected b'little' or b'big'")
    return order == b"big"


def _storages(
    archive: Archive, prefix: str, walked: Walk
) -> tuple[dict[str, memoryview], list[StaticFinding]]:
    storages: dict[str, memoryview] = {}
    findings: list[StaticFinding] = []
    start = f"{prefix}/data/"
    for member in archive.members:
        key = member.removeprefix(start)
        if key == member:
            continue
        if key not in walked.storages:
            label = escape_untrusted(member)
            findings.append(
                StaticFinding(
                    code="MA-F203", message="holds bytes that no tensor uses", location=label
                )
            )
            continue
        content = archive.read(member)
        archive.check_sum(member, content)
        storages[key] = content
    return storages, findings
