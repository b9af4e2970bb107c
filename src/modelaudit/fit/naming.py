"""Finds out which output each class folder means, given what the hypotheses predict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from modelaudit.fit.labels import (
    LabelMap,
    distinct_agreement,
    given_map,
    integer_map,
    majority_map,
    most_agreement,
    sorted_maps,
)
from modelaudit.functional.statistics import lower_bound, upper_bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelaudit.cleanset import CleanSet
    from modelaudit.fit.trial import Hypothesis, Predicted

#: A hypothesis is hopeless when it agrees with the folders this many standard errors less than the
#: best.
_STANDARD_ERRORS = 3.0


class Naming:
    """The label map of each hypothesis.

    Args:
        clean: the images.
        classes: class name per output if the user gave them.
        num_classes: outputs K.
        gate: accuracy whose lower bound makes sorted names the map.

    Raises:
        DataError: `classes` or the folders' numbers contradict themselves or the model.
    """

    def __init__(
        self, clean: CleanSet, classes: Sequence[str] | None, *, num_classes: int, gate: float
    ) -> None:
        self._labels = clean.labels
        self._folders = clean.folders
        self._gate = gate
        self._maps: dict[Hypothesis, LabelMap] = {}
        self._fixed: LabelMap | None = None
        if clean.labels is not None:
            self._fixed = (
                integer_map(clean.folders, num_classes)
                if classes is None
                else given_map(clean.folders, classes, num_classes)
            )

    @property
    def is_known(self) -> bool:
        """Whether no prediction is needed to find the map."""
        return self._labels is None or self._fixed is not None

    def map_of(self, hypothesis: Hypothesis) -> LabelMap | None:
        """Return the map under a hypothesis; None if the images are unlabelled."""
        return None if self._labels is None else self._fixed or self._maps[hypothesis]

    def hits(self, hypothesis: Hypothesis, predicted: Predicted, images: np.ndarray) -> np.ndarray:
        """Return 1 or 0 per image for a right or wrong label, or the confidence if unlabelled.

        Returns:
            Shape ``(N,)``, float64.
        """
        label_map = self.map_of(hypothesis)
        if label_map is None or self._labels is None:
            return predicted.confidence
        right: np.ndarray = label_map.of(self._labels[images]) == predicted.outputs
        return right.astype(np.float64)

    def hopeful(
        self, found: Mapping[Hypothesis, Predicted], images: np.ndarray
    ) -> list[Hypothesis]:
        """Return the hypotheses whose agreement with the folders is not far below the best one.

        Works before the map is known: then an image agrees if it leads to its folder's majority.
        """
        agreement = {h: self._agreement(p.outputs, images) for h, p in found.items()}
        best = max(agreement.values(), default=0)
        share = (best + 1) / (len(images) + 2)
        margin = _STANDARD_ERRORS * math.sqrt(share * (1 - share) * len(images))
        return [h for h, count in agreement.items() if count >= best - margin]

    def within_reach(
        self, found: Mapping[Hypothesis, Predicted], images: np.ndarray
    ) -> list[Hypothesis]:
        """Return the hypotheses whose accuracy may still reach the gate under some map, best first.

        The upper 95 % bound of what the best map could make of these images is held against it.
        """
        reach = {h: self._reach(p.outputs, images) for h, p in found.items()}
        return [
            h
            for h in sorted(reach, key=lambda h: -reach[h])
            if upper_bound(reach[h], len(images)) >= self._gate
        ]

    def sorted_fits(self, found: Mapping[Hypothesis, Predicted], images: np.ndarray) -> bool:
        """Take the folders in sorted order if any hypothesis then reaches the gate; say whether."""
        assert self._labels is not None
        labels = self._labels[images]
        hits = {
            label_map: max(
                (int((label_map.of(labels) == p.outputs).sum()) for p in found.values()), default=0
            )
            for label_map in sorted_maps(self._folders)
        }
        label_map = max(hits, key=lambda m: hits[m])
        if lower_bound(hits[label_map], len(images)) < self._gate:
            return False
        self._maps = dict.fromkeys(found, label_map)
        return True

    def take_majorities(
        self, found: Mapping[Hypothesis, Predicted], images: np.ndarray
    ) -> list[Hypothesis]:
        """Take each folder's majority prediction; return the hypotheses that have a usable one."""
        assert self._labels is not None
        labels = self._labels[images]
        self._maps = {}
        for hypothesis, predicted in found.items():
            label_map = majority_map(predicted.outputs, labels, len(self._folders))
            if label_map is not None:
                self._maps[hypothesis] = label_map
        return list(self._maps)

    def _reach(self, outputs: np.ndarray, images: np.ndarray) -> int:
        if self._fixed is not None:
            return self._agreement(outputs, images)
        assert self._labels is not None
        return most_agreement(outputs, self._labels[images])

    def _agreement(self, outputs: np.ndarray, images: np.ndarray) -> int:
        assert self._labels is not None
        labels = self._labels[images]
        if self._fixed is not None:
            return int((self._fixed.of(labels) == outputs).sum())
        return distinct_agreement(outputs, labels)
