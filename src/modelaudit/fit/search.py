"""Picks architecture, normalisation, input size and label map on the clean set."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np

from modelaudit.errors import FitError
from modelaudit.fit.choose import Trial, best_of, contenders, describe, plausible, settle
from modelaudit.fit.hypotheses import num_outputs, probes_of, tiers, unusable_reason
from modelaudit.fit.naming import Naming
from modelaudit.fit.report import Given, Reporter
from modelaudit.fit.result import Fit, accuracy_gate
from modelaudit.fit.trial import Hypothesis, Predicted, Runner, TrialError
from modelaudit.functional.statistics import lower_bound
from modelaudit.progress import NoProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import nn

    from modelaudit.architectures.base import Candidate
    from modelaudit.cleanset import CleanSet, Split
    from modelaudit.preprocessing import Preprocessing

_log = logging.getLogger(__name__)

#: Images of the first look at every hypothesis, for inputs of up to 64 pixels; fewer for larger
#: ones.
_SCREEN_IMAGES = 64
_SCREEN_SIZE = 64
_MIN_SCREEN_IMAGES = 32

#: Images that the first BatchNorm layer is compared on; all search images where that leaves doubt.
_MATCH_IMAGES = 128

#: More pairs of architecture and input size than this are thinned out with a few normalisations
#: first.
_MAX_PAIRS = 4
_PROBE_IMAGES = 32


def fit(
    candidates: Sequence[Candidate],
    load: Callable[[Candidate], nn.Module],
    clean: CleanSet,
    split: Split,
    *,
    preprocessing: Preprocessing | None,
    input_size: int | None,
    classes: Sequence[str] | None,
    device: torch.device,
    batch_size: int = 128,
    progress: Progress = NoProgress(),  # noqa: B008 - has no state
) -> Fit:
    """Work out how the model is run on the clean set, by the order of methods/detectors.md §12.5.

    Every architecture is tried with every known normalisation and plausible input size. On the
    search images accuracy drops what is more than two standard errors below the best; of the rest
    the lowest median divergence of the first BatchNorm layer wins if it is at most half the
    runner-up's. What then is left must predict the same on 98 % of the images. Accuracy and margins
    are measured on the judging images.

    Differs from §12.5: at first every hypothesis is run on up to 64 search images, and its first
    layer on up to 128; all of them only for those that are then left. Sizes other than the images'
    own are for when these fail, and are first looked at under a few normalisations; what cannot
    reach the accuracy gate, whatever output each folder may mean, is not followed up. No limit
    is one of time, so the same input has the same result everywhere. The divergence is the lowest
    over the usual random crops of training (`modelaudit.fit.crops`), without which their padding
    hides the normalisation.

    Args:
        candidates: architectures that the weights fit, best first; at least one.
        load: makes a candidate's float32 module with the weights in it.
        clean: the clean images.
        split: which images are chosen on and which are reported on.
        preprocessing: the normalisation if the user gave it.
        input_size: the side of the square input, pixels, if the user gave it.
        classes: class (folder) name per output if the user gave them.
        device: where to compute.
        batch_size: images per forward pass; changes no result.
        progress: told about every hypothesis.

    Returns:
        The way to run the model. An accuracy below the gate is not an error: see `Fit.passes_gate`.

    Raises:
        DataError: fewer than 2 images, more class folders than outputs, or `classes` does not fit.
        FitError: the model has one output; no candidate runs; two ways do equally well and differ;
            or the class folders' names do not tell which output they belong to.
        ConfigError: `preprocessing` does not fit the number of input channels.
    """
    if not candidates:
        raise ValueError("fit needs at least one candidate")
    runner = Runner(candidates, load, clean, device=device, batch_size=batch_size)
    given = Given(
        preprocessing=preprocessing is not None,
        input_size=input_size is not None,
        classes=None if classes is None else tuple(classes),
    )
    return _Search(runner, clean, split, given, progress).run(preprocessing, input_size)


class _Search:
    """The state of one call of `fit`."""

    def __init__(
        self,
        runner: Runner,
        clean: CleanSet,
        split: Split,
        given: Given,
        progress: Progress,
    ) -> None:
        self.runner = runner
        self.candidates = runner.candidates
        self.clean = clean
        self.split = split
        self.given = given
        self.progress = progress
        self.num_classes = num_outputs(self.candidates, clean, split)
        self.gate = accuracy_gate(self.num_classes)
        self.naming = Naming(clean, given.classes, num_classes=self.num_classes, gate=self.gate)
        #: candidates that gave logits, and why others did not
        self.ran: set[int] = set()
        self.failed: dict[int, str] = {}

    def run(self, preprocessing: Preprocessing | None, input_size: int | None) -> Fit:
        """Choose on the search images, measure on the judging ones."""
        trials = self._trials(preprocessing, input_size)
        is_labelled = self.clean.labels is not None
        # Confidence says little about the normalisation: without labels every one of them is kept.
        survivors = plausible(trials) if is_labelled else trials
        some = self.clean.stratified(self.split.search, _MATCH_IMAGES)
        survivors = self._matched(survivors, some)
        left = contenders(survivors)
        notes: tuple[str, ...] = ()
        if len(left) > 1 and len(some) < len(self.split.search):
            left = contenders(self._matched(left, self.split.search))
        if len(left) > 1:
            left = self._full(left)
        if is_labelled or any(t.match is None for t in left):
            left = plausible(left)
        winner = best_of(left)
        if not is_labelled or self._reaches_gate(left):
            notes = settle(winner, self._rivals(winner, left), self.candidates)
        reporter = Reporter(
            self.runner, self.clean, self.split, self.given, self.naming.map_of(winner.hypothesis)
        )
        alternatives = [
            *sorted(survivors, key=lambda t: (t.divergence or 0.0, -t.score, t.order)),
            *sorted(trials, key=lambda t: (-t.score, t.order)),
        ]
        return reporter.assemble(winner, alternatives, [*self._failures(), *notes])

    # --- hypotheses -------------------------------------------------------------------------

    def _trials(self, preprocessing: Preprocessing | None, input_size: int | None) -> list[Trial]:
        """Run every hypothesis on a few images; go on to less likely sizes if nothing fits."""
        usable: list[int] = []
        for index, candidate in enumerate(self.candidates):
            reason = unusable_reason(candidate, self.num_classes)
            if reason is None:
                usable.append(index)
            else:
                self.failed[index] = reason
        trials: list[Trial] = []
        hypotheses: list[Hypothesis] = []
        for place, tier in enumerate(
            tiers(
                self.candidates,
                usable,
                native_size=self.clean.native_size,
                input_size=input_size,
                preprocessing=preprocessing,
            )
        ):
            hopeful = self._thin_out(tier, is_last_resort=place > 0)
            if place > 0 and not hopeful:
                continue
            hypotheses += hopeful
            trials = self._screen(hypotheses)
            if trials and (self.clean.labels is None or self._reaches_gate(trials)):
                break
        if not trials:
            raise FitError(self._why_nothing_fits())
        return trials

    def _thin_out(self, tier: Sequence[Hypothesis], *, is_last_resort: bool) -> list[Hypothesis]:
        """Drop pairs of architecture and size that are hopeless under a few normalisations.

        Of a last resort nothing may be left; else the smallest size is, for the result to speak of.
        """
        pairs = dict.fromkeys(_pair(h) for h in tier)
        if self.clean.labels is None or not (is_last_resort or len(pairs) > _MAX_PAIRS):
            return list(tier)
        probes = probes_of(tier, self.runner.work, images=_PROBE_IMAGES)
        images = self.clean.stratified(self.split.search, _PROBE_IMAGES)
        with self.progress.task("fit: architectures", len(probes)) as task:
            found = self._predictions(probes, images, task.advance)
        reaching = set(self.naming.within_reach(found, images))
        hopeful = {_pair(h) for h in self.naming.hopeful(found, images) if h in reaching}
        if not hopeful and not is_last_resort:
            hopeful = {_pair(h) for h in sorted(found, key=lambda h: h.input_size)[:1]}
        return [h for h in tier if _pair(h) in hopeful]

    def _screen(self, hypotheses: Sequence[Hypothesis]) -> list[Trial]:
        if not hypotheses:
            return []
        largest = max(h.input_size for h in hypotheses)
        count = int(_SCREEN_IMAGES * min(1.0, (_SCREEN_SIZE / largest) ** 2))
        images = self.clean.stratified(self.split.search, max(count, _MIN_SCREEN_IMAGES))
        with self.progress.task("fit: preprocessing and labels", len(hypotheses)) as task:
            found = self._predictions(hypotheses, images, task.advance)
        if not found:
            return []
        if not self.naming.is_known and not self.naming.sorted_fits(found, images):
            # The first look has too few images of each folder for a majority.
            found = self._seen_in_full(found, images)
            images = self.split.search
            if not found:
                return []
            if not self.naming.sorted_fits(found, images):
                found = {h: found[h] for h in self.naming.take_majorities(found, images)}
        return [
            self._trial(h, order, found[h], images)
            for order, h in enumerate(hypotheses)
            if h in found
        ]

    def _seen_in_full(
        self, found: dict[Hypothesis, Predicted], images: np.ndarray
    ) -> dict[Hypothesis, Predicted]:
        """Run what may still fit on all search images.

        The best of each pair goes first: where it cannot reach the gate, its pair is left.
        """
        hopeful = self.naming.hopeful(found, images)
        reaching = self.naming.within_reach({h: found[h] for h in hopeful}, images)
        first: dict[tuple[int, int], Hypothesis] = {}
        for hypothesis in reaching:
            first.setdefault(_pair(hypothesis), hypothesis)
        best = self._predictions(first.values(), self.split.search)
        kept = {_pair(h) for h in self.naming.within_reach(best, self.split.search)}
        others = [h for h in hopeful if _pair(h) in kept and h not in best]
        return {h: p for h, p in best.items() if _pair(h) in kept} | self._predictions(
            others, self.split.search
        )

    def _predictions(
        self,
        hypotheses: Iterable[Hypothesis],
        images: np.ndarray,
        advance: Callable[[], None] = lambda: None,
    ) -> dict[Hypothesis, Predicted]:
        found: dict[Hypothesis, Predicted] = {}
        for hypothesis in hypotheses:
            try:
                found[hypothesis] = self.runner.predict(hypothesis, images)
                self.ran.add(hypothesis.candidate)
            except TrialError as err:
                _log.debug("%s left out: %s", hypothesis, err)
                self.failed.setdefault(hypothesis.candidate, str(err))
            advance()
        return found

    def _trial(
        self, hypothesis: Hypothesis, order: int, predicted: Predicted, images: np.ndarray
    ) -> Trial:
        return Trial(
            hypothesis=hypothesis,
            order=order,
            outputs=predicted.outputs,
            hits=self.naming.hits(hypothesis, predicted, images),
            is_labelled=self.clean.labels is not None,
        )

    def _full(self, trials: Sequence[Trial]) -> list[Trial]:
        """Run trials on all search images."""
        images = self.split.search
        with self.progress.task("fit: closest alternatives", len(trials)) as task:
            found = self._predictions([t.hypothesis for t in trials], images, task.advance)
        if not found:
            raise FitError(self._why_nothing_runs())
        return [
            dataclasses.replace(
                self._trial(t.hypothesis, t.order, found[t.hypothesis], images),
                match=t.match,
            )
            for t in trials
            if t.hypothesis in found
        ]

    def _matched(self, trials: Sequence[Trial], images: np.ndarray) -> list[Trial]:
        return [
            dataclasses.replace(t, match=self.runner.match(t.hypothesis, images)) for t in trials
        ]

    # --- choice -----------------------------------------------------------------------------

    def _reaches_gate(self, trials: Sequence[Trial]) -> bool:
        """Say whether a label map fits at all; below the gate a tie is no finding."""
        best = max(trials, key=lambda t: t.score)
        return lower_bound(int(best.hits.sum()), len(best.hits)) >= self.gate

    def _rivals(self, winner: Trial, trials: Sequence[Trial]) -> list[Trial]:
        """Return the trials that a tie with the winner is an error with.

        Unlabelled and without BatchNorm the normalisation is a guess anyway, and the result says
        so.
        """
        mine = winner.hypothesis
        is_guess = self.clean.labels is None and winner.divergence is None
        return [
            t
            for t in trials
            if t is not winner and not (is_guess and _pair(t.hypothesis) == _pair(mine))
        ]

    def _failures(self) -> list[str]:
        return [
            f"{self._name(index)} was left out: {reason}"
            for index, reason in self.failed.items()
            if index not in self.ran
        ]

    def _name(self, index: int) -> str:
        return describe(self.candidates[index], self.candidates)

    def _why_nothing_fits(self) -> str:
        if self.ran and self.clean.labels is not None:
            return (
                f"the names of the class folders ({', '.join(map(repr, self.clean.folders[:3]))}, "
                f"...) do not tell which of the {self.num_classes} outputs they mean: neither "
                "their sorted order nor the majority of predictions fits; name the outputs with "
                "--classes, or give the normalisation with --preprocess"
            )
        return self._why_nothing_runs()

    def _why_nothing_runs(self) -> str:
        reasons = [f"{self._name(i)}: {reason}" for i, reason in self.failed.items()]
        return (
            "no architecture that the weights fit runs on the clean images "
            f"({'; '.join(reasons[:3])}); give --arch or --input-size"
        )


def _pair(hypothesis: Hypothesis) -> tuple[int, int]:
    return hypothesis.candidate, hypothesis.input_size
