"""What a population tells of itself while it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a model of a population.

    Attributes:
        kind: an epoch was finished, or the model is trained, failed, or judged.
        id: the model's.
        epochs: finished epochs of the plan's.
        seconds: what the last epoch took; 0 where it was none.
        text: what a reader may want to know.
    """

    kind: Literal["epoch", "trained", "failed", "judged"]
    id: str
    epochs: int = 0
    seconds: float = 0.0
    text: str = ""
