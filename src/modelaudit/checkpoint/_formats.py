"""Tell file formats apart by content, never by name (methods/intake.md, table of formats).

The order is the order in which torch decides (zip, tar, magic of the legacy pickle), with
everything torch does not look at refused or named.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final, Literal

from modelaudit.checkpoint._zip import has_zip_tail
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._source import Source

Kind = Literal["zip", "legacy", "safetensors", "pickle", "maybe-pickle"]

SUPPORTED: Final = "PyTorch checkpoints and safetensors are supported"

#: the pickled integer 0x1950a86a20f9469cfc6c, after PROTO and an optional FRAME
_LEGACY_MAGIC: Final = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
_LEGACY_FRAME: Final = b"\x95" + struct.pack("<Q", len(_LEGACY_MAGIC))

#: Wrappers that torch does not use: a checkpoint inside one hides from scanners.
_WRAPPERS: Final = (
    (b"7z\xbc\xaf\x27\x1c", "7z archive", "7z"),
    (b"\x1f\x8b", "gzip file", "gzip"),
    (b"BZh", "bzip2 file", "bzip2"),
    (b"\xfd7zXZ\x00", "xz file", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstandard file", "zstandard"),
    (b"\x04\x22\x4d\x18", "lz4 file", "lz4"),
    (b"Rar!\x1a\x07", "RAR archive", "RAR"),
    (b"x\x01", "zlib stream", "zlib"),
    (b"x\x5e", "zlib stream", "zlib"),
    (b"x\x9c", "zlib stream", "zlib"),
    (b"x\xda", "zlib stream", "zlib"),
)

_OTHERS: Final = (
    (0, b"\x93NUMPY", "a numpy array"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"RIFF", "a WebP or media file"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"MZ", "a Windows program"),
    (0, b"\xcf\xfa\xed\xfe", "a macOS program"),
    (0, b"#!", "a script"),
)

_TORCH_TAR_MEMBERS: Final = frozenset({"sys_info", "storages", "tensors", "pickle"})
_TAR_BLOCK: Final = 512
_TEXT_BYTES: Final = 4096
_LFS: Final = re.compile(rb"version https://git-lfs\.github\.com/spec/")
_LFS_SIZE: Final = re.compile(rb"^size ([0-9]{1,18})$", re.MULTILINE)


def identify(source: Source) -> Kind:
    """Return which reader a file is for.

    Args:
        source: the file.

    Returns:
        ``"zip"`` for any zip archive, ``"legacy"``, ``"safetensors"``, ``"pickle"`` for a bare
        pickle of protocol 2 to 5, and ``"maybe-pickle"`` for bytes that could be one of protocol 0
        or 1.

    Raises:
        UnsafeCheckpointError: a wrapper or a tar archive, or a file that is two formats at once.
        CorruptCheckpointError: some other kind of file, named.
    """
    data, name = source.data, source.name
    head = bytes(data[:_TEXT_BYTES])
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:4] == b"PK\x05\x06":
        raise CorruptCheckpointError(f"{name} is an empty zip archive; {SUPPORTED}")
    _refuse_tar(head, name)
    _refuse_wrapper(head, name)
    if has_zip_tail(data):
        raise UnsafeCheckpointError(
            f"REFUSED: ambiguous archive: {name} ends as a zip archive and starts as something "
            "else. Nothing was executed"
        )
    if _is_legacy(head):
        return "legacy"
    if _is_safetensors(head, len(data)):
        return "safetensors"
    if _is_pickle(head):
        return "pickle"
    description = _other(head)
    if description is not None:
        raise CorruptCheckpointError(f"{name} is {description}; {SUPPORTED}")
    _refuse_text(head, name)
    return "maybe-pickle"


def unknown(source: Source) -> CorruptCheckpointError:
    """Return the error for bytes that are no format at all."""
    text = _text(bytes(source.data[:_TEXT_BYTES]))
    if text is not None:
        return CorruptCheckpointError(f"{source.name} is a text file, not a model; {SUPPORTED}")
    first = bytes(source.data[:8]).hex(" ")
    return CorruptCheckpointError(
        f"{source.name} is in no known format (first bytes {first}); {SUPPORTED}"
    )


def _is_legacy(head: bytes) -> bool:
    if not _is_pickle(head):
        return False
    rest = head[2:]
    if rest.startswith(_LEGACY_FRAME):
        rest = rest[len(_LEGACY_FRAME) :]
    return rest.startswith(_LEGACY_MAGIC)


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}


def _is_safetensors(head: bytes, size: int) -> bool:
    if head[8:9] != b"{":
        return False
    # a header length is binary; eight printable characters and a brace are some text
    if all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in head[:8]):
        return False
    length = struct.unpack_from("<Q", head)[0]
    return not (_is_pickle(head) and length > size - 8)


def _refuse_tar(head: bytes, name: str) -> None:
    if len(head) < _TAR_BLOCK:
        return
    if head[257:262] != b"ustar" and not _has_tar_checksum(head[:_TAR_BLOCK]):
        return
    first = head[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./").strip("/")
    if first in _TORCH_TAR_MEMBERS:
        raise UnsafeCheckpointError(
            "REFUSED: tar-format checkpoint (PyTorch < 0.1.10) cannot be loaded safely; "
            f"re-save {name} with a current PyTorch"
        )
    raise UnsafeCheckpointError(
        f"REFUSED: {name} is a tar archive; PyTorch does not use tar. Unpack and inspect it"
    )


def _has_tar_checksum(block: bytes) -> bool:
    field = block[148:156].strip(b" \0")
    if not field or any(byte not in b"01234567" for byte in field):
        return False
    return sum(block) - sum(block[148:156]) + 8 * ord(" ") == int(field, 8)


def _refuse_wrapper(head: bytes, name: str) -> None:
    for magic, kind, short in _WRAPPERS:
        if head.startswith(magic):
            raise UnsafeCheckpointError(
                f"REFUSED: {name} is a {kind}; PyTorch does not use {short}. Unpack and inspect it"
            )


def _other(head: bytes) -> str | None:
    for offset, magic, description in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return description
    # protobuf: field 1 is a small number (ONNX: ir_version, then the producer's name in field 2)
    if head[:1] == b"\x08" and head[2:3] == b"\x12" and len(head) > 4:
        return "an ONNX model" if head[1] >= 3 else "a TensorFlow SavedModel"
    return None


def _text(head: bytes) -> str | None:
    # a cut at the end of the sample may split a character
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if all(c.isprintable() or c in "\t\r\n\f" for c in text):
            return text
        return None
    return None


def _refuse_text(head: bytes, name: str) -> None:
    if _LFS.match(head):
        size = _LFS_SIZE.search(head)
        amount = f" ({int(size.group(1)):,}-byte object not fetched)" if size else ""
        raise CorruptCheckpointError(f'{name} is a Git LFS pointer{amount}; run "git lfs pull"')
    text = _text(head)
    if text is None:
        return
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        raise CorruptCheckpointError(
            f"{name} is an HTML page, not a model; was the download redirected?"
        )
    if start.startswith(("<?xml", "<")):
        raise CorruptCheckpointError(f"{name} is an XML document, not a model; {SUPPORTED}")
    if start.startswith(("{", "[")):
        excerpt = escape_untrusted(start, 40)
        raise CorruptCheckpointError(f"{name} is JSON ({excerpt}), not a model; {SUPPORTED}")
