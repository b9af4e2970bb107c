"""Lists the ways to run a model that are worth trying."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelaudit.errors import DataError, FitError
from modelaudit.fit.trial import Hypothesis
from modelaudit.preprocessing import PRESETS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelaudit.architectures.base import Candidate
    from modelaudit.cleanset import CleanSet, Split

#: Tried where an architecture names no size.
_USUAL_SIZES = (32, 64, 224)

_COLOURS = 3

#: Normalisations that stand for all others where a pair of architecture and size is in doubt.
_PROBES = ("cifar10_0.2023", "none", "half")

#: A pair whose probes would take more multiply-adds than this, some ten seconds on one core, is
#: probed with the first of them alone.
_PROBE_WORK = 2 * 10**11

#: Up to this size, in pixels, nobody asks what a probe costs.
_CHEAP_SIZE = 64


def num_outputs(candidates: Sequence[Candidate], clean: CleanSet, split: Split) -> int:
    """Return the number of outputs K of the first candidate that the clean set fits.

    Raises:
        DataError: fewer than two images, or more class folders than outputs.
        FitError: every candidate has a single output.
    """
    if not len(split.search) or not len(split.judge):
        raise DataError(
            f"{clean.path}: expected at least 2 clean images, found {len(clean)}; add images"
        )
    outputs = [c.num_classes for c in candidates]
    if max(outputs) < 2:
        raise FitError(
            "the model has one output; only classifiers with an output per class can be scanned"
        )
    fitting = [k for k in outputs if k >= max(2, len(clean.folders))]
    if not fitting:
        raise DataError(
            f"the model has {max(outputs)} outputs, the clean folder {len(clean.folders)} classes"
        )
    return fitting[0]


def unusable_reason(candidate: Candidate, num_classes: int) -> str | None:
    """Return why a candidate cannot be tried on images at all; None if it can."""
    if candidate.num_classes != num_classes:
        return f"it has {candidate.num_classes} outputs, not {num_classes}"
    if candidate.input_channels not in {1, _COLOURS}:
        return f"it takes {candidate.input_channels} input channels, not 1 or 3"
    return None


def tiers(
    candidates: Sequence[Candidate],
    usable: Sequence[int],
    *,
    native_size: int | None,
    input_size: int | None,
    preprocessing: Preprocessing | None,
) -> list[list[Hypothesis]]:
    """List hypotheses; a later tier is for when nothing in an earlier one fits.

    Images whose own size is plausible are first tried at that size alone.

    Args:
        candidates: the architectures.
        usable: indices of those to try.
        native_size: the images' own size if they are squares of one size, pixels.
        input_size: the size if the user gave it.
        preprocessing: the normalisation if the user gave it.

    Returns:
        One or two lists.

    Raises:
        ConfigError: `preprocessing` does not fit a candidate's number of channels.
    """
    first: list[Hypothesis] = []
    second: list[Hypothesis] = []
    for index in usable:
        candidate = candidates[index]
        presets = presets_for(candidate.input_channels, preprocessing)
        sizes = candidate.input_sizes or _USUAL_SIZES
        if input_size is not None:
            sizes = (input_size,)
        for size in dict.fromkeys(sizes):
            is_later = native_size in sizes and size != native_size
            (second if is_later else first).extend(
                Hypothesis(candidate=index, input_size=size, preprocessing=preset)
                for preset in presets
            )
    return [tier for tier in (first, second) if tier]


def probes_of(
    tier: Sequence[Hypothesis], work: Callable[[Hypothesis], int], *, images: int
) -> list[Hypothesis]:
    """Return the hypotheses that stand for their pairs of architecture and size.

    Args:
        tier: the hypotheses.
        work: multiply-adds of one image under a hypothesis.
        images: how many each probe would run.
    """
    known = {h.preprocessing.id for h in tier}
    usual = [name for name in _PROBES if name in known]
    if not usual:
        return list(tier)
    limit = _PROBE_WORK // (images * len(usual))
    return [
        h
        for h in tier
        if h.preprocessing.id == usual[0]
        or (h.preprocessing.id in usual and (h.input_size <= _CHEAP_SIZE or work(h) <= limit))
    ]


def presets_for(channels: int, given: Preprocessing | None) -> tuple[Preprocessing, ...]:
    """Return the normalisations to try: the given one, or all that differ on `channels`."""
    if given is not None:
        return (given.for_channels(channels),)
    known = [p for p in PRESETS if channels == 1 or len(p.mean) == channels]
    different: dict[tuple[tuple[float, ...], tuple[float, ...]], Preprocessing] = {}
    for preset in known:
        fitted = preset.for_channels(channels)
        different.setdefault((fitted.mean, fitted.std), fitted)
    return tuple(different.values())
