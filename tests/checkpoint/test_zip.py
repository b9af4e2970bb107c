from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING

import pytest

from modelaudit.checkpoint import Limits
from modelaudit.checkpoint._zip import Archive, has_zip_tail
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.checkpoint import central_position, packed, patched, saved

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = packed({"a/data.pkl": b"pickle", "a/data/0": b"0123456789"})
TAIL = struct.Struct("<4s4H2IH")


def opened(content: bytes, limits: Limits | None = None) -> Archive:
    archive = Archive(memoryview(bytearray(content)), "model.pt", limits or Limits())
    archive.check_layout()
    return archive


def refusal(content: bytes) -> str:
    with pytest.raises(UnsafeCheckpointError) as caught:
        opened(content)
    return str(caught.value)


def damage(content: bytes) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        opened(content)
    return str(caught.value)


def central(content: bytes, offset: int, layout: str, value: int, name: str = "a/data/0") -> bytes:
    """Change one field of a member's record in the central directory."""
    return patched(content, central_position(content, name) + offset, struct.pack(layout, value))


def local(content: bytes, offset: int, layout: str, value: int, name: str = "a/data/0") -> bytes:
    """Change one field of a member's own header."""
    start = content.index(name.encode()) - 30
    return patched(content, start + offset, struct.pack(layout, value))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_as_packed(method: int) -> None:
    members = {"a/data.pkl": b"pickle" * 100, "a/empty": b"", "a/data/0": bytes(range(256))}
    archive = opened(packed(members, compression=method))
    for name, content in members.items():
        found = archive.read(name)
        archive.check_sum(name, found)
        assert bytes(found) == content
    assert list(archive.members) == list(members)


def test_archive_with_64_bit_fields_and_late_sizes_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive, archive.open("a/x", "w", force_zip64=True) as file:
        file.write(b"late")
    found = opened(pipe.getvalue())
    assert bytes(found.read("a/x")) == b"late"
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w") as archive,
        archive.open("a/x", "w", force_zip64=True) as file,
    ):
        file.write(b"wide")
    assert bytes(opened(buffer.getvalue()).read("a/x")) == b"wide"


def test_torchs_own_archive_passes() -> None:
    import torch

    archive = opened(saved({"w": torch.ones(3)}))
    assert any(name.endswith("/data.pkl") for name in archive.members)


@pytest.mark.parametrize("cut", [1, 10, 22, 60, len(PLAIN) - 10])
def test_cut_archive_says_so(cut: int) -> None:
    sentence = damage(PLAIN[: len(PLAIN) - cut])
    assert sentence == "model.pt is cut short: zip directory missing; download it again"


def duplicate() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return packed([("a/data.pkl", b"one"), ("a/data.pkl", b"two")])


def linked() -> bytes:
    info = zipfile.ZipInfo("a/data/0")
    info.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def commented() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"x")
        archive.comment = b"hidden"
    return buffer.getvalue()


def with_gap() -> bytes:
    """Move the directory back by four bytes that belong to nobody."""
    at = PLAIN.index(b"PK\x01\x02")
    content = PLAIN[:at] + b"junk" + PLAIN[at:]
    return patched(content, len(content) - 6, struct.pack("<I", at + 4))


def with_prefix() -> bytes:
    """Put bytes before the archive, and correct every offset for them."""
    buffer = io.BytesIO()
    buffer.write(b"junk")
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a/data.pkl", b"x")
    return buffer.getvalue()


