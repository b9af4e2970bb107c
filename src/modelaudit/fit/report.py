"""Measures the winner on the judging images and says what was chosen, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from modelaudit.fit.choose import Trial, describe
from modelaudit.fit.crops import TrainingCrop
from modelaudit.fit.labels import LabelMap, contradictions
from modelaudit.fit.result import Fit, accuracy_gate
from modelaudit.fit.trial import Hypothesis, Predicted, Runner, TrialError
from modelaudit.functional.statistics import clopper_pearson, lower_bound
from modelaudit.results import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelaudit.cleanset import CleanSet, Split

#: The right normalisation's median divergence was .0001 to .0004, a wrong one's at least .0104
#: (methods/detectors.md §12.5).
HIGH_DIVERGENCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user gave; it is not worked out.

    Attributes:
        preprocessing: whether the normalisation was given.
        input_size: whether the input size was given.
        classes: class name per output; None if not given.
    """

    preprocessing: bool
    input_size: bool
    classes: tuple[str, ...] | None


class Reporter:
    """Runs the winner on all images and its runners-up on the judging ones.

    Args:
        runner: runs hypotheses.
        clean: the images.
        split: its search and judging images.
        given: what the user gave.
        label_map: output per folder; None if the images are unlabelled.
    """

    def __init__(
        self,
        runner: Runner,
        clean: CleanSet,
        split: Split,
        given: Given,
        label_map: LabelMap | None,
    ) -> None:
        self._runner = runner
        self._clean = clean
        self._judge = split.judge
        self._given = given
        self._map = label_map
        self._labels: np.ndarray | None = None
        if label_map is not None and clean.labels is not None:
            self._labels = label_map.of(clean.labels)

    def assemble(self, winner: Trial, alternatives: Sequence[Trial], notes: Sequence[str]) -> Fit:
        """Return the result.

        Args:
            winner: the chosen trial.
            alternatives: all trials that were run, the plausible ones first.
            notes: sentences so far.

        Raises:
            FitError: the winner does not give finite logits on all images.
        """
        hypothesis = winner.hypothesis
        candidate = self._runner.candidates[hypothesis.candidate]
        predicted = self._runner.predict(hypothesis, np.arange(len(self._clean)))
        crop = TrainingCrop.NONE if winner.match is None else winner.match.crop
        divergence = self._runner.divergence(hypothesis, self._judge, crop)
        accuracy: float | None = None
        interval: tuple[float, float] | None = None
        gate = accuracy_gate(candidate.num_classes)
        passes = True
        if self._labels is not None:
            right = int((self._labels == predicted.outputs)[self._judge].sum())
            accuracy = right / len(self._judge)
            interval = clopper_pearson(right, len(self._judge))
            passes = lower_bound(right, len(self._judge)) >= gate
        is_certain = (
            self._given.preprocessing
            or self._labels is not None
            or (divergence is not None and divergence <= HIGH_DIVERGENCE)
        )
        mine = self._scores(_rows(predicted, self._judge), divergence)
        return Fit(
            module=self._runner.module(hypothesis.candidate),
            candidate=candidate,
            preprocessing=hypothesis.preprocessing,
            input_size=hypothesis.input_size,
            input_channels=candidate.input_channels,
            num_classes=candidate.num_classes,
            labels=None if self._labels is None else torch.from_numpy(self._labels),
            predictions=torch.from_numpy(predicted.outputs),
            class_names=self._class_names(candidate.num_classes),
            accuracy=accuracy,
            accuracy_interval=interval,
            gate=gate,
            passes_gate=passes,
            preprocessing_is_certain=is_certain,
            divergence=divergence,
            training_crop=crop,
            choices=self._choices(winner, alternatives, mine, divergence),
            notes=(*notes, *self._notes(predicted, divergence, is_certain=is_certain)),
            # Read last: the runners-up were run above.
            forward_passes=self._runner.forward_passes,
            stem_passes=self._runner.stem_passes,
        )

    def _notes(
        self, predicted: Predicted, divergence: float | None, *, is_certain: bool
    ) -> list[str]:
        notes: list[str] = []
        if self._map is not None and self._clean.labels is not None:
            notes += contradictions(
                self._map, predicted.outputs, self._clean.labels, self._clean.folders
            )
        if divergence is not None and divergence > HIGH_DIVERGENCE:
            notes.append(
                f"the first BatchNorm layer's statistics are not those of the clean images (median "
                f"divergence {divergence:.2g} nats): training used another normalisation or other "
                "images; give --mean and --std if they are known"
            )
        elif not is_certain:
            notes.append(
                "without labels and BatchNorm the normalisation is a guess by the model's "
                "confidence; give --preprocess, or --mean and --std"
            )
        return notes

    def _choices(
        self,
        winner: Trial,
        alternatives: Sequence[Trial],
        mine: str,
        divergence: float | None,
    ) -> tuple[Choice, ...]:
        chosen = winner.hypothesis
        candidates = self._runner.candidates

        def architecture(h: Hypothesis) -> str:
            return describe(candidates[h.candidate], candidates)

        def choice(
            name: str,
            value: Callable[[Hypothesis], str],
            is_rival: Callable[[Hypothesis], bool],
            *,
            is_given: bool = False,
        ) -> Choice:
            rival = next((t.hypothesis for t in alternatives if is_rival(t.hypothesis)), None)
            return Choice(
                name=name,
                value=value(chosen),
                is_given=is_given,
                margin="" if rival is None else f"{mine} against {self._measure(rival)}",
                runner_up="" if rival is None else value(rival),
            )

        choices = [
            choice("architecture", architecture, lambda h: h.candidate != chosen.candidate),
            choice(
                "preprocessing",
                lambda h: h.preprocessing.id,
                lambda h: (
                    (h.candidate, h.input_size) == (chosen.candidate, chosen.input_size)
                    and h.preprocessing != chosen.preprocessing
                ),
                is_given=self._given.preprocessing,
            ),
            choice(
                "input_size",
                lambda h: str(h.input_size),
                lambda h: h.candidate == chosen.candidate and h.input_size != chosen.input_size,
                is_given=self._given.input_size,
            ),
        ]
        if winner.match is not None and winner.match.crop is not TrainingCrop.NONE:
            plain = self._runner.divergence(chosen, self._judge, TrainingCrop.NONE)
            choices.append(
                Choice(
                    name="training_crop",
                    value=winner.match.crop.value,
                    margin=f"first-layer divergence {nats(divergence)} against {nats(plain)}",
                    runner_up=TrainingCrop.NONE.value,
                )
            )
        if self._map is not None:
            choices.append(Choice(name="labels", value=self._map.rule, is_given=self._map.is_given))
        return tuple(choices)

    def _measure(self, hypothesis: Hypothesis) -> str:
        try:
            predicted = self._runner.predict(hypothesis, self._judge)
            match = self._runner.match(hypothesis, self._judge)
        except TrialError as err:
            return f"none ({err})"
        return self._scores(predicted, None if match is None else match.divergence)

    def _scores(self, predicted: Predicted, divergence: float | None) -> str:
        if self._labels is None:
            text = f"mean confidence {predicted.confidence.mean():.3f}"
        else:
            text = f"accuracy {(self._labels[self._judge] == predicted.outputs).mean():.3f}"
        return text if divergence is None else f"{text}, first-layer divergence {nats(divergence)}"

    def _class_names(self, num_classes: int) -> tuple[str, ...]:
        if self._given.classes is not None:
            return self._given.classes
        names = [""] * num_classes
        if self._map is not None and self._map.has_names:
            for output, folder in zip(self._map.outputs, self._clean.folders, strict=True):
                names[output] = folder
        return tuple(names)


def nats(divergence: float | None) -> str:
    """Return a divergence in words; None where all channels are constant on the images."""
    return "undefined" if divergence is None else f"{divergence:.2g}"


def _rows(predicted: Predicted, indices: np.ndarray) -> Predicted:
    return Predicted(outputs=predicted.outputs[indices], confidence=predicted.confidence[indices])
