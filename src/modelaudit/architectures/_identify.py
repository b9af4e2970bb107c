"""Which architectures a set of named tensors can be."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from modelaudit.architectures._build import compare, on_meta
from modelaudit.architectures._hints import apply_hints
from modelaudit.architectures._keys import describe
from modelaudit.errors import ConfigError, PluginError, UnknownArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from modelaudit.architectures.base import ArchitectureFamily, Candidate
    from modelaudit.weights import Weights

_LOG = logging.getLogger(__name__)
_CLOSEST = 3
_FIRST_KEYS = 3
_LISTED_LAYERS = 4


@dataclass(frozen=True, slots=True)
class _NearMiss:
    agreeing: int
    line: str


class _Search:
    """One identification: exact fits in order, near misses for a refusal."""

    def __init__(self, weights: Weights, family_or_name: str | None) -> None:
        self.weights = weights
        self.wanted = family_or_name
        self.fits: list[Candidate] = []
        self.misses: list[_NearMiss] = []
        self.broken: PluginError | None = None
        self._seen: set[tuple[object, ...]] = set()

    def _is_wanted(self, candidate: Candidate) -> bool:
        if candidate.is_only_by_name:
            return self.wanted == candidate.name
        return self.wanted is None or self.wanted in {candidate.name, candidate.family}

    def examine(self, proposals: Iterable[Candidate]) -> None:
        """Build each proposal without memory and sort it into fits and misses."""
        for candidate in proposals:
            if not self._is_wanted(candidate):
                continue
            try:
                module = on_meta(candidate.build)
            except PluginError as err:
                self.broken = err
                continue
            if module is not None:
                self._sort_in(candidate, module)

    def _sort_in(self, candidate: Candidate, module: nn.Module) -> None:
        agreeing, difference = compare(module, self.weights, candidate.rename)
        if difference:
            name = describe(candidate.name, candidate.arguments)
            self.misses.append(_NearMiss(agreeing, f"{name}: first differing key {difference}"))
            return
        if self.weights.hints:
            candidate = _with_hints(candidate, module, self.weights)
        arguments = tuple(sorted((k, repr(v)) for k, v in candidate.arguments.items()))
        signature = (candidate.family, candidate.name, arguments, repr(module))
        if signature not in self._seen:
            self._seen.add(signature)
            self.fits.append(candidate)


def _with_hints(candidate: Candidate, module: nn.Module, weights: Weights) -> Candidate:
    """Return the candidate whose module has the pickled module's attributes, and say so."""
    hints, rename = weights.hints, candidate.rename
    changed = apply_hints(module, hints, rename)
    if not changed:
        return candidate

    def build() -> nn.Module:
        built = candidate.build()
        apply_hints(built, hints, rename)
        return built

    listed = ", ".join(changed[:_LISTED_LAYERS]) + (
        ", ..." if len(changed) > _LISTED_LAYERS else ""
    )
    note = f"stride, padding, eps or kind of {len(changed)} layers as pickled: {listed}"
    return replace(candidate, build=build, notes=(*candidate.notes, note))


def _check_name(name: str, families: Sequence[ArchitectureFamily]) -> None:
    known = sorted({known for family in families for known in (family.id, *family.names())})
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}" if near else f"known are {', '.join(known)}"
    )
    raise ConfigError(
        f"--arch expects an architecture's name or path/to/file.py:factory, found {name!r}; {hint}"
    )


def _refusal(search: _Search) -> UnknownArchitectureError:
    lines: list[str] = []
    for miss in sorted(search.misses, key=lambda m: -m.agreeing):
        if miss.line not in lines:
            lines.append(miss.line)
    keys = ", ".join(list(search.weights.tensors)[:_FIRST_KEYS]) or "none"
    ellipsis = " ..." if len(search.weights.tensors) > _FIRST_KEYS else ""
    if search.wanted is None:
        message = f"architecture not recognised (first keys: {keys}{ellipsis}); pass --arch"
    else:
        message = (
            f"the checkpoint is not a {search.wanted} (first keys: {keys}{ellipsis}); "
            "pass another --arch, or none"
        )
    return UnknownArchitectureError(message, closest=tuple(lines[:_CLOSEST]))


def identify(
    weights: Weights, *, families: Iterable[ArchitectureFamily], name: str | None = None
) -> list[Candidate]:
    """Return every architecture that has exactly these key names and shapes.

    Each proposal is built under ``torch.device("meta")`` and compared key by key; nothing but a
    missing batch counter (``num_batches_tracked``) may differ. Fallback families are asked only
    where the others have no fit, or by name.

    Args:
        weights: the file's tensors and hints.
        families: whom to ask, in order of preference.
        name: an architecture's name or a family's id; restricts the search to it.

    Returns:
        Candidates without duplicates, in the families' order; hints of a pickled module are
        applied.

    Raises:
        ConfigError: no family knows `name`.
        UnknownArchitectureError: nothing fits; ``closest`` holds up to three lines, each an
            architecture with the first key that differs.
        PluginError: a fitting architecture needs a library that cannot be imported, and nothing
            else fits.
    """
    asked = list(families)
    if name is not None:
        _check_name(name, asked)
    search = _Search(weights, name)
    # an empty tensor belongs to no classifier, and torch warns when a layer is made with one
    if weights.tensors and all(tensor.numel() > 0 for tensor in weights.tensors.values()):
        for is_fallback in (False, True):
            if search.fits:
                break
            for family in asked:
                if family.is_fallback == is_fallback:
                    search.examine(family.propose(weights))
    if search.fits:
        _LOG.debug("architectures that fit: %s", [candidate.name for candidate in search.fits])
        return search.fits
    if search.broken is not None:
        raise search.broken
    for family in asked:
        examples = iter(family.examples())
        search.examine(examples if name is not None else islice(examples, 1))
    raise _refusal(search)
