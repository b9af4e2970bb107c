"""Writing to stdout and stderr: escaped, encodable, and without a word when the reader has left."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from modelaudit.errors import OutputError
from modelaudit.report.words import sentence

if TYPE_CHECKING:
    from typing import TextIO


def write_stdout(text: str) -> None:
    """Write the report to stdout and flush it.

    A reader that closed the pipe early (``| head``) has seen what it wanted: that is no error.

    Raises:
        OutputError: stdout is closed, or what it leads to is full.
    """
    stream = sys.stdout
    if stream is None:
        raise OutputError("the report could not be written: stdout is closed; use --output FILE")
    try:
        stream.write(_encodable(text, stream))
        stream.flush()
    except BrokenPipeError:
        silence(stream)
    except OSError as err:
        silence(stream)
        raise OutputError(f"the report could not be written to stdout: {err.strerror}") from err


def complain(message: str) -> None:
    """Write one line ``modelaudit: message`` to stderr, its untrusted parts escaped."""
    write_stderr(f"modelaudit: {sentence(message)}\n")


def write_stderr(text: str) -> None:
    """Write text to stderr as far as somebody listens there."""
    stream = sys.stderr
    if stream is None:
        return
    with contextlib.suppress(OSError):
        stream.write(_encodable(text, stream))
        stream.flush()


def silence(stream: TextIO) -> None:
    """Lead a broken stream to nowhere, or the interpreter's last flush fails once more."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person looks at the stream."""
    return stream is not None and stream.isatty()


def _encodable(text: str, stream: TextIO) -> str:
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