def inner_entry() -> bytes:
    """List a member inside another member's bytes."""
    inner = packed({"a/data.pkl": b"inner!"})
    start = inner[: inner.index(b"PK\x01\x02")]
    content = packed({"a/data.pkx": start})
    at = content.index(b"PK\x01\x02")
    entry = inner[inner.index(b"PK\x01\x02") : inner.index(b"PK\x05\x06")]
    entry = patched(entry, 42, struct.pack("<I", content.index(start)))
    end = bytearray(content[content.rindex(b"PK\x05\x06") :])
    directory = content[at : content.rindex(b"PK\x05\x06")] + entry
    struct.pack_into("<2H2I", end, 8, 2, 2, len(directory), at)
    return content[:at] + directory + bytes(end)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (duplicate, "two members named a/data.pkl"),
        (lambda: packed({"a/data.pkl": b"", "a/DATA.PKL": b""}), "two members named a/DATA.PKL"),
        (linked, "a link or a cut name: a/data/0"),
        (commented, "a comment"),
        (lambda: PLAIN + b"tail", "bytes after its end"),
        (with_gap, "bytes that belong to no member"),
        (with_prefix, "bytes that belong to no member"),
        (lambda: b"junk" + PLAIN, "bytes between its directory and its end"),
        (inner_entry, "overlapping members"),
        (lambda: packed({"/a/x": b""}), "a member with the path /a/x"),
        (lambda: packed({"a/../x": b""}), "a member with the path a/../x"),
        (lambda: packed({"a\\x": b""}), "a member with the path a\\\\x"),
        (lambda: central(PLAIN, 8, "<H", 1), "an encrypted or patched member: a/data/0"),
        (lambda: central(PLAIN, 8, "<H", 1 << 5), "an encrypted or patched member"),
        (lambda: central(PLAIN, 10, "<H", 12), "a member packed by method 12"),
        (lambda: central(PLAIN, 24, "<I", 11), "a stored member of two sizes"),
        (lambda: local(PLAIN, 6, "<H", 1), "two different headers of the member a/data/0"),
        (lambda: local(PLAIN, 8, "<H", 8), "two different headers of the member a/data/0"),
        (lambda: local(PLAIN, 0, "<I", 1), "two different headers of the member a/data/0"),
        (lambda: local(PLAIN, 35, "<B", 88), "two different headers of the member a/data/0"),
        (lambda: local(PLAIN, 14, "<I", 5), "two different sizes of the member a/data/0"),
        (lambda: local(PLAIN, 22, "<I", 5), "two different sizes of the member a/data/0"),
        (lambda: local(PLAIN, 28, "<H", 5000), "overlapping members, one of them a/data/0"),
        (lambda: central(PLAIN, 42, "<I", 0), "overlapping members"),
        (lambda: central(PLAIN, 42, "<I", len(PLAIN)), "bytes that belong to no member"),
        (
            lambda: central(PLAIN, 42, "<I", PLAIN.index(b"PK\x01\x02") - 5),
            "bytes that belong to no member",
        ),
        (lambda: PLAIN.replace(b"a/data/0", b"a/data/\xff"), "a member name that is not UTF-8"),
        (lambda: PLAIN.replace(b"a/data/0", b"a/data/\0"), "a link or a cut name: a/data/\\x00"),
        (lambda: patched(PLAIN, len(PLAIN) - 14, b"\x01\0\x01\0"), "more entries than it counts"),
    ],
)
def test_ambiguous_archive_is_refused(make: Callable[[], bytes], sentence: str) -> None:
    found = refusal(make())
    assert found.startswith("REFUSED: ambiguous archive: ")
    assert sentence in found
    assert found.endswith(" in model.pt. Nothing was executed")


def test_member_without_room_for_a_header_is_refused() -> None:
    # the only member claims to start where its header would run into the directory
    content = packed({"a/x": b""})
    at = content.index(b"PK\x01\x02")
    shifted = content[at - 8 :]
    shifted = patched(shifted, len(shifted) - 6, struct.pack("<I", 8))
    assert "a member without a header: a/x" in refusal(shifted)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: patched(PLAIN, len(PLAIN) - 18, b"\x01\0"), "one part of a zip archive"),
        (lambda: patched(PLAIN, len(PLAIN) - 14, b"\x03\0"), "one part of a zip archive"),
        (lambda: patched(PLAIN, len(PLAIN) - 14, b"\x03\0\x03\0"), "a damaged zip directory"),
        (lambda: patched(PLAIN, len(PLAIN) - 14, b"\xff\xff\xff\xff"), "64-bit record is missing"),
        (lambda: patched(PLAIN, PLAIN.index(b"PK\x01\x02"), b"XX"), "a damaged zip directory"),
        (lambda: central(PLAIN, 28, "<H", 5000), "a damaged zip directory"),
        (lambda: central(PLAIN, 24, "<I", 0xFFFFFFFF), "a damaged zip directory"),
    ],
)
def test_damaged_directory_is_told(make: Callable[[], bytes], sentence: str) -> None:
    assert sentence in damage(make())


