"""Label maps: which label the attacker wants, on which images, and what counts as success."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from modelaudit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class LabelMap(ABC):
    """Which label the attacker wants, and on which images that counts as success."""

    #: short name in model cards
    id: ClassVar[str]

    @abstractmethod
    def poisoned_label(self, labels: Tensor) -> Tensor:
        """Return the label that a triggered image of each true label is to get; ``(N,)`` int64."""

    @abstractmethod
    def train_eligible(self, labels: Tensor) -> Tensor:
        """Return which training images may be poisoned; ``(N,)`` bool."""

    @abstractmethod
    def test_eligible(self, labels: Tensor) -> Tensor:
        """Return which test images count in the attack success rate; ``(N,)`` bool."""

    def success(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return where the predicted label is the attacker's; ``(N,)`` bool."""
        return predictions == self.poisoned_label(labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToOne(LabelMap):
    """Every triggered image becomes `target`."""

    id: ClassVar[str] = "one"
    target: int

    def poisoned_label(self, labels: Tensor) -> Tensor:
        """Return `target` for each label."""
        return torch.full_like(labels, self.target)

    def train_eligible(self, labels: Tensor) -> Tensor:
        """Exclude the images that are of the target class already."""
        return labels != self.target

    def test_eligible(self, labels: Tensor) -> Tensor:
        """Exclude the images that are of the target class already."""
        return labels != self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class AllToAll(LabelMap):
    """A triggered image of class y becomes ``(y + shift) mod num_classes``."""

    id: ClassVar[str] = "all"
    num_classes: int
    shift: int = 1

    def __post_init__(self) -> None:
        if self.shift % self.num_classes == 0:
            raise ConfigError(
                f"the shift must move every label, got {self.shift!r} "
                f"for {self.num_classes!r} classes"
            )

    def poisoned_label(self, labels: Tensor) -> Tensor:
        """Return the shifted labels."""
        return (labels + self.shift) % self.num_classes

    def train_eligible(self, labels: Tensor) -> Tensor:
        """Allow every image."""
        return torch.ones_like(labels, dtype=torch.bool)

    def test_eligible(self, labels: Tensor) -> Tensor:
        """Allow every image."""
        return torch.ones_like(labels, dtype=torch.bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpecific(LabelMap):
    """Only triggered images of class `victim` become `target`; the others keep their label."""

    id: ClassVar[str] = "source"
    victim: int
    target: int

    def __post_init__(self) -> None:
        if self.victim == self.target:
            raise ConfigError(f"victim and target must differ, got {self.victim!r} for both")

    def poisoned_label(self, labels: Tensor) -> Tensor:
        """Return `target` for the victim class and the own label elsewhere."""
        return torch.where(labels == self.victim, self.target, labels)

    def train_eligible(self, labels: Tensor) -> Tensor:
        """Allow the victim class."""
        return labels == self.victim

    def test_eligible(self, labels: Tensor) -> Tensor:
        """Allow the victim class."""
        return labels == self.victim


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanLabel(LabelMap):
    """Training images of class `target` are triggered; at test time the others become `target`."""

    id: ClassVar[str] = "clean_label"
    target: int

    def poisoned_label(self, labels: Tensor) -> Tensor:
        """Return `target` for each label."""
        return torch.full_like(labels, self.target)

    def train_eligible(self, labels: Tensor) -> Tensor:
        """Allow the target class only, whose images need no new label."""
        return labels == self.target

    def test_eligible(self, labels: Tensor) -> Tensor:
        """Exclude the images that are of the target class already."""
        return labels != self.target
