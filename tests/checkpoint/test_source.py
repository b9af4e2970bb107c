from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import CorruptCheckpointError
from tests.helpers.checkpoint import saved, write


def damage(path: Path | str) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(path)
    return str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert damage(path) == f"{path}: no such file"


def test_directory(tmp_path: Path) -> None:
    assert damage(tmp_path) == f"{tmp_path} is a directory, not a model file"


def test_pipe_that_nobody_writes_to_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert damage(path) == f"{path} is a named pipe, not a model file"


def test_device() -> None:
    assert damage("/dev/null") == "/dev/null is a device, not a model file"


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert damage("s") == "s is a socket or a device, not a model file"


def test_path_through_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, b"x") / "model.pt"
    assert damage(path).startswith(f"{path} cannot be opened: ")


def test_name_with_a_nul_byte() -> None:
    assert damage("a\0b") == "a\\x00b is not a file name"


def test_name_is_escaped(tmp_path: Path) -> None:
    assert "\\x1b[31m: no such file" in damage(tmp_path / "\x1b[31m")


def test_symbolic_link_is_followed_and_the_real_path_told(tmp_path: Path) -> None:
    target = write(tmp_path, saved({"w": torch.ones(1)}))
    link = tmp_path / "link.pt"
    link.symlink_to(target)
    assert read_checkpoint(link).path == os.path.realpath(target)


def test_path_may_be_text(tmp_path: Path) -> None:
    path = str(write(tmp_path, saved({"w": torch.ones(1)})))
    assert read_checkpoint(path).path == os.path.realpath(path)


@pytest.mark.parametrize("difference", [-1, 1])
def test_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: int
) -> None:
    path = write(tmp_path, bytes(100))
    monkeypatch.setattr(
        os, "fstat", lambda _: SimpleNamespace(st_mode=stat.S_IFREG, st_size=100 + difference)
    )
    assert damage(path) == f"{path} changed while it was read; try again"


def test_read_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int, _count: int) -> bytes:
        raise OSError(5, "Input/output error")

    path = write(tmp_path, bytes(100))
    monkeypatch.setattr(os, "read", fail)
    assert damage(path) == f"{path} cannot be read: Input/output error"
