from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests.helpers.checkpoint import (
    legacy,
    packed,
    safetensors,
    saved,
    system_call,
    tar_block,
    with_pickle,
    write,
)

if TYPE_CHECKING:
    from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46827520\n"


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "model.pt is empty (0 bytes)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "model.pt is a PNG image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "model.pt is a JPEG image"),
        (b"GGUF\x03\x00", "model.pt is a GGUF model"),
        (b"\x89HDF\r\n\x1a\n", "model.pt is an HDF5 file (Keras)"),
        (b"\x1c\x00\x00\x00TFL3", "model.pt is a TensorFlow Lite model"),
        (b"\x7fELF\x02", "model.pt is an ELF program"),
        (b"MZ\x90\x00", "model.pt is a Windows program"),
        (b"%PDF-1.7", "model.pt is a PDF document"),
        (b"#!/bin/sh\n", "model.pt is a script"),
        (npy(), "model.pt is a numpy array"),
        (b"\x08\x08\x12\x07pytorch", "model.pt is an ONNX model"),
        (b"\x08\x01\x12\x07saved..", "model.pt is a TensorFlow SavedModel"),
        (
            LFS,
            (
                "model.pt is a Git LFS pointer (46,827,520-byte object not fetched); "
                'run "git lfs pull"'
            ),
        ),
        (LFS[:40] + b"x", "model.pt is a Git LFS pointer"),
        (
            b"\n<!DOCTYPE html><html>",
            "model.pt is an HTML page, not a model; was the download redirected?",
        ),
        (b"<?xml version='1.0'?><Error/>", "model.pt is an XML document, not a model"),
        (b'{"error": "not\x09found"}', 'model.pt is JSON ({"error": "not'),
        (b"[1, 2, {}]", "model.pt is JSON ([1, 2, {}])"),
        (b"Not found. Try again.\n", "model.pt is a text file, not a model"),
        ("é".encode() * 3000 + b"x", "model.pt is a text file, not a model"),
        (bytes(range(16)), "model.pt is in no known format (first bytes 00 01 02 03 04 05 06 07)"),
        (b"K\x01K\x02", "model.pt is in no known format"),
        (b"N. and more", "model.pt is a text file, not a model"),
        (packed({}), "model.pt is an empty zip archive"),
        (packed({"w.npy": npy()}), "model.pt is a numpy .npz archive"),
        (packed({"model.weights.h5": b"", "config.json": b""}), "model.pt is a Keras model"),
        (packed({"[Content_Types].xml": b""}), "model.pt is an Office document"),
        (packed({"readme": b""}), "model.pt is a zip archive without data.pkl"),
    ],
)
def test_wrong_kind_of_file_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(CorruptCheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).replace(f"{path}", "model.pt").startswith(sentence)
    if " is a" in sentence and "page" not in sentence and "LFS" not in sentence:
        assert "PyTorch checkpoints and safetensors are supported" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"7z\xbc\xaf\x27\x1c....", "model.pt is a 7z archive; PyTorch does not use 7z. Unpack"),
        (b"\x1f\x8b\x08", "model.pt is a gzip file; PyTorch does not use gzip"),
        (b"BZh91AY", "model.pt is a bzip2 file"),
        (b"\xfd7zXZ\x00", "model.pt is a xz file"),
        (b"\x28\xb5\x2f\xfd", "model.pt is a zstandard file"),
        (b"x\x9c\x01", "model.pt is a zlib stream"),
        (b"Rar!\x1a\x07\x00", "model.pt is a RAR archive"),
        (tar_block("readme.txt"), "model.pt is a tar archive; PyTorch does not use tar"),
        (tar_block("readme.txt", is_old=True), "model.pt is a tar archive"),
        (tar_block("storages"), "tar-format checkpoint (PyTorch < 0.1.10) cannot be loaded safely"),
        (tar_block("./pickle"), "tar-format checkpoint (PyTorch < 0.1.10)"),
        (b"\x89PNG\r\n\x1a\n" + with_pickle(b"N."), "ambiguous archive: model.pt ends as a zip"),
        (system_call() + with_pickle(b"N."), "ambiguous archive: model.pt ends as a zip archive"),
        (with_pickle(b"N.") + b"tail", "ambiguous archive: bytes after its end in model.pt"),
    ],
)
def test_wrapper_or_polyglot_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).replace(f"{path}", "model.pt").startswith(f"REFUSED: {sentence}")


def test_real_tar_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with pytest.raises(UnsafeCheckpointError, match="tar-format checkpoint"):
        read_checkpoint(write(tmp_path, buffer.getvalue()))


def test_large_legacy_file_is_no_tar(tmp_path: Path) -> None:
    content = legacy({"w": torch.arange(1000.0)})
    assert read_checkpoint(write(tmp_path, content)).format == "torch-legacy"


def test_pickle_that_evaluates_to_the_magic_number_is_not_the_magic(tmp_path: Path) -> None:
    content = legacy({"w": torch.ones(1)})
    disguised = content[:2] + b"N0" + content[2:]
    with pytest.raises(UnsafeCheckpointError, match="bytes follow the end of the pickle"):
        read_checkpoint(write(tmp_path, disguised))


def test_old_protocols_are_walked_like_the_others(tmp_path: Path) -> None:
    import pickle

    for protocol in (0, 1):
        with pytest.raises(CorruptCheckpointError, match="no state_dict found; top-level keys: a"):
            read_checkpoint(write(tmp_path, pickle.dumps({"a": 1}, protocol)))


def test_brace_at_the_ninth_byte_hides_no_call(tmp_path: Path) -> None:
    hostile = b"\x80\x04\x8c\x05abcd{0" + system_call(protocol=4)[2:]
    assert hostile[8:9] == b"{"
    with pytest.raises(UnsafeCheckpointError, match=r"would call os\.system"):
        read_checkpoint(write(tmp_path, hostile))


def test_text_with_a_brace_at_the_ninth_byte_is_text(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="is a text file"):
        read_checkpoint(write(tmp_path, b"function{ return 1 }\n"))


def test_formats_are_told_apart(tmp_path: Path) -> None:
    import pickle

    state = {"w": torch.ones(1)}
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for content, kind in (
        (saved(state), "torch-zip"),
        (legacy(state), "torch-legacy"),
        (pickle.dumps(state, 2), "pickle"),
        (safetensors(header, bytes(4)), "safetensors"),
    ):
        assert read_checkpoint(write(tmp_path, content)).format == kind


def test_order_of_bytes_is_not_that_of_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, system_call(), "weights.safetensors")
    with pytest.raises(UnsafeCheckpointError, match=r"would call os\.system"):
        read_checkpoint(path)
    assert os.fspath(path).endswith(".safetensors")
