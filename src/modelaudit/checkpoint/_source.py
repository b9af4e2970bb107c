"""Open an untrusted file once: its size, its digest and its bytes are those of one descriptor.

The path is never opened again, so a file swapped between check and use gains nothing
(methods/intake.md, layer L0).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelaudit.errors import CorruptCheckpointError
from modelaudit.text import escape_untrusted

if TYPE_CHECKING:
    from modelaudit.checkpoint._types import Limits

# O_NONBLOCK: opening a pipe that nobody writes to must not hang.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The bytes of one file.

    Attributes:
        name: the path as it was given, escaped for messages.
        path: the real path.
        sha256: hexadecimal digest of `data`.
        data: the whole file; writable only so that torch can wrap it without a warning.
    """

    name: str
    path: str
    sha256: str
    data: memoryview


def open_source(path: str | os.PathLike[str], limits: Limits) -> Source:
    """Read a regular file of bounded size into memory and hash it.

    Args:
        path: the file; a symbolic link is followed.
        limits: `Limits.max_file_bytes` applies.

    Returns:
        The file's bytes with their SHA-256.

    Raises:
        CorruptCheckpointError: no such file, not a regular file, empty, too large, not readable, or
            changed while it was read.
    """
    text = os.fspath(path)
    name = escape_untrusted(text)
    try:
        descriptor = os.open(text, _FLAGS)
    except (OSError, ValueError) as err:
        raise CorruptCheckpointError(_why_not_opened(name, err)) from err
    try:
        data = _read(descriptor, name, limits)
    except OSError as err:
        raise CorruptCheckpointError(f"{name} cannot be read: {err.strerror}") from err
    finally:
        os.close(descriptor)
    digest = hashlib.sha256(data).hexdigest()
    return Source(name=name, path=os.path.realpath(text), sha256=digest, data=memoryview(data))


def _why_not_opened(name: str, err: OSError | ValueError) -> str:
    if isinstance(err, FileNotFoundError):
        return f"{name}: no such file"
    if isinstance(err, OSError):
        if err.errno == errno.ENXIO:
            return f"{name} is a socket or a device, not a model file"
        return f"{name} cannot be opened: {err.strerror}"
    return f"{name} is not a file name"


def _read(descriptor: int, name: str, limits: Limits) -> bytearray:
    status = os.fstat(descriptor)
    for test, kind in _KINDS:
        if test(status.st_mode):
            raise CorruptCheckpointError(f"{name} is {kind}, not a model file")
    if status.st_size == 0:
        raise CorruptCheckpointError(f"{name} is empty (0 bytes)")
    if status.st_size > limits.max_file_bytes:
        raise CorruptCheckpointError(
            f"{name} has {status.st_size:,} bytes, the limit is {limits.max_file_bytes:,}"
        )
    data = bytearray(status.st_size)
    view = memoryview(data)
    done = 0
    while done < len(data):
        chunk = os.read(descriptor, min(len(data) - done, 1 << 24))
        if not chunk:
            break
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    if done < len(data) or os.read(descriptor, 1):
        raise CorruptCheckpointError(f"{name} changed while it was read; try again")
    return data
