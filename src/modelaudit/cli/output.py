"""Files that a command writes: checked before the work, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelaudit.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file that can be written.

    Attributes:
        path: real path of the file; a symbolic link has been followed.
        shown: the path as the user gave it.
    """

    path: Path
    shown: Path

    @classmethod
    def check(
        cls,
        shown: Path,
        *,
        files: Iterable[Path],
        folders: Iterable[Path],
        option: str = "--output",
    ) -> OutputFile:
        """Return the output file, known to be writable and to destroy nothing that is read.

        Args:
            shown: the path that the user gave.
            option: the option that it was given with.
            files: inputs that must not be overwritten.
            folders: input folders that must not be written into.

        Raises:
            ConfigError: the path cannot be used, with the reason.
        """
        try:
            path = _real(shown)
            _check_target(
                path, f"{option} {str(shown)!r}", files=tuple(files), folders=tuple(folders)
            )
            descriptor, probe = _open_temporary(path)
            os.close(descriptor)
            probe.unlink()
        except OSError as err:
            raise ConfigError(
                f"{option} {str(shown)!r} cannot be written: {err.strerror}; choose another"
            ) from err
        return cls(path=path, shown=shown)

    def write(self, text: str) -> None:
        """Write text; see `write_bytes`."""
        self.write_bytes(text.encode("utf-8"))

    def write_bytes(self, data: bytes, *, check: Callable[[Path], None] = lambda _: None) -> None:
        """Write the file: a temporary one in the same folder, synced, checked, then renamed.

        Args:
            data: the content.
            check: called with the path of the temporary file before it gets its name; what it
                raises leaves nothing behind.

        Raises:
            OutputError: nothing was written and an older file is as it was.
        """
        temporary: Path | None = None
        try:
            descriptor, temporary = _open_temporary(self.path)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            check(temporary)
            temporary.replace(self.path)
        except OSError as err:
            raise OutputError(
                f"{str(self.shown)!r} could not be written: {err.strerror}; nothing was written"
            ) from err
        finally:
            # once it has been renamed there is nothing left to remove
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink()


def _real(path: Path) -> Path:
    """Follow symbolic links; a circle of them stays a link, whatever the version of Python."""
    return Path(os.path.realpath(path))


def _check_target(
    path: Path, what: str, *, files: tuple[Path, ...], folders: tuple[Path, ...]
) -> None:
    if path.is_symlink():
        raise ConfigError(f"{what} is a symbolic link to itself; choose another")
    if path.is_dir():
        raise ConfigError(f"{what} is a directory, expected a file name")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{what} is a device or a pipe, expected a regular file; choose another")
    # a hard link has another path and the same content
    if path.exists() and any(f.exists() and path.samefile(f) for f in files):
        raise ConfigError(f"{what} would overwrite an input; choose another")
    if any(path.is_relative_to(_real(folder)) for folder in folders):
        raise ConfigError(f"{what} lies in a folder that is read; choose another")


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Create a file beside `path` under a name of its own; the umask decides who may read it."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(temporary, flags, 0o666), temporary


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
