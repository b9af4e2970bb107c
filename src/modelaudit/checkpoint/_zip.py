"""The container gate: a zip archive is read only if every reader would see the same members in it.

Parsers disagree about zips, and attackers live in the disagreement (methods/intake.md, layer L1).
So the archive must be exactly what torch or a plain packer writes: it starts at byte 0 and ends at
the file's end, members lie side by side without gaps or overlaps, local and central headers agree,
and nothing is encrypted, doubled or nested. Record layouts: PKWARE *APPNOTE.TXT* §4.3.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._types import Limits

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64: Final = struct.Struct("<4sIQI")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END_MAGIC: Final = b"PK\x05\x06"
_END64_MAGIC: Final = b"PK\x06\x06"
_LOCATOR64_MAGIC: Final = b"PK\x06\x07"
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
_LOCAL_MAGIC: Final = b"PK\x03\x04"
_DESCRIPTOR_MAGIC: Final = b"PK\x07\x08"
_MAX_COMMENT: Final = 0xFFFF
_FULL16: Final = 0xFFFF
_FULL32: Final = 0xFFFFFFFF
_STORED: Final = 0
_DEFLATED: Final = 8
#: deflate's speed hints, sizes in a descriptor after the data, names in UTF-8
_HARMLESS_FLAGS: Final = 0x0002 | 0x0004 | 0x0008 | 0x0800
_HAS_DESCRIPTOR: Final = 0x0008


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member, as the central directory has it.

    Attributes:
        name: full name.
        flags: general-purpose bits.
        method: 0 stored, 8 deflated.
        crc: CRC-32 of the inflated bytes.
        compressed: bytes in the file.
        size: bytes after inflating, as claimed.
        header: offset of the local header.
        mode: Unix mode of the external attributes; 0 if none.
    """

    name: str
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    header: int
    mode: int


