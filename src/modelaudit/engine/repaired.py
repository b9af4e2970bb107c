"""A repaired model on its way to a file: encoded as asked, and checked as it will be read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from modelaudit.checkpoint import read_checkpoint
from modelaudit.checkpoint.write import encode_like, encode_safetensors
from modelaudit.engine.attempt import load_repaired
from modelaudit.errors import ConfigError, OutputError
from modelaudit.repair_results import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from modelaudit.engine.intake import Opened
    from modelaudit.engine.request import RepairRequest
    from modelaudit.repair_results import RepairReport

#: Clean images whose logits are compared between the file and memory.
_COMPARED = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFile:
    """A file that is ready to be written.

    Attributes:
        data: its bytes.
        format: as in `WrittenFile.format`.
        dropped_keys: as in `WrittenFile.dropped_keys`.
    """

    data: bytes
    format: str
    dropped_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repaired:
    """What a repair ends with; the suspect is what it was.

    Attributes:
        report: everything that is said of it; nothing is written yet.
        tensors: the new weights under the file's names and in its dtypes; None if there is nothing
            to be written.
        record: plain values for the file's metadata: where the weights come from.
        opened: the suspect as it was read.
        request: what was asked.
    """

    report: RepairReport
    tensors: Mapping[str, Tensor] | None
    record: Mapping[str, object]
    opened: Opened
    request: RepairRequest

    def module(self) -> nn.Module:
        """Return the repaired network in evaluation mode, float32, on the CPU.

        Raises:
            ConfigError: no repair was accepted.
        """
        return load_repaired(self._accepted(), self.opened)

    def encoded(self) -> EncodedFile:
        """Return the file: safetensors, or the input's container where that was asked for.

        Raises:
            ConfigError: no repair was accepted.
            CorruptCheckpointError: the input changed meanwhile.
        """
        tensors = self._accepted()
        if not self.request.keeps_format:
            data = encode_safetensors(tensors, record=self.record)
            return EncodedFile(data=data, format="safetensors")
        rewritten = encode_like(
            self.request.scan.checkpoint,
            tensors,
            sha256=self.opened.read.sha256,
            record=self.record,
            key=self.request.scan.weights,
        )
        return EncodedFile(
            data=rewritten.data, format=self.opened.read.format, dropped_keys=rewritten.dropped
        )

    def check(self, path: Path) -> None:
        """Read a written file as anybody would and compare it with the model in memory.

        Args:
            path: what `encoded` became.

        Raises:
            OutputError: the file gives other logits.
        """
        key = self.request.scan.weights if self.request.keeps_format else None
        images = self.opened.clean.images[:_COMPARED]
        normal = self.opened.suspect.preprocessing
        shape = (1, -1, 1, 1)
        inputs = (images - torch.tensor(normal.mean).view(shape)) / torch.tensor(normal.std).view(
            shape
        )
        with torch.inference_mode():
            expected = self.module()(inputs)
            read = read_checkpoint(path, key=key)
            found = load_repaired(read.weights.tensors, self.opened)(inputs)
        if not torch.equal(expected, found):
            raise OutputError(
                "the written file does not give the repaired model's logits; nothing was kept"
            )

    def written(self, file: EncodedFile, path: Path) -> Repaired:
        """Return this with the file in its report."""
        record = WrittenFile(
            path=str(path),
            sha256=hashlib.sha256(file.data).hexdigest(),
            size=len(file.data),
            format=file.format,
            dropped_keys=file.dropped_keys,
        )
        return replace(self, report=replace(self.report, written=record))

    def _accepted(self) -> Mapping[str, Tensor]:
        if self.tensors is None:
            raise ConfigError(f"there is no repaired model: {self.report.reason}")
        return self.tensors
