"""Read one untrusted checkpoint: open, tell the format, walk, find the weights, check, build."""

from __future__ import annotations

import logging
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from modelaudit.checkpoint._claim import read_claim
from modelaudit.checkpoint._formats import identify
from modelaudit.checkpoint._legacy import read_bare_pickle, read_legacy
from modelaudit.checkpoint._others import find_others
from modelaudit.checkpoint._safetensors import read_safetensors
from modelaudit.checkpoint._source import open_source
from modelaudit.checkpoint._state_dict import find_weights
from modelaudit.checkpoint._torch_zip import read_torch_zip
from modelaudit.checkpoint._types import DEFAULT_LIMITS, Checkpoint
from modelaudit.weights import Weights

if TYPE_CHECKING:
    import os

    from modelaudit.checkpoint._source import Source
    from modelaudit.checkpoint._types import Limits
    from modelaudit.checkpoint._values import Parsed

_logger = logging.getLogger(__name__)


def read_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> Checkpoint:
    """Read named tensors from a file that nobody trusts.

    Nothing in the file is imported, called or executed, whatever it says (docs/security-model.md).
    Torch zip and legacy files, bare pickles of tensors and safetensors are told apart by content.

    Args:
        path: the file.
        key: dotted key under which the weights are; None to work it out.
        limits: what the file may ask of this machine.

    Returns:
        The weights with where they were found, the file's digest, and what was noticed.

    Raises:
        UnsafeCheckpointError: loading the file elsewhere would execute code, or it is ambiguous.
        CorruptCheckpointError: missing, damaged, over a limit, not finite, or no checkpoint.
        ConfigError: there is nothing under `key`.
    """
    source = open_source(path, limits)
    parsed = _parse(source, limits)
    found = find_weights(parsed.value, limits, key=key)
    # torch takes seconds to import; a file that is refused is refused without it
    from modelaudit.checkpoint._sanity import check_values
    from modelaudit.checkpoint._tensors import build_tensors, have_same_values

    tensors = build_tensors(
        found.records, parsed, name=source.name, file_bytes=len(source.data), limits=limits
    )
    check_values(tensors)
    others = find_others(
        parsed.value, found.records, partial(have_same_values, parsed=parsed), limits
    )
    _logger.debug("%s: %s, %d tensors", source.name, parsed.format, len(tensors))
    return Checkpoint(
        path=source.path,
        sha256=source.sha256,
        size_bytes=len(source.data),
        format=parsed.format,
        weights=Weights(
            tensors=MappingProxyType(tensors),
            hints=MappingProxyType(found.hints),
            metadata=MappingProxyType({**found.metadata, **parsed.metadata}),
        ),
        state_dict_key=".".join(found.path) or None,
        stripped_prefix=found.prefix,
        ignored_keys=tuple(found.ignored),
        other_weights=others.keys,
        findings=parsed.findings,
        repair=read_claim(parsed),
    )


def _parse(source: Source, limits: Limits) -> Parsed:
    kind = identify(source)
    if kind == "zip":
        return read_torch_zip(source, limits)
    if kind == "legacy":
        return read_legacy(source, limits)
    if kind == "safetensors":
        return read_safetensors(source, limits)
    return read_bare_pickle(source, limits, is_certain=kind == "pickle")