def torch_archive() -> bytes:
    import torch

    return saved({"w": torch.ones(3)})


@pytest.mark.parametrize(
    ("offset", "raw", "sentence"),
    [
        (-22 - 20 - 56 + 32, b"\x01", "two directory records that disagree"),
        (-22 - 20 - 56, b"XX", "a misplaced 64-bit directory record"),
        (-22 - 20 - 56 + 4, b"\x00", "a misplaced 64-bit directory record"),
        (-22 - 20 + 8, b"\x00\x00", "a misplaced 64-bit directory record"),
        (-22 - 20 + 4, b"\x01", "a misplaced 64-bit directory record"),
    ],
)
def test_64_bit_records_must_agree(offset: int, raw: bytes, sentence: str) -> None:
    content = torch_archive()
    assert sentence in refusal(patched(content, len(content) + offset, raw))


def test_sizes_after_the_data_must_agree() -> None:
    content = torch_archive()
    at = content.index(b"PK\x07\x08")
    for offset in (4, 8, 12):
        changed = patched(content, at + offset, bytes([content[at + offset] ^ 1]))
        assert "two different sizes of the member archive/data.pkl" in refusal(changed)


def test_member_with_two_64_bit_sizes_is_refused() -> None:
    info = zipfile.ZipInfo("a/x")
    info.extra = struct.pack("<2HQ", 1, 8, 1) * 2
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, b"1")
    assert "a member with two 64-bit sizes" in refusal(buffer.getvalue())


def test_header_with_full_sizes_and_descriptor_is_held_to_both() -> None:
    content = bytearray(packed({"a/x": b"four"}))
    at = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, 6, 8)
    struct.pack_into("<H", content, at + 8, 8)
    crc = struct.unpack_from("<I", content, 14)[0]
    good = (
        bytes(content[:at]) + struct.pack("<4s3I", b"PK\x07\x08", crc, 4, 4) + bytes(content[at:])
    )
    good = patched(good, len(good) - 6, struct.pack("<I", at + 16))
    assert bytes(opened(good).read("a/x")) == b"four"
    assert "two different sizes" in refusal(patched(good, at + 8, b"\x05"))


def test_wrong_checksum_is_damage() -> None:
    content = PLAIN.replace(b"0123456789", b"0123456780")
    archive = opened(content)
    with pytest.raises(CorruptCheckpointError, match="checksum of a/data/0 is wrong"):
        archive.check_sum("a/data/0", archive.read("a/data/0"))


def test_broken_deflate_stream_is_damage() -> None:
    content = packed({"a/data/0": b"ab" * 500}, compression=zipfile.ZIP_DEFLATED)
    archive = opened(patched(content, 38, b"\xff\xff\xff"))
    with pytest.raises(CorruptCheckpointError, match="checksum of a/data/0 is wrong"):
        archive.read("a/data/0")


def test_expansion_is_bounded_by_ratio_and_by_size() -> None:
    content = packed({"a/data/0": bytes(100_000)}, compression=zipfile.ZIP_DEFLATED)
    assert opened(content, Limits(max_ratio=1000)).members
    for limits in (Limits(max_ratio=2), Limits(max_ratio=1000, expansion_floor_bytes=99_999)):
        with pytest.raises(CorruptCheckpointError, match=r"would expand from .* to 100,000 bytes"):
            opened(content, limits)


def test_number_of_members_is_bounded_before_they_are_read() -> None:
    with pytest.raises(CorruptCheckpointError, match="has 2 members, the limit is 1"):
        opened(PLAIN, Limits(max_members=1))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"MZ program" + PLAIN, True),
        (PLAIN, True),
        (b"nothing", False),
        (b"PK\x05\x06", False),
        (b"x" * 100 + TAIL.pack(b"PK\x05\x06", 0, 0, 1, 1, 9999, 0, 0), False),
        (b"x" * 100 + TAIL.pack(b"PK\x05\x06", 0, 0, 1, 1, 50, 0, 0), False),
    ],
)
def test_zip_at_the_end_of_another_file_is_noticed(content: bytes, expected: bool) -> None:
    assert has_zip_tail(memoryview(content)) is expected
