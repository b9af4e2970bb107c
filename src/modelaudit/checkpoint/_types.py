"""The nouns of this room: what a read checkpoint is, what was noticed, and the limits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from modelaudit.results import StaticFinding, Verdict
    from modelaudit.weights import Weights

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may ask of this machine; more is refused before it is allocated.

    Attributes:
        max_file_bytes: size of the file.
        max_pickle_bytes: size of one pickle stream.
        max_opcodes: instructions of one pickle stream; bounds its time and memory.
        max_expansion: bytes that the file may become, as a multiple of its size ...
        expansion_floor_bytes: ... but at least this many, so that small files may compress well.
        max_ratio: inflated over stored size of an archive, whatever its size.
        max_members: members of an archive.
        max_header_bytes: a safetensors header.
        max_tensors: tensors of the chosen state dict.
        max_parameters: their elements together.
        max_modules: modules of a pickled whole module.
        max_depth: nesting of modules, and of containers around a state dict.
        max_key_length: characters of a state-dict key.
    """

    max_file_bytes: int = 4 * _GIB
    max_pickle_bytes: int = 64 * _MIB
    max_opcodes: int = 5_000_000
    max_expansion: int = 4
    expansion_floor_bytes: int = 64 * _MIB
    max_ratio: int = 100
    max_members: int = 200_000
    max_header_bytes: int = 100_000_000
    max_tensors: int = 100_000
    max_parameters: int = 2_000_000_000
    max_modules: int = 100_000
    max_depth: int = 64
    max_key_length: int = 1_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value: int = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"limit {field.name} must be at least 1, got {value!r}")

    def expanded_bytes(self, file_bytes: int) -> int:
        """Return the bytes that a file of `file_bytes` may become in memory."""
        return max(self.max_expansion * file_bytes, self.expansion_floor_bytes)


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairClaim:
    """What a file says of the repair that it comes from: of the form that we write, and untrusted.

    Attributes:
        method: ids of the repairs in it, in order.
        input_sha256: of the file that was repaired.
        verdict: of the re-scan that the repair made; None where the record does not say.
        reason_code: of that verdict; empty likewise.
        trained_against: ids of the scanners whose pushes the repair has trained against.
    """

    method: str
    input_sha256: str
    verdict: Verdict | None = None
    reason_code: str = ""
    trained_against: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An untrusted file, read within limits; nothing of it was imported, called or executed.

    Keys, paths and metadata are the file's own text: escape them before printing.

    Attributes:
        path: the real path, symbolic links followed.
        sha256: hexadecimal digest of the very bytes that were parsed.
        size_bytes: length of the file.
        format: ``"torch-zip"``, ``"torch-legacy"``, ``"pickle"`` or ``"safetensors"``.
        weights: the named tensors, hints and metadata.
        state_dict_key: dotted path of the container key under which the weights were found; None if
            they were the whole file.
        stripped_prefix: wrapper prefix removed from every key, such as ``"module."``; None if none.
        ignored_keys: dotted keys of the file that are not part of the weights.
        other_weights: dotted keys under which it holds other weights; see `_others.find_others`.
        findings: what was noticed, in the order of the file.
        repair: what the file says of the repair that it comes from; None if nothing.
    """

    path: str
    sha256: str
    size_bytes: int
    format: str
    weights: Weights
    state_dict_key: str | None = None
    stripped_prefix: str | None = None
    ignored_keys: tuple[str, ...] = ()
    other_weights: tuple[str, ...] = ()
    findings: tuple[StaticFinding, ...] = ()
    repair: RepairClaim | None = None