class Archive:
    """A zip archive whose directory has been read; believe nothing before `check_layout`.

    Args:
        data: the whole file.
        name: the file, escaped, for messages.
        limits: `Limits.max_members`, `max_ratio` and the expansion limit apply.

    Raises:
        CorruptCheckpointError: no directory, a damaged one, or one over a limit.
        UnsafeCheckpointError: bytes after the archive, two members of one name, a comment.
    """

    def __init__(self, data: memoryview, name: str, limits: Limits) -> None:
        self._data = data
        self._name = name
        self._limits = limits
        self._directory, count, self._directory_end = self._find_directory()
        if count > limits.max_members:
            raise CorruptCheckpointError(
                f"{name} has {count:,} members, the limit is {limits.max_members:,}"
            )
        self.members = self._read_directory(count)
        self._starts: dict[str, int] = {}

    # ---- directory ----

    def _find_directory(self) -> tuple[int, int, int]:
        data = self._data
        tail_start = max(0, len(data) - _END.size - _MAX_COMMENT)
        found = bytes(data[tail_start:]).rfind(_END_MAGIC)
        if found < 0 or tail_start + found + _END.size > len(data):
            raise self._corrupt("is cut short: zip directory missing; download it again")
        end = tail_start + found
        _, disk, start_disk, here, count, size, offset, comment = _END.unpack_from(data, end)
        if end + _END.size != len(data):
            raise self._ambiguous(
                "a comment" if comment == len(data) - end - _END.size else "bytes after its end"
            )
        if disk not in {0, _FULL16} or start_disk not in {0, _FULL16} or here != count:
            raise self._corrupt("is one part of a zip archive in several files")
        directory_end = end
        locator = bytes(data[max(0, end - _LOCATOR64.size) : end])
        if locator.startswith(_LOCATOR64_MAGIC):
            directory_end, count, size, offset = self._read_end64(end, (count, size, offset))
        elif _FULL16 in {count} or _FULL32 in {size, offset}:
            raise self._corrupt("has a damaged zip directory: its 64-bit record is missing")
        if offset + size != directory_end:
            raise self._ambiguous("bytes between its directory and its end, or before its start")
        return offset, count, directory_end

    def _read_end64(self, end: int, short: tuple[int, int, int]) -> tuple[int, int, int, int]:
        data = self._data
        _, disk, position, disks = _LOCATOR64.unpack_from(data, end - _LOCATOR64.size)
        if disk != 0 or disks > 1 or position + _END64.size + _LOCATOR64.size != end:
            raise self._ambiguous("a misplaced 64-bit directory record")
        magic, length, *_, count, size, offset = _END64.unpack_from(data, position)
        if magic != _END64_MAGIC or length != _END64.size - 12:
            raise self._ambiguous("a misplaced 64-bit directory record")
        for value, shorter, full in zip(
            (count, size, offset), short, (_FULL16, _FULL32, _FULL32), strict=True
        ):
            if shorter not in {value, full}:
                raise self._ambiguous("two directory records that disagree")
        return position, count, size, offset

    def _read_directory(self, count: int) -> dict[str, Member]:
        data = self._data
        members: dict[str, Member] = {}
        folded: set[str] = set()
        position = self._directory
        for _ in range(count):
            if position + _CENTRAL.size > self._directory_end:
                raise self._corrupt("has a damaged zip directory")
            fields = _CENTRAL.unpack_from(data, position)
            magic, version, _, flags, method, _, _, crc, compressed, size = fields[:10]
            name_length, extra_length, comment_length, _, _, attributes, header = fields[10:]
            start = position + _CENTRAL.size
            position = start + name_length + extra_length + comment_length
            if magic != _CENTRAL_MAGIC or position > self._directory_end:
                raise self._corrupt("has a damaged zip directory")
            extra = bytes(data[start + name_length : start + name_length + extra_length])
            size, compressed, header = self._widen(extra, [size, compressed, header])
            name = self._decode(bytes(data[start : start + name_length]))
            if name.casefold() in folded:
                raise self._ambiguous(f"two members named {escape_untrusted(name)}")
            folded.add(name.casefold())
            members[name] = Member(
                name=name,
                flags=flags,
                method=method,
                crc=crc,
                compressed=compressed,
                size=size,
                header=header,
                # the upper byte of "made by" says whose attributes these are; 0 is MS-DOS
                mode=attributes >> 16 if version >> 8 else 0,
            )
        if position != self._directory_end:
            raise self._ambiguous("a directory with more entries than it counts")
        return members

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as err:
            raise self._ambiguous("a member name that is not UTF-8") from err

    def _widen(self, extra: bytes, values: list[int]) -> list[int]:
        """Replace full 32-bit fields by those of the 64-bit extra field, in its order."""
        position = 0
        body = b""
        while position + 4 <= len(extra):
            tag, length = struct.unpack_from("<2H", extra, position)
            if tag == 1:
                if body:
                    raise self._ambiguous("a member with two 64-bit sizes")
                body = extra[position + 4 : position + 4 + length]
            position += 4 + length
        wide: list[int] = []
        used = 0
        for value in values:
            if value != _FULL32:
                wide.append(value)
                continue
            if used + 8 > len(body):
                raise self._corrupt("has a damaged zip directory")
            wide.append(struct.unpack_from("<Q", body, used)[0])
            used += 8
        return wide

    # ---- layout ----

    def check_layout(self) -> None:
        """Require that members fill the file from byte 0 to the directory, and agree with it.

        Raises:
            UnsafeCheckpointError: ambiguous or hostile.
            CorruptCheckpointError: it would expand beyond the limits.
        """
        position = 0
        for member in sorted(self.members.values(), key=lambda m: m.header):
            self._check_member(member)
            if member.header != position:
                raise self._ambiguous(
                    "overlapping members"
                    if member.header < position
                    else "bytes that belong to no member"
                )
            position = self._check_local(member)
        if position != self._directory:
            raise self._ambiguous("bytes that belong to no member")
        total = sum(member.size for member in self.members.values())
        self._check_expansion(total)

    def _check_member(self, member: Member) -> None:
        label = escape_untrusted(member.name)
        parts = member.name.split("/")
        if member.name.startswith("/") or ".." in parts or "\\" in member.name:
            raise self._ambiguous(f"a member with the path {label}")
        if "\0" in member.name or member.mode & 0xF000 == 0xA000:
            raise self._ambiguous(f"a link or a cut name: {label}")
        if member.flags & ~_HARMLESS_FLAGS:
            raise self._ambiguous(f"an encrypted or patched member: {label}")
        if member.method not in {_STORED, _DEFLATED}:
            raise self._ambiguous(f"a member packed by method {member.method}: {label}")
        if member.method == _STORED and member.compressed != member.size:
            raise self._ambiguous(f"a stored member of two sizes: {label}")

    def _check_local(self, member: Member) -> int:
        """Compare the local header with the central one; return where the member ends."""
        data = self._data
        label = escape_untrusted(member.name)
        if member.header + _LOCAL.size > self._directory:
            raise self._ambiguous(f"a member without a header: {label}")
        magic, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = (
            _LOCAL.unpack_from(data, member.header)
        )
        start = member.header + _LOCAL.size
        raw_name = bytes(data[start : start + name_length])
        extra = bytes(data[start + name_length : start + name_length + extra_length])
        start += name_length + extra_length
        end: int = start + member.compressed
        if end > self._directory:
            raise self._ambiguous(f"overlapping members, one of them {label}")
        same = (
            magic == _LOCAL_MAGIC
            and raw_name == member.name.encode()
            and (flags, method) == (member.flags, member.method)
        )
        if not same:
            raise self._ambiguous(f"two different headers of the member {label}")
        truth = (member.crc, member.compressed, member.size)
        if member.flags & _HAS_DESCRIPTOR and crc == 0 and compressed in {0, _FULL32}:
            end = self._check_descriptor(member, end)
        else:
            size, compressed = self._widen(extra, [size, compressed])
            if (crc, compressed, size) != truth:
                raise self._ambiguous(f"two different sizes of the member {label}")
            if member.flags & _HAS_DESCRIPTOR:
                end = self._check_descriptor(member, end)
        self._starts[member.name] = start
        return end

    def _check_descriptor(self, member: Member, end: int) -> int:
        for layout, length in (("<4s3I", 16), ("<4sI2Q", 24)):
            if end + length <= self._directory:
                found = struct.unpack_from(layout, self._data, end)
                if found == (_DESCRIPTOR_MAGIC, member.crc, member.compressed, member.size):
                    return end + length
        raise self._ambiguous(f"two different sizes of the member {escape_untrusted(member.name)}")

    def _check_expansion(self, total: int) -> None:
        size = len(self._data)
        limit = min(self._limits.expanded_bytes(size), self._limits.max_ratio * size)
        if total > limit:
            raise CorruptCheckpointError(
                f"{self._name} would expand from {size:,} to {total:,} bytes (limit {limit:,}); "
                "no option raises that"
            )

    # ---- contents ----

    def read(self, name: str) -> memoryview:
        """Return a member's bytes, inflated within its claimed size; the checksum is not looked at.

        Raises:
            CorruptCheckpointError: the deflated stream is damaged or of another size.
        """
        member = self.members[name]
        start = self._starts[name]
        raw = self._data[start : start + member.compressed]
        if member.method == _STORED:
            return raw
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            inflated = inflater.decompress(raw, member.size + 1)
        except zlib.error as err:
            raise self._member_damaged(name) from err
        if len(inflated) != member.size or not inflater.eof or inflater.unused_data:
            raise self._member_damaged(name)
        return memoryview(bytearray(inflated))

    def check_sum(self, name: str, content: memoryview) -> None:
        """Compare a member's bytes with its checksum.

        Raises:
            CorruptCheckpointError: they differ.
        """
        if zlib.crc32(content) != self.members[name].crc:
            raise self._member_damaged(name)

    def _member_damaged(self, name: str) -> CorruptCheckpointError:
        label = escape_untrusted(name)
        return self._corrupt(f"is damaged: the checksum of {label} is wrong; download it again")

    # ---- errors ----

    def _corrupt(self, what: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._name} {what}")

    def _ambiguous(self, what: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(
            f"REFUSED: ambiguous archive: {what} in {self._name}. Nothing was executed"
        )


def has_zip_tail(data: memoryview) -> bool:
    """Return whether a file that does not start as a zip archive ends as one."""
    tail_start = max(0, len(data) - _END.size - _MAX_COMMENT)
    found = bytes(data[tail_start:]).rfind(_END_MAGIC)
    if found < 0 or tail_start + found + _END.size > len(data):
        return False
    end = tail_start + found
    size = _END.unpack_from(data, end)[5]
    start = end - size
    return start >= 0 and (size == _FULL32 or bytes(data[start : start + 4]) == _CENTRAL_MAGIC)
